"""Rows of EGD-CXR's gaze files with invented values."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

HEADER = [
    "SESSION_ID",
    "MEDIA_ID",
    "DICOM_ID",
    "CNT",
    "Time (in secs)",
    "TIMETICK(f=10000000)",
    "FPOGX",
    "FPOGY",
    "FPOGS",
    "FPOGD",
    "FPOGID",
    "FPOGV",
    "BPOGX",
    "BPOGY",
    "BPOGV",
    "LPCX",
    "LPCY",
    "LPD",
    "LPS",
    "LPV",
    "RPCX",
    "RPCY",
    "RPD",
    "RPS",
    "RPV",
    "BKID",
    "BKDUR",
    "BKPMIN",
    "LPMM",
    "LPMMV",
    "RPMM",
    "RPMMV",
    "SACCADE_MAG",
    "SACCADE_DIR",
    "VID_FRAME",
    "X_ORIGINAL",
    "Y_ORIGINAL",
]
A, B, C = (f"{digit * 8}-" * 4 + digit * 8 for digit in "abc")
CALIBRATION = "calibration-screen-0000000000000000-001"


def write_rows(path: Path, rows: list[dict[str, Any]], header: list[str] = HEADER) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header, restval=0, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def gaze_row(image: str, t: float, x: Any, y: Any, **others: Any) -> dict[str, Any]:
    place = {"X_ORIGINAL": x, "Y_ORIGINAL": y}
    return {"DICOM_ID": image, "Time (in secs)": t, "FPOGV": 1, "BKID": 0} | place | others
