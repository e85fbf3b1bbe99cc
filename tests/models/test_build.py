from __future__ import annotations

from pathlib import Path

import pytest

from radgaze.errors import InputError
from radgaze.models import MTUNet, load_weights, save_weights


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
