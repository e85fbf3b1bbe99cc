from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from radgaze.cohort import Cohort
from radgaze.errors import InputError, RadgazeError
from radgaze.gaze import render
from radgaze.training import AttentionTarget, Augmentation
from radgaze.training.attention import covered
from radgaze.training.augment import draw_motion, shade
from radgaze.training.data import Batch, Batches, CohortDataset, Loader, load_images

WILD = Augmentation(rotate=90, translate=0.2, zoom=0.3, flip=True, gamma=0.3, gain=0.2)


def peak(maps: torch.Tensor) -> torch.Tensor:
    """Centre of mass (row, column) of each map."""
    rows = torch.arange(maps.shape[1]).view(1, -1, 1)
    columns = torch.arange(maps.shape[2]).view(1, 1, -1)
    mass = maps.sum((1, 2))
    return torch.stack([(maps * rows).sum((1, 2)) / mass, (maps * columns).sum((1, 2)) / mass], 1)


def test_images_are_divided_by_their_maximum(cohort: Cohort) -> None:
    images = load_images(cohort, [0, 3])
    raw = cohort[3].image.astype(np.float64)
    np.testing.assert_allclose(images[1, 0].numpy(), raw / raw.max(), atol=1e-6)


def test_image_mask_boxes_and_gaze_move_together(cohort: Cohort) -> None:
    """The blob, its mask, its box and the readers' gaze have one centre before and after any motion."""
    studies = cohort.indices("all")
    centres = {}
    for spec in ("mask:blob", "boxes", "gaze"):
        target = AttentionTarget(spec, sigma=3.0)
        dataset = CohortDataset(cohort, studies, target, augmentation=WILD, seed=3)
        batch = dataset.batch([(5, i) for i in range(len(studies))])
        assert batch.attention is not None
        inside = batch.has_attention & (batch.attention[:, 4:-4, 4:-4].sum((1, 2)) > 0.98 * batch.attention.sum((1, 2)))
        centres[spec] = (peak(batch.attention), inside)
    both = centres["mask:blob"][1] & centres["boxes"][1] & centres["gaze"][1]
    assert both.sum() >= 6
    mask, boxes, gaze = (centres[spec][0][both] for spec in ("mask:blob", "boxes", "gaze"))
    torch.testing.assert_close(mask, boxes, atol=0.5, rtol=0)
    torch.testing.assert_close(mask, gaze, atol=2.0, rtol=0)  # twelve glances scatter by 4 px / sqrt(12) in the source


def test_motion_of_points_equals_motion_of_pixels() -> None:
    size = (40, 56)
    motion = draw_motion(WILD, size, [np.random.default_rng(seed) for seed in range(8)])
    assert motion is not None
    image = torch.zeros(8, 1, *size)
    image[:, 0, 17:20, 25:28] = 1.0
    moved = peak(motion.images(image)[:, 0])
    for study in range(8):
        column, row = motion.points(study, torch.tensor([26.0]), torch.tensor([18.0]))
        torch.testing.assert_close(moved[study].double(), torch.cat([row, column]), atol=0.1, rtol=0)


def test_flip_is_an_exact_mirror() -> None:
    motion = draw_motion(
        Augmentation(rotate=0, translate=0, zoom=0, flip=True), (5, 8), [np.random.default_rng(s) for s in range(20)]
    )
    assert motion is not None
    images = torch.rand(20, 1, 5, 8)
    moved = motion.images(images)
    flipped = motion.linear[:, 0, 0] < 0
    assert 0 < flipped.sum() < 20
    torch.testing.assert_close(moved[flipped], images[flipped].flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[~flipped], images[~flipped], atol=1e-5, rtol=0)


def test_laterality_is_kept_by_default() -> None:
    motion = draw_motion(Augmentation(), (8, 8), [np.random.default_rng(s) for s in range(50)])
    assert motion is not None
    assert (torch.linalg.det(motion.linear) > 0).all()


