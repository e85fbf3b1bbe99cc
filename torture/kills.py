"""Commands killed at random moments: each goes on, and ends with what an undisturbed run makes.

A chain is one command in a folder of its own: started, killed with SIGKILL and all its processes, started again and
killed again, and at last left alone. Then everything it made is compared with the reference.

Half of the kills fall at a moment drawn evenly over the time the command takes, the other half right after a file below
its folder appeared or changed, which is where something can be half-written. Each start is a fork of this process,
which has the modules loaded: so the kills fall into the work, not into the seconds that Python needs to import torch.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _commands import COMMANDS, Command, Inputs, contents, environment, left_over

LONGEST_CHAIN = 8  # kills before a command is left alone
POLL = 0.002  # seconds
STUCK = 900.0  # seconds after which a command that nobody kills has hung


@dataclass
class Chain:
    """What became of one command that was killed again and again."""

    command: str
    kills: Counter[str] = field(default_factory=Counter)  # by where they fell
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: what it made, how long it took, and how often its folder changed."""

    made: dict[str, str]
    seconds: float
    changes: int


def load_modules() -> None:
    """Everything the commands import, so that the forks need not."""
    import radgaze.cli
    import radgaze.cohort.sources.egd_cxr
    import radgaze.comparison
    import radgaze.inference
    import radgaze.simplification
    import radgaze.training  # noqa: F401


def start(arguments: list[str], folder: Path) -> int:
    """Fork a process that runs the command in ``folder``, in a group of its own; its number."""
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.update(environment())
        sys.argv = ["radgaze", *arguments]
        from radgaze import cli

        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below ``folder`` with its size and the moment it was last written."""
    found = {}
    for place, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(place, name)
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


class Attempt:
    """One start of a command, watched until it ends or is killed."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.folder, self.before = folder, state_of(folder)
        self.changes, self.exit_code = 0, 0
        self.number, self.started = start(arguments, folder), time.monotonic()

    def watch(self, *, seconds: float = STUCK, changes: int | None = None, delay: float = 0.0) -> str | None:
        """Wait until the command ends by itself (None), or kill it after so many seconds or changes: where it was."""
        seen = self.before
        while True:
            ended, status = os.waitpid(self.number, os.WNOHANG)
            if ended:
                self.exit_code = os.waitstatus_to_exitcode(status)
                return None
            now = state_of(self.folder)
            if now != seen:
                self.changes, seen = self.changes + 1, now
            if time.monotonic() - self.started >= seconds or (changes is not None and self.changes >= changes):
                time.sleep(delay)
                return self.kill()
            time.sleep(POLL)

    def kill(self) -> str:
        os.killpg(self.number, signal.SIGKILL)
        os.waitpid(self.number, 0)
        return "before" if state_of(self.folder) == self.before else "during"

    def printed(self) -> str:
        return self.folder.with_suffix(".log").read_text(errors="replace").strip()

    def told(self) -> str:
        """The last line it printed."""
        return self.printed().rpartition("\n")[2] or "(nothing)"


def make_reference(command: Command, inputs: Inputs, work: Path) -> Reference:
    """What the command makes undisturbed.

    Raises:
        SystemExit: it failed.
    """
    folder = work / f"{command.name}-reference"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier time
    folder.mkdir(parents=True)
    attempt = Attempt(list(map(str, command.arguments(inputs))), folder)
    attempt.watch()
    if attempt.exit_code:
        raise SystemExit(f"{command.name} ended with {attempt.exit_code}: {attempt.told()}")
    return Reference(contents(folder), time.monotonic() - attempt.started, attempt.changes)


