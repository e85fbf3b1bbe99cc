"""What claims an absurd size is refused before memory is asked for: measured in a process of its own."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from radgaze.cohort.layout import check_row_count
from radgaze.errors import InputError
from tests.cohort.pictures import write_dicom

MOST_GROWTH = 48  # MB; each of these inputs claims a hundred times as much, at least

READ = """
import json, resource, sys
from pathlib import Path
from radgaze.cohort.pixels import image_size, read_image
from radgaze.cohort.sources.csv_files import read_rows
from radgaze.cohort.sources.tables import import_tables
from radgaze.cohort.store import Cohort
from radgaze.errors import InputError
from radgaze.files import read_json

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def array(path):
    cohort = Cohort(path.parent, {}, None)
    return cohort._array(path.name, "uint16", (1, 1))

kinds = {
    ".csv": [lambda path: read_rows(path, ["id"]), lambda path: import_tables(path, path.parent / "out")],
    ".json": [lambda path: read_json(path, "a test")],
    ".npy": [array],
}
found = {}
for path in map(Path, sys.argv[1:]):
    for read in kinds.get(path.suffix, [read_image, image_size]):
        before = peak()
        try:
            read(path)
            said = None
        except InputError as error:
            said = str(error)
        found.setdefault(path.name, []).append([said, peak() - before])
print(json.dumps(found))
"""


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def write_absurd(folder: Path) -> list[Path]:
    files = {}
    head = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 16, 6, 0, 0, 0)
    files["wide.png"] = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10)))
    bomb = zlib.compress(bytes(12_000 * 12_001), 9)  # 144 million pixels, allowed by their number, of three colours
    files["torn.png"] = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    files["torn.png"] += chunk(b"IDAT", bomb)
    tags = [(256, 4, 1, 65535), (257, 4, 1, 65535), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
            (273, 4, 2**31 - 1, 8), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 2**31 - 1, 8)]  # fmt: skip
    files["strips.tif"] = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
    files["strips.tif"] += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    files["deep.json"] = b'{"a":' * 100_000
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<u2", "fortran_order": False, "shape": (2**40, 640, 512)})
    files["absurd.npy"] = array.getvalue() + bytes(64)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    write_dicom(folder / "huge.dcm", np.zeros((2, 2), np.uint16), Rows=65535, Columns=65535, PixelData=bytes(10))
    with (folder / "line.csv").open("wb") as file:
        file.write(b"study_id,image")
        file.truncate(200_000_000)  # a single line, and no disk: the rest of it is a hole
    return [folder / name for name in (*files, "huge.dcm", "line.csv")]


def test_absurd_sizes_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    paths = write_absurd(tmp_path)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", READ, *map(str, paths)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    found = json.loads(answer.stdout)
    assert set(found) == {path.name for path in paths}
    for name, answers in found.items():
        for said, grown in answers:
            assert said is not None, name
            assert len(said.splitlines()) == 1
            assert grown < MOST_GROWTH, (name, grown)


def test_a_table_that_claims_more_rows_than_its_bytes_hold(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1.0] * 1000}).write_parquet(tmp_path / "x.parquet")
    check_row_count(tmp_path / "x.parquet", 1000)
    with pytest.raises(InputError, match="claims 1,099,511,627,776 rows; expected at most"):
        check_row_count(tmp_path / "x.parquet", 2**40)
