from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from radgaze.errors import InputError
from radgaze.models import MTUNet, build, load_weights, save_weights


def test_missing_damaged_and_foreign_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    with pytest.raises(InputError, match="no weights file"):
        load_weights(MTUNet(width=2), file)
    save_weights(MTUNet(width=2), file)
    with pytest.raises(InputError, match="do not fit"):
        load_weights(MTUNet(width=4), file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged"):
        load_weights(MTUNet(width=2), file)
    assert list(tmp_path.iterdir()) == [file]  # no partial file stays behind


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"name": "mt-unet", "width": 10**6}, "would have more than 1,073,741,824 parameters"),
        ({"name": "mt-unet", "width": 10**30}, "would have more than|cannot be made"),
        ({"name": "mt-unet", "width": "4"}, "cannot be made with"),
        ({"name": "gaze-cam", "backbone": "narrow_resnet", "options": [1]}, "cannot be made with"),
        ({"name": ["mt-unet"]}, "There is no network"),
        ({"name": "mt-unet", "width": 1, "widths": [3]}, "cannot be made with"),
    ],
)
def test_values_that_make_no_network_are_refused_before_memory_is_asked_for(config: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        build(config)
    assert len(str(error.value).splitlines()) == 1
