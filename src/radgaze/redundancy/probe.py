"""The probe set: the few images that a network's kernels are looked at on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice, zip_longest

import numpy as np
from numpy.typing import NDArray

from radgaze.cohort import Cohort
from radgaze.errors import InputError

__all__ = ["probe_studies"]


def probe_studies(cohort: Cohort, studies: NDArray[np.int64], count: int, seed: int = 0) -> NDArray[np.int64]:
    """Studies whose images show what kernels do, spread evenly over the classes.

    The classes (``cohort.strata``; studies without a label count as one more) take turns, so that their numbers differ
    by at most one until a class has no more. Constant images are left out, and so are further readings of an image.

    Args:
        cohort: Open cohort.
        studies: Rows to choose from: those the network has learned from, so that the others stay unseen.
        count: How many, at least 2.
        seed: Of the choice within a class.

    Returns:
        (count,) int64 rows of ``cohort.studies``, ascending.

    Raises:
        InputError: ``count`` below 2, or fewer such images.
    """
    if count < 2:
        raise InputError(
            f"The number of probe images is {count}, expected at least 2: what two kernels share on one image may be "
            "that image's own, so ask for more, such as 16."
        )
    if seed < 0:
        raise InputError(f"The seed of the probe images is {seed}, expected 0 or more; give another one.")
    strata, images = cohort.strata, cohort.studies["image_row"]
    of_class: dict[str, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(studies).tolist():
        of_class.setdefault(strata[row] or "", []).append(row)
    seen: set[int] = set()

    def showing(rows: Iterable[int]) -> Iterator[int]:
        for row in rows:
            if images[row] not in seen and np.ptp(cohort[row].image) > 0:
                seen.add(images[row])
                yield row

    turns = chain.from_iterable(zip_longest(*(showing(of_class[name]) for name in sorted(of_class))))
    chosen = list(islice((row for row in turns if row is not None), count))
    if len(chosen) < count:
        raise InputError(
            f"Cohort {cohort.name!r} has {len(chosen)} images to probe a network with that are not blank, expected "
            f"{count}; ask for fewer."
        )
    return np.array(sorted(chosen), dtype=np.int64)
