"""Coverage-guided runs of the harnesses by atheris, one after the other: ``python -m fuzz --help``.

Each harness has a process of its own, whose corpus is kept and grows from run to run. An input breaks the contract if
its reader raises anything but a refusal, takes more than ``MOST_SECONDS`` of processor time, or makes the process
larger by more than ``MOST_GROWTH`` bytes. Such an input is saved in the folder of the run; the command then exits 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODULES = {
    "picture": "pictures",
    "mask": "pictures",
    "dicom": "dicom",
    "tables": "tables",
    "table-bytes": "tables",
    "sheet-bytes": "sheets",
    "egd-cxr": "sheets",
    "reflacx": "sheets",
    "cohort": "cohorts",
    "gaze": "gaze",
    "config": "runs",
    "json": "runs",
    "run": "runs",
    "network": "runs",
    "weights": "runs",
    "card": "exports",
    "program": "exports",
    "uploads": "uploads",
}
# Whose branches guide the fuzzer, beside radgaze's own
INSTRUMENTED = {"picture": ["PIL"], "mask": ["PIL"], "dicom": ["pydicom"]}

MOST_SECONDS = 5.0
MOST_GROWTH = 256 << 20
HANG_SECONDS = 120  # of the clock: a machine may be busy with other work
LONGEST = 4096  # bytes of an input; it is a row of choices, not the file itself


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="HARNESS", help=f"of {', '.join(MODULES)}; all by default")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each harness (%(default)s)")
    parser.add_argument("--seconds", type=int, default=600, help="after which a harness ends anyway (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir(), "radgaze-fuzz"))
    parser.add_argument("--harness", help=argparse.SUPPRESS)  # the process of one harness
    options, rest = parser.parse_known_args()
    if options.harness:
        fuzz(options.harness, options.out, rest)
        return
    unknown = [name for name in options.names if name not in MODULES]
    if unknown or rest:
        parser.error(f"there is no harness {(unknown + rest)[0]!r}; choose of {', '.join(MODULES)}")
    print(f"{'harness':12} {'inputs':>9} {'per s':>7} {'edges':>7} {'peak MB':>8} {'slowest s':>9}  found")
    found = [run(name, options.runs, options.seconds, options.out) for name in options.names or MODULES]
    sys.exit(any(found))


def run(name: str, runs: int, seconds: int, out: Path) -> bool:
    """One harness in its own process, and its line of the table. Whether it found something."""
    folder = out / name
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fuzz", "--harness", name, "--out", str(folder), f"-runs={runs}",
               f"-max_total_time={seconds}", f"-timeout={HANG_SECONDS}", "-rss_limit_mb=4096", f"-max_len={LONGEST}",
               "-print_final_stats=1", f"-artifact_prefix={folder}/"]  # fmt: skip
    started = time.monotonic()
    threads = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    with (folder / "log.txt").open("wb") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=os.environ | threads).returncode
    said = (folder / "log.txt").read_text(errors="replace")
    watched = json.loads((folder / "watched.json").read_text()) if (folder / "watched.json").exists() else {}
    stats: dict[str, Any] = {
        "inputs": last(r"^(?:stat::number_of_executed_units:\s*|#)(\d+)", said),
        "edges": last(r"cov: (\d+)", said),
        "peak_mb": last(r"stat::peak_rss_mb:\s*(\d+)", said) or watched.get("peak_mb", 0),
        "slowest_s": watched.get("slowest_s", 0.0),
        "seconds": round(time.monotonic() - started, 1),
        "found": code != 0,
    }
    (folder / "result.json").write_text(json.dumps(stats, indent=2) + "\n")
    rate = stats["inputs"] / stats["seconds"]
    line = f"{name:12} {stats['inputs']:9,} {rate:7.0f} {stats['edges']:7,} {stats['peak_mb']:8,}"
    print(f"{line} {stats['slowest_s']:9.2f}  {folder / 'log.txt' if code else '-'}", flush=True)
    return code != 0


def last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text, re.MULTILINE)
    return int(found[-1]) if found else 0


def fuzz(name: str, folder: Path, arguments: list[str]) -> None:
    """Fuzz one harness in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["radgaze", *INSTRUMENTED.get(name, [])]):
        harness = importlib.import_module(f"fuzz.{MODULES[name]}").HARNESSES[name]
    for number, seed in enumerate(harness.seeds()):
        (folder / "corpus" / f"seed-{number}").write_bytes(seed)
        harness.check(seed)  # what is loaded once, on first use, is no growth by an input
    slowest, count = 0.0, 0

    def check(data: bytes) -> None:
        nonlocal slowest, count
        before, started = peak(), time.process_time()
        harness.check(data)
        took, grown = time.process_time() - started, peak() - before
        count += 1
        if took > slowest or count % 1000 == 0:
            slowest = max(slowest, took)
            (folder / "watched.json").write_text(json.dumps({"slowest_s": slowest, "peak_mb": peak() >> 20}))
        assert took < MOST_SECONDS, f"an input took {took:.1f} s"
        assert grown < MOST_GROWTH, f"an input took {grown >> 20} MB"

    atheris.Setup([sys.argv[0], *arguments, str(folder / "corpus")], check)
    atheris.Fuzz()


def peak() -> int:
    """Bytes that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    main()
