from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from radgaze.errors import InputError
from radgaze.inference.sources import Source, find_images


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Images in two folders under one name, one without suffix, and what is no image."""
    for place in ("a/one.png", "b/c/one.png", "b/.hidden.png", ".cache/one.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / place)
    (tmp_path / "b" / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "b" / "notes.txt").write_text("nothing to see")
    os.mkfifo(tmp_path / "b" / "pipe")  # reading one would wait for ever
    return tmp_path


def names(found: list[Source], folder: Path) -> list[str]:
    return [source.path.relative_to(folder).as_posix() for source in found]


def test_a_folder_is_searched_at_any_depth(tree: Path) -> None:
    assert names(find_images([tree]), tree) == ["a/one.png", "b/IM0001", "b/c/one.png"]


def test_globs_files_and_folders_once_each_in_the_order_given(tree: Path) -> None:
    found = find_images([tree / "b" / "c", tree / "**" / "*", tree / "a" / ".." / "a" / "one.png"])
    assert names(found, tree) == ["b/c/one.png", "a/one.png", "b/IM0001"]


def test_a_file_that_is_named_is_taken_as_it_is(tree: Path) -> None:
    assert names(find_images([tree / "b" / "notes.txt"]), tree) == ["b/notes.txt"]


def test_brackets_in_a_name_are_no_pattern_where_the_file_exists(tree: Path) -> None:
    (tree / "a" / "x[1].png").write_bytes((tree / "a" / "one.png").read_bytes())
    assert names(find_images([tree / "a" / "x[1].png"]), tree) == ["a/x[1].png"]


def test_the_folder_written_to_is_not_read(tree: Path) -> None:
    assert names(find_images([tree], leave_out=tree / "b"), tree) == ["a/one.png"]
    assert names(find_images([tree / "*" / "*.png"], leave_out=tree / "b"), tree) == ["a/one.png"]
    assert find_images([tree / "b"], leave_out=tree / "b")[0].problem is not None


@pytest.mark.parametrize(
    ("given", "reason"), [("gone.png", "does not exist"), ("*.tiff", "matches"), ("empty", "holds no PNG")]
)
def test_what_is_not_there_is_said_of_it_alone(tree: Path, given: str, reason: str) -> None:
    (tree / "empty").mkdir()
    missing, found = find_images([tree / given, tree / "a"])
    assert reason in str(missing.problem)
    assert found.problem is None


def test_nothing_given() -> None:
    with pytest.raises(InputError, match="No image was given"):
        find_images([])


def test_output_names_do_not_collide_and_lead_nowhere_else() -> None:
    paths = ["a/one.png", "b/one.png", "a/one.dcm", "a_one.png", "../../etc/passwd", "..", "a/ .png", "x" * 250]
    paths.append("ä/ü.png")
    stems = [Source(Path(path)).stem for path in paths]
    assert len(set(stems)) == len(paths)
    for stem in stems:
        assert Path(stem).name == stem
        assert not stem.startswith((".", "-"))
        assert len(os.fsencode(stem)) < 200
    assert stems[0].startswith("one-")
    assert stems[-1].startswith("ü-")
    assert stems == [Source(Path(path)).stem for path in paths]


def test_a_path_that_is_no_text_can_still_be_written_down() -> None:
    source = Source(Path(os.fsdecode(b"scan-\xff.png")))
    assert source.name == "scan-\\xff.png"
    assert source.stem.encode()
