"""Every speed benchmark, one after the other, into one page and one file of figures.

    python benchmarks/suite.py [NAME...] [--out DIR] [--page docs/performance.md]

Each benchmark runs in a process of its own and is described in its own file. The tables are printed as they come;
``DIR/performance.md`` and ``DIR/performance.json`` hold them all. With ``--page`` the same tables are also put into a
page, between its lines ``<!-- figures -->`` and ``<!-- end of figures -->``, and the JSON beside it. Close everything
else: two threads that share a core with other work are many times slower.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BENCHMARKS = {
    "rendering": "Attention maps",
    "studies": "Studies prepared and loaded",
    "import_gaze_table": "The gaze table of EGD-CXR",
    "training": "Training",
    "inference": "Inference",
    "redundancy": "Kernel redundancy",
    "measures": "Measures and intervals",
    "serving": "The server",
    "growth": "Growth",
    "whole_data_set": "All of MIMIC-CXR",
}
START, END = "<!-- figures -->", "<!-- end of figures -->"


def run(name: str) -> tuple[str, dict[str, Any]]:
    """What a benchmark printed below its first paragraph, in Markdown, and its figures."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(file)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        figures: dict[str, Any] = json.loads(file.read_text())
    return printed.split("\n\n", 1)[1].strip(), figures


def section(name: str, table: str, figures: dict[str, Any]) -> str:
    said = f"`python benchmarks/{name}.py`: {figures['machine']}; {figures['limits']}."
    return f"## {BENCHMARKS[name]}\n\n{said}\n\n{table}\n"


def put_into(page: Path, text: str) -> None:
    before, _, rest = page.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} lacks the lines {START} and {END}; add them where the tables belong.")
    page.write_text(f"{before}{START}\n\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help=f"some of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR")
    parser.add_argument("--page", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if unknown := set(arguments.name) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; expected some of {', '.join(BENCHMARKS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures_file = arguments.out / "performance.json"
    # what was measured before is kept, so that one benchmark can be repeated alone
    kept: dict[str, Any] = json.loads(figures_file.read_text()) if figures_file.exists() else {}
    for name in arguments.name or BENCHMARKS:
        table, figures = run(name)
        print(section(name, table, figures), flush=True)
        kept[name] = {"table": table, **figures}
        figures_file.write_text(json.dumps(kept, indent=1) + "\n")
    text = "\n".join(section(name, kept[name]["table"], kept[name]) for name in BENCHMARKS if name in kept)
    (arguments.out / "performance.md").write_text(text)
    if arguments.page:
        put_into(arguments.page, text)
        arguments.page.with_suffix(".json").write_text(figures_file.read_text())


if __name__ == "__main__":
    main()
