"""One run of a comparison, in a process of its own: ``python -m radgaze.comparison.worker JOB.json``.

Trains (or finishes) the run, then measures it. Ends with the process that started it, however that ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from radgaze.errors import RadgazeError
from radgaze.files import read_json

__all__ = ["main", "work"]


def work(job: dict[str, Any]) -> None:
    """Train unless ``job["settings"]`` is None, then write the report into ``job["report"]``."""
    from radgaze.inference import evaluate
    from radgaze.training import fit
    from radgaze.training.processes import is_first_process

    if job["settings"] is not None:
        fit(job["cohort"], job["run"], job["method"], resume=True, progress=False, **job["settings"])
    if is_first_process():
        evaluate(
            job["run"],
            job["cohort"],
            split=job["split"],
            out=job["report"],
            resamples=job["resamples"],
            progress=False,
        )


def end_with_parent() -> None:
    """The parent holds the other end of our standard input; the system closes it even when the parent is killed."""

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin: a thread waiting in its lock would break the interpreter's exit
        os.killpg(os.getpgrp(), signal.SIGKILL)  # the group: also processes that a training has started itself

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    end_with_parent()
    try:
        work(read_json(Path(sys.argv[1]), "a job"))
    except (RadgazeError, OSError) as error:
        print(error, file=sys.stderr)  # the last line of the log is what the comparison says of a failed run
        sys.exit(1)


if __name__ == "__main__":
    main()
