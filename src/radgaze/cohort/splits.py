"""Train, validation and test, and parts of them: by patient, stratified, seeded; never one patient on two sides.

Patients are ordered by their label and shuffled within it; then each in turn goes to the split that is furthest below
its share of the studies so far. Every stretch of that order, so every class, is divided in the wanted proportions to
within a patient or so, and so is the whole, however rare a class is.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from radgaze.errors import InputError, nearest

__all__ = [
    "SPLITS",
    "check_no_patient_overlap",
    "normalise_split",
    "rarest_labels",
    "split_by_image",
    "split_by_patient",
    "subset_by_patient",
    "warn_of_leakage",
]

SPLITS = ("train", "val", "test")

_SPELLINGS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def normalise_split(value: str | None, study_id: str = "") -> str:
    """A source's name of a split as ``"train"``, ``"val"`` (also validate, validation, valid, dev) or ``"test"``.

    Raises:
        InputError: the value is missing or is no known name of a split.
    """
    known = _SPELLINGS.get((value or "").strip().lower())
    if known is None:
        hint = nearest((value or "").strip().lower(), SPLITS)
        raise InputError(
            f"Study {study_id!r} has split {value!r}; {hint} (or import with a split by patient, not the source's)."
        )
    return known


def split_by_patient(
    patients: Sequence[str],
    labels: Sequence[str | None],
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> list[str]:
    """A split name per study; all studies of a patient get the same one.

    Args:
        patients: (N,) patient of each study.
        labels: (N,) class of each study, None where unlabelled. A patient's class for the stratification is the rarest
            among those of the patient's studies, so that rare classes are spread evenly.
        fractions: shares of train, val and test, summing to 1.
        seed: the same studies, in any order, and the same seed give the same split.

    Raises:
        InputError: the fractions are not shares.
    """
    _check_fractions(fractions)
    size, label_of = Counter(patients), _label_of(patients, labels)
    shuffled = _shuffled(size, seed)
    # Large patients first within a class: the small ones then even out the shares.
    order = sorted(shuffled, key=lambda patient: (label_of[patient] or "", -size[patient]))

    side: dict[str, int] = {}
    assigned = np.zeros(3)
    for patient in order:
        wanted = np.asarray(fractions) * (assigned.sum() + size[patient])
        chosen = int(np.argmax(np.where(np.asarray(fractions) > 0, wanted - assigned, -np.inf)))
        side[patient] = chosen
        assigned[chosen] += size[patient]
    _fill_empty(side, order, fractions)
    return [SPLITS[side[patient]] for patient in patients]


def subset_by_patient(
    patients: Sequence[str], labels: Sequence[str | None], count: int, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Part of some studies: whole patients, classes in proportion, as if fewer patients had been collected.

    Patients are shuffled and put in one order whose every stretch has the classes in proportion; the subset is its
    beginning. So with one seed a smaller subset lies within a larger one, and a learning curve adds patients.

    Args:
        patients: (N,) patient of each study.
        labels: (N,) class of each study, None where unlabelled; a patient counts for its rarest.
        count: how many studies. A patient with more studies than still fit is passed over, so a subset is smaller than
            ``count`` only where no patient fits any more.
        seed: the same studies, in any order, and the same seed give the same subset.

    Returns:
        Ascending positions of the chosen studies.

    Raises:
        InputError: ``count`` is not between 1 and N, or even the smallest patient has more studies.
    """
    if not 1 <= count <= len(patients):
        raise InputError(
            f"A subset of {count} studies cannot be drawn from {len(patients)}; "
            f"give a number from 1 to {len(patients)}, or none for all."
        )
    size, label_of = Counter(patients), _label_of(patients, labels)
    of_class: Counter[str | None] = Counter()
    for patient, number in size.items():
        of_class[label_of[patient]] += number
    before: Counter[str | None] = Counter()
    share: dict[str, float] = {}
    for patient in _shuffled(size, seed):
        label = label_of[patient]
        share[patient] = (before[label] + size[patient] / 2) / of_class[label]
        before[label] += size[patient]
    chosen: set[str] = set()
    total = 0
    for patient in sorted(share, key=lambda patient: (share[patient], label_of[patient] or "")):
        if total + size[patient] <= count:
            chosen.add(patient)
            total += size[patient]
    if not chosen:
        raise InputError(f"A subset of {count} studies holds no whole patient; give at least {min(size.values())}.")
    return np.array([place for place, patient in enumerate(patients) if patient in chosen], dtype=np.int64)


