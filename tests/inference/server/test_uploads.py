"""Forms with a header that no HTTP server lets through, for whoever puts the application behind another one."""

from __future__ import annotations

from typing import Any

import pytest

from fuzz.uploads import BOUNDARY, Request, Unhurried, result
from radgaze.inference.server.refusal import Refusal
from radgaze.inference.server.uploads import read_files


@pytest.mark.parametrize(
    ("length", "status"), [("many", 400), ("-1", 400), ("1" * 5000, 400), ("\u0663", 400), ("1000", 413)]
)
def test_a_content_length_that_is_none(length: str, status: int) -> None:
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}", "content-length": length}
    request: Any = Request(headers, [b""])
    with pytest.raises(Refusal) as refusal:
        result(read_files(request, "image", Unhurried(), max_files=1, max_bytes=600))
    assert refusal.value.status == status
