"""Faults on purpose, and what becomes of them: kills, full and read-only disks, damaged files.

    python torture/suite.py [--kills N] [--minutes M] [--seed S] [--only NAMES] [--page docs/reliability.md]

``kills.py`` and ``disks.py`` say what is done. The tables are printed; with ``--page`` they are also put into a page,
between its lines ``<!-- figures -->`` and ``<!-- end of figures -->``. The exit code is 1 if anything was not survived.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: threads do not outlive a fork

import disks
import kills
from _commands import COMMANDS, MAY_DIFFER

START, END = "<!-- figures -->", "<!-- end of figures -->"
PLACES = ("before", "during", "after")


def kills_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "| command | undisturbed | kills | before its first write | during | after its last result | chains | equal |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, entry in found.items():
        fell = [entry["kills"].get(place, 0) for place in PLACES]
        cells = [name, f"{entry['seconds']:.1f} s", sum(fell), *fell, entry["chains"], entry["equal"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    counts = [sum(entry["kills"].get(place, 0) for entry in found.values()) for place in PLACES]
    ends = [sum(entry[key] for entry in found.values()) for key in ("chains", "equal")]
    lines.append(f"| all |  | {' | '.join(map(str, [sum(counts), *counts, *ends]))} |")
    return "\n".join(lines)


def disks_table(found: Sequence[disks.Outcome]) -> str:
    lines = ["| command | disk | times | told in one sentence | nothing harmed | done once there was space |"]
    lines.append("|---|---|--:|--:|--:|--:|")
    groups = dict.fromkeys((outcome.command, outcome.disk) for outcome in found)
    for command, disk in groups:
        own = [outcome for outcome in found if (outcome.command, outcome.disk) == (command, disk)]
        counts = [sum(getattr(outcome, key) for outcome in own) for key in ("told", "unharmed", "recovered")]
        lines.append(f"| {command} | {disk} | {len(own)} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def put_into(page: Path, text: str) -> None:
    before, _, rest = page.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} lacks the lines {START} and {END}; add them where the tables belong.")
    page.write_text(f"{before}{START}\n\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="kills in all; 0 for none")
    parser.add_argument("--minutes", type=float, default=60.0, metavar="M", help="no new chain of kills after these")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", default=",".join(COMMANDS), metavar="NAMES", help="commands, by default all")
    parser.add_argument("--disks", action=argparse.BooleanOptionalAction, default=True, help="also full disks (root)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="chains at the same time")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where; the inputs of an earlier time are used again")
    parser.add_argument("--page", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.only.split(",")]
    if unknown := set(names) - set(COMMANDS):
        parser.error(f"there is no command {', '.join(sorted(unknown))}; expected some of {', '.join(COMMANDS)}")
    work = arguments.work.resolve() if arguments.work else Path(tempfile.mkdtemp(prefix="torture-"))
    began, sections, problems = time.monotonic(), [], []
    said = f"{platform.machine()}, {arguments.jobs} at a time, seed {arguments.seed}"
    if arguments.kills:
        found = kills.run(names, arguments.kills, arguments.seed, 60 * arguments.minutes, work, arguments.jobs)
        problems += [problem for entry in found.values() for problem in entry["problems"]]
        not_compared = "; ".join(f"{what} ({why})" for what, why in MAY_DIFFER.items())
        sections.append(f"### Kills\n\n{said}. Not compared: {not_compared}.\n\n{kills_table(found)}\n")
    if arguments.disks:
        outcomes = disks.run(names, work)
        problems += [f"{one.command} on a disk {one.disk}: {one.problem}" for one in outcomes if one.problem]
        sections.append(f"### Full and read-only disks\n\n{disks_table(outcomes)}\n")
    text = "\n".join(sections)
    print(text)
    if arguments.page:
        put_into(arguments.page, text)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes; {len(problems)} problems; {work}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
