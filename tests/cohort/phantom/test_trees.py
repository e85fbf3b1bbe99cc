"""Making a tree: repeatable to the byte, atomic, and with errors that say what to do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from radgaze.cohort.phantom import make_phantom, trees
from radgaze.errors import InputError


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def make(out: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {"studies": 3, "image_size": (40, 36), "workers": 1, "progress": False}
    return make_phantom(out, **(settings | changes))


@pytest.mark.parametrize("layout", ["egd-cxr", "reflacx"])
def test_same_seed_same_bytes(tmp_path: Path, layout: str) -> None:
    one = digest(make(tmp_path / "one", layout=layout, seed=4))
    assert one == digest(make(tmp_path / "two", layout=layout, seed=4))
    assert set(one) != set(digest(make(tmp_path / "three", layout=layout, seed=5)))


def test_processes_change_nothing(tmp_path: Path) -> None:
    assert digest(make(tmp_path / "one")) == digest(make(tmp_path / "two", workers=2))


def test_the_recipe_and_the_lesions_lie_beside_the_data(egd_tree: Path) -> None:
    assert {path.name for path in egd_tree.iterdir()} == {"egd-cxr", "mimic-cxr", "phantom.json", "lesions.csv"}
    recipe = json.loads((egd_tree / "phantom.json").read_text())
    assert recipe["layout"] == "egd-cxr"
    assert recipe["image_size"] == [97, 80]
    lesions = pl.read_csv(egd_tree / "lesions.csv")
    assert lesions.columns == ["dicom_id", "label", "name", "xmin", "ymin", "xmax", "ymax", "visibility"]
    assert lesions["visibility"].is_between(0, 1).all()
    assert {"CHF", "pneumonia"} <= set(lesions["label"])


def test_jpeg_images(tmp_path: Path) -> None:
    out = make(tmp_path / "tree", image_format="jpg")
    assert len(list((out / "mimic-cxr").rglob("*.jpg"))) == 3
    assert not list(out.rglob("*.dcm"))


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path: Path) -> None:
    out = tmp_path / "tree"
    out.mkdir()
    make(out)
    assert not list(tmp_path.glob("*.partial"))
    before = digest(out)
    with pytest.raises(InputError, match="not empty"):
        make(out)
    assert digest(out) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        make(tmp_path / "file")


def test_a_failed_run_leaves_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(jobs: Any, root: Path, run: Any) -> Any:
        (root / "half").write_text("written")
        raise OSError("disk full")
        yield

    monkeypatch.setitem(trees._WRITERS, "egd-cxr", fail)
    with pytest.raises(OSError, match="disk full"):
        make(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    monkeypatch.undo()
    assert not (make(tmp_path / "tree") / "half").exists()  # what the failed run left is not taken over


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layout": "egd"}, "egd-cxr"),
        ({"image_format": "png"}, "jpg"),
        ({"studies": 0}, "studies is 0"),
        ({"workers": 0}, "workers 0"),
        ({"difficulty": 2.0}, "difficulty is 2.0"),
        ({"image_size": (16, 64)}, "16x64"),
    ],
)
def test_refuses_bad_arguments(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make(tmp_path / "tree", **change)
    assert not (tmp_path / "tree").exists()
    assert not list(tmp_path.glob("*.partial"))