def test_no_augmentation_changes_nothing(cohort: Cohort) -> None:
    studies = cohort.indices("train")
    plain = CohortDataset(cohort, studies, AttentionTarget("gaze"))
    none = CohortDataset(cohort, studies, AttentionTarget("gaze"), augmentation=Augmentation.none())
    a, b = plain.batch([(0, 0), (0, 1)]), none.batch([(9, 0), (9, 1)])
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.attention, b.attention)


def test_shading_stays_in_range_and_keeps_black() -> None:
    images = torch.rand(4, 1, 6, 6)
    images[:, :, 0, 0] = 0
    shaded = shade(images, WILD, [np.random.default_rng(s) for s in range(4)])
    assert shaded.min() == 0
    assert shaded.max() <= 1
    assert not torch.equal(shaded, images)


def test_augmentation_depends_on_seed_epoch_and_study_alone(cohort: Cohort) -> None:
    studies = cohort.indices("train")
    dataset = CohortDataset(cohort, studies, AttentionTarget("gaze"), augmentation=WILD, seed=1)
    whole = dataset.batch([(2, 0), (2, 1), (2, 2)])
    alone = dataset.batch([(2, 1)])
    assert torch.equal(whole.images[1], alone.images[0])
    assert torch.equal(whole.attention[1], alone.attention[0])
    assert not torch.equal(dataset.batch([(3, 1)]).images, alone.images)


def test_gaze_maps_are_the_rendered_gaze(cohort: Cohort) -> None:
    maps, present = AttentionTarget("gaze", "mt-unet", sigma=5.0).maps(cohort, [4])
    study = cohort[4]
    assert study.gaze is not None
    expected = render(study.gaze, study.source_size, preset="mt-unet", sigma=5.0, grid=study.grid)
    assert present.tolist() == [True]
    torch.testing.assert_close(maps[0], expected)


def test_coarse_maps_for_cams(cohort: Cohort) -> None:
    for spec in ("gaze", "mask:blob", "boxes"):
        target = AttentionTarget(spec, "gg-cam", sigma=6.0)
        fine, _ = target.maps(cohort, [0, 1, 2])
        coarse, _ = target.maps(cohort, [0, 1, 2], size=(6, 4))
        assert coarse.shape == (3, 6, 4)
        torch.testing.assert_close(peak(coarse) * 8 + 3.5, peak(fine), atol=2.0, rtol=0)


def test_covered_cells_sum_to_the_interval() -> None:
    shares = covered(first=1.5, step=4.0, count=10, low=3.0, high=17.5)
    assert shares.sum().item() * 4.0 == pytest.approx(14.5)
    assert shares.max().item() == 1.0


@pytest.mark.parametrize("spec", ["heatmap", "mask", "mask:"])
def test_unknown_attention_target(spec: str) -> None:
    with pytest.raises(InputError, match="mask:NAME"):
        AttentionTarget(spec)


def test_cohort_without_the_target(cohort: Cohort) -> None:
    with pytest.raises(InputError, match="it has gaze, mask:blob, boxes"):
        AttentionTarget("mask:lungs").check(cohort)


@pytest.mark.parametrize(("count", "size", "world"), [(10, 3, 1), (7, 6, 1), (5, 8, 1), (11, 2, 3)])
def test_every_study_comes_once_in_even_batches(count: int, size: int, world: int) -> None:
    seen = []
    for rank in range(world):
        batches = list(Batches(count, size, shuffle=False, rank=rank, world=world))
        lengths = [len(batch) for batch in batches]
        assert max(lengths) - min(lengths) <= 1
        assert max(lengths) <= size
        seen += [position for batch in batches for _, position in batch]
    assert sorted(seen) == list(range(count))


def test_shuffling_follows_the_epoch() -> None:
    batches = Batches(20, 4, shuffle=True, seed=1)
    first = list(batches)
    assert list(batches) == first
    batches.epoch = 1
    assert [p for b in batches for _, p in b] != [p for b in first for _, p in b]


