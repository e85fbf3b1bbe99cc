"""Batches of studies, straight from the cohort's memory maps."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from radgaze.cohort import Cohort
from radgaze.cohort.splits import subset_by_patient
from radgaze.errors import InputError, RadgazeError
from radgaze.training.attention import AttentionTarget
from radgaze.training.augment import draw_motion, shade
from radgaze.training.config import Augmentation, RunConfig

__all__ = ["Batch", "Batches", "CohortDataset", "Loader", "load_images", "training_studies"]


@dataclass(frozen=True)
class Batch:
    """``B`` studies, ready for a network and its objective.

    Attributes:
        images: ``(B, 1, h, w)`` float32 in [0, 1], each image divided by its maximum.
        targets: ``(B,)`` int64 with -1 unknown, or ``(B, C)`` float32 with NaN unknown.
        attention: ``(B, h', w')`` float32 in [0, 1], or ``None``.
        has_attention: ``(B,)`` bool.
        studies: ``(B,)`` int64 rows of ``cohort.studies``.
        positions: ``(B,)`` int64 places in the list of studies that the loader goes through.
        teacher: ``(B, C)`` class scores of the run's teacher for these very images, or ``None``.
    """

    images: Tensor
    targets: Tensor
    attention: Tensor | None
    has_attention: Tensor
    studies: Tensor
    positions: Tensor
    teacher: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device, channels_last: bool = False) -> Batch:
        moved = {
            field.name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for field in fields(self)
            for value in [getattr(self, field.name)]
        }
        batch = replace(self, **moved)
        if channels_last:
            batch = replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last))
        return batch

    def pin_memory(self) -> Batch:
        pinned = {f.name: v.pin_memory() for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **pinned)


def load_images(cohort: Cohort, studies: Sequence[int]) -> Tensor:
    """Images ``(B, 1, h, w)`` float32 in [0, 1]: 16-bit pixels divided by each image's maximum (zeros stay zeros)."""
    images = torch.empty(len(studies), 1, *cohort.size)
    for image, study in zip(images.numpy()[:, 0], studies, strict=True):
        pixels = cohort[study].image
        np.divide(pixels, np.float32(max(pixels.max(), 1)), out=image)  # one pass from the memory map to the batch
    return images


def training_studies(cohort: Cohort, config: RunConfig) -> NDArray[np.int64]:
    """Rows of the training split that a run learns from: all, or ``config.train_studies`` of them.

    Raises:
        InputError: The training split has fewer.
    """
    rows = cohort.indices("train")
    if config.train_studies is None:
        return rows
    if config.train_studies > len(rows):
        raise InputError(
            f"train_studies is {config.train_studies}, but the training split of cohort {cohort.name!r} has "
            f"{len(rows)} studies; give at most that many, or none for all."
        )
    patients, strata = cohort.studies["patient_id"][rows].to_list(), cohort.strata
    seed = config.seed if config.subset_seed is None else config.subset_seed
    return rows[subset_by_patient(patients, [strata[row] for row in rows], config.train_studies, seed)]


class CohortDataset:
    """Makes whole batches at a time; an item is ``(epoch, position)``, so augmentation needs no state.

    Args:
        cohort: Open cohort.
        studies: Row numbers to go through.
        attention: Attention target, or ``None`` for images and labels alone.
        attention_size: Grid of the attention maps; the images' by default.
        augmentation: Random changes; ``None`` for none (validation, test).
        seed: Of the random changes.
    """

    def __init__(
        self,
        cohort: Cohort,
        studies: NDArray[np.int64],
        attention: AttentionTarget | None = None,
        attention_size: tuple[int, int] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.cohort, self.studies = cohort, studies
        self.attention, self.attention_size = attention, attention_size
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.studies)

    def batch(self, items: Sequence[tuple[int, int]]) -> Batch:
        """The studies at some positions, as they look in some epochs; safe to call from several threads."""
        positions = [position for _, position in items]
        studies = [int(self.studies[position]) for position in positions]
        images = load_images(self.cohort, studies)
        motion = None
        if self.augmentation is not None:
            view = self.augmentation.view
            generators = [np.random.default_rng((self.seed, view(epoch), position)) for epoch, position in items]
            motion = draw_motion(self.augmentation, self.cohort.size, generators)
            if motion is not None:
                images = motion.images(images)
            images = shade(images, self.augmentation, generators)
        attention, present = None, torch.zeros(len(items), dtype=torch.bool)
        if self.attention is not None and self.attention.kind != "none":
            attention, present = self.attention.maps(self.cohort, studies, motion, self.attention_size)
        return Batch(
            images=images,
            targets=torch.from_numpy(self.cohort.targets[studies]),
            attention=attention,
            has_attention=present,
            studies=torch.tensor(studies),
            positions=torch.tensor(positions),
        )


