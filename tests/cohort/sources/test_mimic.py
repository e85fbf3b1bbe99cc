from __future__ import annotations

from pathlib import Path

import pytest

from radgaze.cohort.sources.mimic import BrokenStudies, MimicImages, find_folder
from radgaze.errors import InputError

SHEET_PATH = "files/p10/p100/s5/abc.dcm"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    "place",
    [
        "files/p10/p100/s5/abc.dcm",  # the tree
        "p10/p100/s5/abc.jpg",  # the root is files/
        "p100/s5/abc.png",  # the root is one patient group
        "abc.jpeg",  # a flat folder
        "mimic-cxr/2.1.0/files/p10/p100/s5/abc.dcm",  # the root is further up
        "elsewhere/abc.JPG",
    ],
)
@pytest.mark.parametrize("stated", [SHEET_PATH, "physionet.org/files/mimic-cxr/2.0.0/files/p10/p100/s5/abc.dcm", "abc"])
def test_finds_an_image_at_any_depth(tmp_path: Path, place: str, stated: str) -> None:
    file = touch(tmp_path / place)
    assert MimicImages(tmp_path).find(stated) == file


def test_backslashes_are_folders(tmp_path: Path) -> None:
    file = touch(tmp_path / SHEET_PATH)
    assert MimicImages(tmp_path).find(SHEET_PATH.replace("/", "\\")) == file


@pytest.mark.parametrize("folder", ["files/p10/p100/s5", "nested/files/p10/p100/s5"])
def test_a_dicom_goes_before_a_png_before_a_jpeg(tmp_path: Path, folder: str) -> None:
    for suffix in (".jpg", ".png", ".dcm"):
        file = touch(tmp_path / folder / f"abc{suffix}")
        assert MimicImages(tmp_path).find(SHEET_PATH) == file


def test_a_second_image_does_not_depend_on_where_the_first_was(tmp_path: Path) -> None:
    deep = touch(tmp_path / "p10/p100/s5/abc.dcm")
    flat = touch(tmp_path / "def.dcm")
    images = MimicImages(tmp_path)
    assert images.find(SHEET_PATH) == deep
    assert images.find("files/p11/p110/s6/def.dcm") == flat
    assert images.find("abc") == deep


def test_of_two_files_the_one_nearer_to_the_path_is_taken(tmp_path: Path) -> None:
    near = touch(tmp_path / "copy/p10/p100/s5/abc.dcm")
    touch(tmp_path / "other/s5/abc.dcm")
    assert MimicImages(tmp_path).find(SHEET_PATH) == near


def test_two_equally_near_files_are_not_guessed_between(tmp_path: Path) -> None:
    touch(tmp_path / "a/s5/abc.dcm")
    touch(tmp_path / "b/s5/abc.dcm")
    with pytest.raises(InputError, match=r"is both .*remove one"):
        MimicImages(tmp_path).find(SHEET_PATH)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image 'abc' is not under .*abc\.dcm"):
        MimicImages(tmp_path).find(SHEET_PATH)
    with pytest.raises(InputError, match="does not exist"):
        MimicImages(tmp_path / "none")


@pytest.mark.parametrize("path", ["", "/", "files/.."])
def test_a_path_without_a_name_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match="its image path is"):
        MimicImages(tmp_path).find(path)


def test_find_folder(tmp_path: Path) -> None:
    touch(tmp_path / "egd-cxr/1.0.0/master_sheet.csv")
    expected = tmp_path / "egd-cxr/1.0.0"
    for root in (tmp_path, tmp_path / "egd-cxr", expected):
        assert find_folder(root, "master_sheet.csv", "EGD-CXR") == expected
    touch(tmp_path / "egd-cxr/0.9/master_sheet.csv")
    with pytest.raises(InputError, match="holds EGD-CXR twice"):
        find_folder(tmp_path, "master_sheet.csv", "EGD-CXR")
    with pytest.raises(InputError, match=r"holds no metadata_phase_\*\.csv"):
        find_folder(tmp_path, "metadata_phase_*.csv", "REFLACX")
    with pytest.raises(InputError, match="does not exist"):
        find_folder(tmp_path / "none", "master_sheet.csv", "EGD-CXR")


def test_broken_studies() -> None:
    lenient = BrokenStudies(strict=False)
    lenient.leave_out("a", InputError("no image"))
    assert lenient.left_out == [("a", "no image")]
    with pytest.raises(InputError, match="Study 'a': no image"):
        BrokenStudies(strict=True).leave_out("a", "no image")