@pytest.mark.parametrize(("count", "size", "world"), [(11, 2, 3), (24, 4, 2), (7, 5, 2), (9, 1, 2)])
def test_processes_share_the_batches_of_one(count: int, size: int, world: int) -> None:
    alone = list(Batches(count, size * world, shuffle=True, seed=3))
    shared = [list(Batches(count, size, shuffle=True, seed=3, rank=rank, world=world)) for rank in range(world)]
    for together, *parts in zip(alone, *shared, strict=True):
        lengths = [len(part) for part in parts]
        assert min(lengths) >= 1
        assert max(lengths) <= size
        items = [item for part in parts for item in part]
        assert set(items) == set(together)
        assert len(items) == max(len(together), world)  # one comes twice where there are too few


def test_threads_give_the_same_batches_epoch_after_epoch(cohort: Cohort) -> None:
    def two_epochs(workers: int) -> list[Batch]:
        dataset = CohortDataset(
            Cohort.open(cohort.path), cohort.indices("train"), AttentionTarget("gaze"), augmentation=WILD
        )
        batches = Batches(len(dataset), 2, shuffle=True)
        loading = Loader(dataset, batches, workers=workers, pin=False)
        seen = list(loading)
        assert len(seen) == len(loading)
        batches.epoch = 1
        return [*seen, *loading]

    threads = torch.get_num_threads()
    made_ahead, made_here = two_epochs(3), two_epochs(0)
    assert torch.get_num_threads() == threads
    assert not torch.equal(made_here[0].positions, made_here[len(made_here) // 2].positions)
    for theirs, ours in zip(made_ahead, made_here, strict=True):
        assert torch.equal(ours.positions, theirs.positions)
        assert torch.allclose(ours.images, theirs.images, atol=1e-6)  # a thread computes alone, and sums differ
        assert ours.attention is not None
        assert theirs.attention is not None
        assert torch.allclose(ours.attention, theirs.attention, atol=1e-6)


def test_a_thread_s_error_reaches_the_loop_and_no_thread_is_left(cohort: Cohort) -> None:
    class Broken(CohortDataset):
        def batch(self, items: Sequence[tuple[int, int]]) -> Batch:
            if items[0][1] == 4:
                raise InputError("this image is damaged")
            return super().batch(items)

    before = threading.active_count()
    loading = Loader(
        Broken(cohort, cohort.indices("all")),
        Batches(len(cohort), 2, shuffle=False),
        workers=2,
        pin=False,
    )
    batches = iter(loading)
    assert [next(batches).positions.tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(InputError, match="damaged"):
        next(batches)
    left_early = iter(loading)
    next(left_early)
    left_early.close()
    assert threading.active_count() == before


def test_only_a_few_batches_are_made_ahead(cohort: Cohort) -> None:
    made = []

    class Counted(CohortDataset):
        def batch(self, items: Sequence[tuple[int, int]]) -> Batch:
            made.append(items)
            return super().batch(items)

    batches = Batches(400, 1, shuffle=False)
    loading = iter(Loader(Counted(cohort, np.zeros(400, np.int64)), batches, workers=2, pin=False))
    next(loading)
    assert len(made) <= 2 * 2 + 1
    loading.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError(), RuntimeError("a bug")])
def test_a_crash_while_a_batch_is_made_names_its_studies(cohort: Cohort, workers: int, error: Exception) -> None:
    class Broken(CohortDataset):
        def batch(self, items: Sequence[tuple[int, int]]) -> Batch:
            if items[0][1] == 4:
                raise error
            return super().batch(items)

    loader = Loader(
        Broken(cohort, cohort.indices("all")), Batches(len(cohort), 2, shuffle=False), workers=workers, pin=False
    )
    made = []
    with pytest.raises(RadgazeError) as told:
        made.extend(loader)
    reason = str(error) or "MemoryError"
    assert str(told.value).startswith(f"The batch of studies s004, s005 could not be made ({reason}); ")
    assert "\n" not in str(told.value)