class Batches:
    """Splits an epoch into batches of nearly equal size, shuffled by (seed, epoch), shared out over processes.

    Nearly equal, because a last batch of one study would spoil the batch statistics. Set :attr:`epoch` before use.

    When shuffling, for training, every process takes part in every step, and their batches of one step are together
    what one process would take with ``batch_size * world``; where that leaves a process without a study, it takes the
    first one too. Otherwise each study comes once, in one process, and some processes may have a batch less.
    """

    def __init__(
        self, count: int, batch_size: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.rank, self.world = rank, world
        self.epoch = 0

    def order(self) -> NDArray[np.int64]:
        order = np.arange(self.count)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        return order

    def __len__(self) -> int:  # asked for at every step, so nothing is shuffled for it
        if self.shuffle:
            return math.ceil(self.count / (self.batch_size * self.world))
        return math.ceil(len(range(self.rank, self.count, self.world)) / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # when shuffling, the batches of all processes together, else those of the process's own share
        shared = self.order() if self.shuffle else self.order()[self.rank :: self.world]
        for batch in np.array_split(shared, max(1, len(self))):
            if self.shuffle:
                own = batch[self.rank :: self.world]
                batch = own if len(own) else batch[:1]
            if len(batch):
                yield [(self.epoch, int(position)) for position in batch]


# Batches made ahead for each thread: one to be taken, one in the making.
AHEAD = 2


class Loader:
    """The batches of an epoch, made as they are asked for, or ahead of time by threads.

    Threads, not processes: reading the memory map, moving pixels and rendering gaze all happen in native code that lets
    other threads run, and a batch needs no copying from one process to the next, which costs more than making it. A
    fork, besides, has the locks of Polars' threads but not the threads, and may wait for them forever.

    Args:
        dataset: Makes the batches.
        batches: Which studies make a batch; its epoch may change between epochs.
        workers: Threads; 0 makes each batch when it is asked for.
        pin: Put batches into page-locked memory, for a GPU.
    """

    def __init__(self, dataset: CohortDataset, batches: Batches, *, workers: int, pin: bool) -> None:
        self.dataset, self.batches, self.workers, self.pin = dataset, batches, workers, pin

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        if not self.workers:
            yield from map(self.make, self.batches)
            return
        pool = single_threaded(self.workers)
        waiting: deque[Future[Batch]] = deque()
        try:
            for items in self.batches:
                waiting.append(pool.submit(self.make, items))
                if len(waiting) > AHEAD * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def make(self, items: list[tuple[int, int]]) -> Batch:
        try:
            batch = self.dataset.batch(items)
        except Exception as error:  # whatever it is, which studies it is about must be told
            rows = self.dataset.studies[[position for _, position in items]]
            names = ", ".join(self.dataset.cohort.studies["study_id"][rows].to_list())
            kind = InputError if isinstance(error, InputError) else RadgazeError
            raise kind(
                f"The batch of studies {names} could not be made ({str(error) or type(error).__name__}); what was "
                "finished before is kept, so check the cohort (radgaze info --check) and go on."
            ) from error
        return batch.pin_memory() if self.pin else batch


def single_threaded(workers: int) -> ThreadPoolExecutor:
    """Threads that each compute alone: their parallelism is that there are several."""
    threads = torch.get_num_threads()
    started = threading.Barrier(workers + 1)

    def start() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(workers, initializer=start)
    for _ in range(workers):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)  # part of the setting is the process's
    return pool