def difference(made: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Files that are missing, too many, or not the same."""
    return sorted(name for name in made.keys() | expected.keys() if made.get(name) != expected.get(name))


def run_chain(command: Command, inputs: Inputs, folder: Path, reference: Reference, seed: str, most: int) -> Chain:
    """Kill a command up to ``most`` times, leave it alone, and compare."""
    chance, chain, began = random.Random(f"{command.name} {seed}"), Chain(command.name), time.monotonic()
    folder.mkdir(parents=True)
    arguments = list(map(str, command.arguments(inputs)))
    ended = False
    while not ended and chain.kills.total() < most:
        attempt = Attempt(arguments, folder)
        if chance.random() < 0.5:
            where = attempt.watch(seconds=chance.uniform(0, reference.seconds))
        else:
            # a command that goes on has less left to write, so the earlier changes are the likelier
            changes = 1 + int(reference.changes * chance.random() ** 2)
            where = attempt.watch(changes=changes, delay=chance.choice((0, 0, 0.001, 0.005)))
        if where is not None:
            chain.kills["after" if (folder / command.last).exists() else where] += 1
        ended = where is None
        if ended and attempt.exit_code and not is_told_done(command, folder, attempt):
            chain.problems.append(f"ended with {attempt.exit_code}: {attempt.told()}")
        arguments = resumed(command, inputs, folder)
    if not ended:
        last = Attempt(arguments, folder)
        if last.watch() is not None:
            chain.problems.append(f"did not end within {STUCK:.0f} s")
        elif last.exit_code and not is_told_done(command, folder, last):
            chain.problems.append(f"ended with {last.exit_code}: {last.told()}")
    chain.problems += [f"{name} differs" for name in difference(contents(folder), reference.made)]
    chain.problems += [f"{name} is left over" for name in left_over(folder)]
    chain.seconds = time.monotonic() - began
    if not chain.problems:
        shutil.rmtree(folder)
        folder.with_suffix(".log").unlink()
    return chain


def resumed(command: Command, inputs: Inputs, folder: Path) -> list[str]:
    return [*map(str, command.arguments(inputs)), *command.again]


def is_told_done(command: Command, folder: Path, attempt: Attempt) -> bool:
    """An import that was killed after its cohort had got its name has nothing left to do, and says so."""
    return command.name == "import" and (folder / command.last).exists() and "exists already" in attempt.told()


@dataclass(frozen=True)
class Torture:
    """What each of several processes does: chains of the commands in turn, until it has its kills or the time is up."""

    inputs: Inputs
    references: dict[str, Reference]
    work: Path
    kills: int
    seed: int
    until: float

    def __call__(self, worker: int) -> list[Chain]:
        chains: list[Chain] = []
        names = list(self.references)
        first = worker % len(names)  # each begins with another
        spent = dict.fromkeys([*names[first:], *names[:first]], 0.0)
        while (left := self.kills - sum(chain.kills.total() for chain in chains)) > 0:
            if time.monotonic() > self.until:
                break
            name = min(spent, key=spent.__getitem__)  # each command gets the same time
            number = f"{worker}-{len(chains):03d}"
            seed, most = f"{self.seed} {number}", min(left, LONGEST_CHAIN)
            folder, reference = self.work / f"{name}-{number}", self.references[name]
            chain = run_chain(COMMANDS[name], self.inputs, folder, reference, seed, most)
            spent[name] += chain.seconds
            chains.append(chain)
            told = ", ".join(chain.problems) or "equal"
            print(f"{name} {number}: {chain.kills.total()} kills in {chain.seconds:.0f} s, {told}", flush=True)
        return chains


def run(names: Sequence[str], kills: int, seed: int, seconds: float, work: Path, jobs: int) -> dict[str, Any]:
    """Kill the commands ``kills`` times in all, or as often as the time allows, ``jobs`` of them at a time.

    Returns:
        For each command: ``chains``, ``equal`` (of these), ``kills`` by where they fell, ``seconds`` of an undisturbed
        run, and ``problems``.
    """
    until = time.monotonic() + seconds
    inputs = Inputs(work / "inputs")
    inputs.make()
    load_modules()
    references = {name: make_reference(COMMANDS[name], inputs, work) for name in names}
    torture = Torture(inputs, references, work, math.ceil(kills / jobs), seed, until)
    # forked while this process has one thread of its own
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        chains = [chain for done in pool.map(torture, range(jobs), chunksize=1) for chain in done]
    return {name: summary([chain for chain in chains if chain.command == name], references[name]) for name in names}


def summary(chains: Sequence[Chain], reference: Reference) -> dict[str, Any]:
    return {
        "chains": len(chains),
        "equal": sum(not chain.problems for chain in chains),
        "kills": dict(sum((chain.kills for chain in chains), Counter())),
        "seconds": reference.seconds,
        "problems": [f"{chain.command}: {problem}" for chain in chains for problem in chain.problems],
    }
