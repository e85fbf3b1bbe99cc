"""Commands on a disk that is full or read-only: each says so in one sentence, and goes on once there is space.

Every command gets a small file system of its own in memory, of several sizes, so that it is full at another moment each
time. Mounting needs root, and a mount name space of its own keeps the mounts from everybody else.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _commands import COMMANDS, OUT, Command, Inputs, contents
from kills import Attempt, Reference, difference, load_modules, make_reference

NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
ENOUGH = 256 << 20  # bytes
SHARES = (0.03, 0.2, 0.4, 0.6, 0.8, 0.95)  # of what a command writes


@dataclass(frozen=True)
class Outcome:
    """What a command did on a disk.

    Attributes:
        command, disk: which command, and whether the disk was ``"full"`` or ``"read-only"``.
        told: it ended with exit code 1 or 2 and one sentence.
        unharmed: what it left can be read, and nothing is half-written.
        recovered: with space, the same command made what it makes undisturbed.
        problem: what went wrong, empty if nothing did.
    """

    command: str
    disk: str
    told: bool
    unharmed: bool
    recovered: bool
    problem: str = ""


def can_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0


def run(names: Sequence[str], work: Path) -> list[Outcome]:
    """Each command on disks of several sizes, and on one that is read-only.

    Raises:
        SystemExit: nothing can be mounted here.
    """
    if not can_mount():
        raise SystemExit("Full disks need root and mount name spaces; run as root, or leave them out with --no-disks.")
    inputs = Inputs(work / "inputs")
    inputs.make()
    load_modules()
    with multiprocessing.get_context("fork").Pool(1, initializer=own_mounts) as pool:
        return [outcome for name in names for outcome in pool.apply(try_disks, (COMMANDS[name], inputs, work))]


def own_mounts() -> None:
    """From here on, what this process mounts is seen by it and its children alone, and gone with them."""
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "no mount name space")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def try_disks(command: Command, inputs: Inputs, work: Path) -> list[Outcome]:
    own = work / "disks"
    reference = make_reference(command, inputs, own)
    written = sum(file.stat().st_size for file in (own / f"{command.name}-reference").rglob("*") if file.is_file())
    outcomes = []
    for place, share in enumerate(SHARES):
        folder = own / f"{command.name}-{place}"
        outcome = try_disk(command, inputs, folder, reference, "full", ["-o", f"size={int(share * written)}"])
        if outcome is not None:
            outcomes.append(outcome)
    read_only = try_disk(command, inputs, own / f"{command.name}-ro", reference, "read-only", ["-o", "ro"])
    assert read_only is not None
    return [*outcomes, read_only]


def try_disk(
    command: Command, inputs: Inputs, folder: Path, reference: Reference, disk: str, options: Sequence[str]
) -> Outcome | None:
    """One command on one disk; None where it fitted."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", *options, "torture", str(folder)], check=True)
    arguments = list(map(str, command.arguments(inputs)))
    first = Attempt(arguments, folder)
    first.watch()
    if first.exit_code == 0:
        return None
    told, printed = one_sentence(first), first.printed()  # into a file that the second attempt writes anew
    unharmed = is_whole(folder)
    subprocess.run(["mount", "-o", f"remount,rw,size={ENOUGH}", str(folder)], check=True)
    started = (folder / OUT).exists()
    second = Attempt([*arguments, *(command.again if started else ())], folder)
    second.watch()
    differing = difference(contents(folder), reference.made)
    problems = [
        *([] if told else [f"ended with {first.exit_code}: {printed}"]),
        *([] if unharmed else ["left something half-written"]),
        *([f"with space, ended with {second.exit_code}: {second.told()}"] if second.exit_code else []),
        *(f"with space, {name} differs" for name in differing),
    ]
    subprocess.run(["umount", str(folder)], check=True)
    return Outcome(command.name, disk, told, unharmed, not differing and not second.exit_code, "; ".join(problems))


def one_sentence(attempt: Attempt) -> bool:
    """Whether the command ended on purpose and said one thing: of itself, or of one of the runs it compares."""
    lines = attempt.printed().splitlines()
    errors = [line for line in lines if line.startswith(("error: ", "failed: "))]
    return attempt.exit_code in (1, 2) and len(errors) == 1 and "Traceback" not in attempt.printed()


def is_whole(folder: Path) -> bool:
    """Whether everything can be read that has its name, and nothing half-written is left beside it."""
    left = [file for file in folder.rglob(".*.partial") if file.is_file()]
    try:
        contents(folder)
    except (OSError, ValueError):
        return False
    return not left
