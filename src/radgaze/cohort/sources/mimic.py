"""What the data sets built on MIMIC-CXR share: its images under some folder, its file names, and studies that turn
out broken.

MIMIC-CXR keeps an image at ``files/pNN/p<patient>/s<study>/<image>.dcm``; MIMIC-CXR-JPG at the same place as
``.jpg``. Sheets name it with more or fewer leading folders than the reader's disk has, so the file is found by the
tail of that path, and by name alone where the folders differ.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path, PurePosixPath

from radgaze.errors import InputError

__all__ = ["BrokenStudies", "MimicImages", "find_folder"]

SUFFIXES = (".dcm", ".png", ".jpg", ".jpeg")  # the original first, then what keeps its values


class MimicImages:
    """The images under ``root``, at whatever depth of MIMIC-CXR's tree that folder is.

    Raises:
        InputError: ``root`` is no folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(
                f"Image folder {str(root)!r} does not exist; give the folder that holds the MIMIC-CXR images."
            )
        self.root = root
        self._depth = 0

    def find(self, path: str) -> Path:
        """The file that a sheet calls ``path`` (``files/p10/p100/s5/abc.dcm``, ``p10/p100/s5/abc.dcm``, or ``abc``).

        A DICOM is taken before a PNG before a JPEG. The tree is walked, once, only for files that are not where
        ``path`` says.

        Raises:
            InputError: there is none, or there are several and none is closer to ``path`` than the others.
        """
        parts = PurePosixPath(path.replace("\\", "/")).parts
        if not parts or parts[-1] in ("/", ".."):
            raise InputError(f"its image path is {path!r}; expected a path such as 'files/p10/p100/s5/abc.dcm'")
        # Whatever number of leading folders the last image lacked, this one will lack as well.
        self._depth = min(self._depth, len(parts) - 1)
        for depth in sorted(range(len(parts)), key=lambda depth: depth != self._depth):
            place = self.root.joinpath(*parts[depth:])
            for suffix in SUFFIXES:
                file = place.with_suffix(suffix)
                if os.path.isfile(file):  # and not Path's, which raises for a name that is too long
                    self._depth = depth
                    return file
        return self._find_by_name(parts)

    def _find_by_name(self, parts: tuple[str, ...]) -> Path:
        name = PurePosixPath(parts[-1]).stem
        candidates = self._by_name.get(name, [])
        if not candidates:
            raise InputError(
                f"image {name!r} is not under {str(self.root)!r}; expected {name}.dcm, .png or .jpg, download it"
            )

        def preference(file: Path) -> tuple[int, int]:
            pairs = zip(file.parts[-2::-1], parts[-2::-1], strict=False)
            shared = next((count for count, (ours, theirs) in enumerate(pairs) if ours != theirs), len(parts))
            return SUFFIXES.index(file.suffix.lower()), -shared

        ranked = sorted(candidates, key=preference)
        if len(ranked) > 1 and preference(ranked[0]) == preference(ranked[1]):
            raise InputError(
                f"image {name!r} is both {str(ranked[0])!r} and {str(ranked[1])!r}; "
                f"remove one, or give a deeper image folder"
            )
        return ranked[0]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        index: dict[str, list[Path]] = {}
        for folder, _, files in os.walk(self.root):
            for file in files:
                name, suffix = os.path.splitext(file)
                if suffix.lower() in SUFFIXES:
                    index.setdefault(name, []).append(Path(folder, file))
        return index


def find_folder(root: Path, pattern: str, what: str) -> Path:
    """The folder that holds ``pattern``: ``root`` itself or up to three levels below it (``egd-cxr/`` as well as
    ``egd-cxr/1.0.0/``).

    Raises:
        InputError: no such folder, or several.
    """
    if not root.is_dir():
        raise InputError(f"{what} folder {str(root)!r} does not exist; check the path.")
    for below in ("", "*/", "*/*/", "*/*/*/"):
        folders = sorted({file.parent for file in root.glob(below + pattern)})
        if len(folders) == 1:
            return folders[0]
        if folders:
            raise InputError(
                f"{str(root)!r} holds {what} twice ({str(folders[0])!r} and {str(folders[1])!r}); give one of them."
            )
    raise InputError(f"{str(root)!r} holds no {pattern}; give the folder of {what} that does.")


class BrokenStudies:
    """Studies left out, each by name and with the reason; ``strict`` raises at the first instead."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.left_out: list[tuple[str, str]] = []

    def leave_out(self, study_id: str, reason: InputError | str) -> None:
        """Note a broken study.

        Raises:
            InputError: ``strict``.
        """
        if self.strict:
            raise InputError(f"Study {study_id!r}: {reason}")
        self.left_out.append((study_id, str(reason)))