def split_by_image(
    images: Sequence[str],
    labels: Sequence[str | None],
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> list[str]:
    """The papers' split: images at random, a patient's images on several sides. Warns that results are optimistic."""
    warn_of_leakage()
    return split_by_patient(images, labels, fractions, seed)


def warn_of_leakage() -> None:
    """Say, once in a process, that a split by image leaks patients."""
    warnings.warn(
        "The split is by image: images of one patient may be in train and in test, so results look better than on new "
        "patients; use the split by patient for anything but a comparison with papers that split by image.",
        stacklevel=1,  # always from here, which is what makes Python show it once
    )


def rarest_labels(labels: Sequence[Mapping[str, float | None]]) -> list[str | None]:
    """Multi-label studies: the class to stratify each one by, the rarest present (≥ 0.5) in it, None if none is."""
    present = [[name for name, value in study.items() if value is not None and value >= 0.5] for study in labels]
    frequency = Counter(name for names in present for name in names)
    return [min(names, key=lambda name: (frequency[name], name), default=None) for names in present]


def check_no_patient_overlap(patients: Sequence[str], splits: Sequence[str], studies: Sequence[str], fix: str) -> None:
    """Refuse a split that has a patient on two sides.

    Raises:
        InputError: names a patient, the two studies and their sides, and gives ``fix``.
    """
    seen: dict[str, tuple[str, str]] = {}
    for patient, split, study in zip(patients, splits, studies, strict=True):
        other_split, other_study = seen.setdefault(patient, (split, study))
        if split != other_split:
            raise InputError(
                f"Patient {patient!r} is in {other_split!r} (study {other_study!r}) and in {split!r} (study "
                f"{study!r}); a patient must be on one side only: {fix}."
            )


def _label_of(patients: Sequence[str], labels: Sequence[str | None]) -> dict[str, str | None]:
    """Each patient's class for the stratification: the rarest among those of its studies."""
    class_counts = Counter(labels)
    label_of: dict[str, str | None] = {}
    for patient, label in zip(patients, labels, strict=True):
        rarer = _rarity(label, class_counts) < _rarity(label_of.get(patient), class_counts)
        if patient not in label_of or rarer:
            label_of[patient] = label
    return label_of


def _shuffled(patients: Iterable[str], seed: int) -> list[str]:
    """Patients in an order that depends on their names and the seed alone."""
    everyone = sorted(patients)
    return [everyone[i] for i in np.random.default_rng(seed).permutation(len(everyone))]


def _rarity(label: str | None, class_counts: Counter[str | None]) -> tuple[bool, int, str]:
    return (label is None, class_counts[label], label or "")


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    values = np.asarray(fractions, dtype=float)
    if values.shape != (3,) or not np.isfinite(values).all() or (values < 0).any() or abs(values.sum() - 1) > 1e-6:
        raise InputError(f"Split fractions are {fractions}; expected three shares (train, val, test) that sum to 1.")
    if values[0] == 0:
        raise InputError(f"Split fractions are {fractions}; the training share must be above 0.")


def _fill_empty(side: dict[str, int], order: Sequence[str], fractions: tuple[float, float, float]) -> None:
    """With a handful of patients a wanted split may have received none: it takes one from the split that has most."""
    for wanted in range(3):
        counts = Counter(side.values())
        if fractions[wanted] > 0 and counts[wanted] == 0 and counts and max(counts.values()) > 1:
            donor = max(range(3), key=lambda index: counts[index])
            side[next(patient for patient in reversed(order) if side[patient] == donor)] = wanted
