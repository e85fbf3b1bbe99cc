"""A model card is read, or refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from fuzz.exports import CARD
from radgaze.errors import InputError
from radgaze.inference.card import ModelCard


def test_what_is_whole_is_read() -> None:
    card = ModelCard.from_json(CARD)
    assert card.frame.size == (32, 16)
    assert card.calibration is not None
    assert card.to_json() | {"calibration": None} == CARD | {"calibration": None}


@pytest.mark.parametrize(
    "change",
    [
        {"size": [1 << 20, 1 << 20]},
        {"size": [0, 4]},
        {"fit": "crop"},
        {"classes": [1, 2]},
        {"outputs": 3},
        {"calibration": [1]},
        {"calibration": CARD["calibration"] | {"slopes": [[1.0]] * 3}},
        {"calibration": CARD["calibration"] | {"slopes": [[1.0]] * 3, "offsets": [[1.0]] * 3}},
        {"calibration": CARD["calibration"] | {"slopes": [["x"]]}},
        {"facts": None},
    ],
    ids=str,
)
def test_what_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        ModelCard.from_json(CARD | change)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(InputError, match="is no list of entries"):
        ModelCard.from_json([])  # type: ignore[arg-type]
