"""Independent pieces of work on a Ray cluster: what a node takes with it when it dies is done again on another one.

A piece is a call of a function of this package with plain data. It may run twice, on a node that died and on one that
lived, so it writes files whole or writes the same bytes again. What has been done is written down by the process that
asked for it, once for each piece. All nodes see the same files under the same paths: a piece says so if its node does
not, rather than taking for missing what is only elsewhere.

Ray is started, asked and stopped here and nowhere else. It packs arguments and results by its own protocol on the way
between its processes; nothing of that is kept.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import radgaze
from radgaze.errors import InputError, RadgazeError, nearest
from radgaze.files import make_folder

__all__ = ["ENGINES", "Cluster", "Node", "check_engine", "cluster_for", "import_environment", "open_cluster"]

ENGINES = ("local", "ray")

RETRIES = 3  # of a piece whose worker died: one that ends every worker it meets must not take the cluster with it
AHEAD = 2  # pieces asked for, for each that can run: a node that is done has its next one at hand
POLL = 0.2  # seconds
PATIENCE = 10.0  # seconds until an address is given up

Piece = Mapping[str, Any]


def check_engine(engine: str, address: str | None) -> None:
    """Refuse an engine that there is not, and an address without Ray.

    Raises:
        InputError: Either.
    """
    if engine not in ENGINES:
        raise InputError(f"engine is {engine!r}; {nearest(engine, ENGINES)}.")
    if address is not None and engine != "ray":
        raise InputError(f"--address {address!r} is of a Ray cluster; add --engine ray, or leave the address away.")


def cluster_for(engine: str, address: str | None, folder: Path) -> AbstractContextManager[Cluster | None]:
    """The cluster that work for ``folder`` is spread over: None for ``"local"``; see :func:`open_cluster`."""
    check_engine(engine, address)
    return open_cluster(address, folder) if engine == "ray" else nullcontext()


@dataclass(frozen=True)
class Node:
    """What a living node of the cluster offers."""

    cpus: int
    gpus: int


class Cluster:
    """A connection to Ray; use :func:`cluster_for`."""

    def __init__(self, ray: Any, token: Path) -> None:
        self.ray, self.token = ray, token

    @property
    def nodes(self) -> list[Node]:
        offers = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return [Node(int(offer.get("CPU", 0)), int(offer.get("GPU", 0))) for offer in offers]

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    def slots(self, cpus: int = 1, gpus: int = 0) -> int:
        """How many pieces that need so much can run at once."""
        return sum(min(node.cpus // cpus, node.gpus // gpus if gpus else node.cpus) for node in self.nodes)

    def map(
        self,
        function: Callable[..., Any],
        pieces: Iterable[Piece],
        *,
        files: Callable[[Piece], Iterable[str | Path]] = lambda piece: (),
        cpus: int = 1,
        gpus: int = 0,
        at_once: int | None = None,
        in_order: bool = False,
        watch: Callable[[Sequence[int]], None] = lambda positions: None,
    ) -> Iterator[tuple[int, Any]]:
        """``function(**piece)`` for each piece, somewhere on the cluster.

        Args:
            function: Of a module of this package. What it raises ends the work; what ends its process does not.
            pieces: Its arguments. They are taken as there is room for them.
            files: What a piece reads. A file that is here and that a node does not see ends the work.
            cpus, gpus: What one piece needs; it computes with so many threads.
            at_once: Pieces that are asked for at a time; by default somewhat more than can run.
            in_order: Give the results in the order of the pieces, and run no further ahead than ``at_once``.
            watch: Called again and again with the positions of the pieces that were asked for and have not ended.

        Yields:
            The position of a piece and its result, as they come.

        Raises:
            InputError: A node that does not see the same files, or has another radgaze.
            RadgazeError: Nothing of the cluster is left, or a piece has ended ``RETRIES`` workers.
        """
        task = self.ray.remote(_work).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=RETRIES,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": import_environment() | {"OMP_NUM_THREADS": str(cpus)}},
        )
        coming = enumerate(pieces)
        running: dict[Any, int] = {}
        try:
            while True:
                slots = self.slots(cpus, gpus)
                if not slots:
                    raise RadgazeError(
                        f"No node of the Ray cluster has {cpus} CPUs and {gpus} GPUs to work with; start nodes that "
                        "have, and give the same command again."
                    )
                for position, piece in islice(coming, max(0, (at_once or AHEAD * slots) - len(running))):
                    seen = [str(self.token), *(str(file) for file in files(piece) if os.path.exists(file))]
                    running[task.remote(function, dict(piece), seen, os.getcwd(), radgaze.__version__)] = position
                if not running:
                    return
                watch(list(running.values()))
                # in short waits: with Polars loaded, Ctrl-C does not interrupt a long one
                awaited = [next(iter(running))] if in_order else list(running)
                for done in self.ray.wait(awaited, timeout=POLL)[0]:
                    yield running.pop(done), self._result(done)
        finally:
            if self.ray.is_initialized():  # else Ray would start anew to be told
                for left in running:
                    self.ray.cancel(left, force=True)

    def _result(self, reference: Any) -> Any:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            cause, said = error.cause, str(error.cause).strip()
            missing = isinstance(cause, ImportError | self.ray.exceptions.RayError)
            if missing or "failed to import on the worker" in said:
                raise InputError(
                    f"A node of the Ray cluster lacks what the work needs ({said.splitlines()[-1][:300]}); install the "
                    "same radgaze, with its dependencies, on all."
                ) from error
            raise cause from error  # the function's own
        except self.ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())
            raise RadgazeError(
                f"A piece of the work was lost {RETRIES + 1} times on the Ray cluster and is given up "
                f"({type(error).__name__}: {reason[:300]}); mend that, and give the same command again."
            ) from error


def import_environment() -> dict[str, str]:
    """What makes another Python process import this very package."""
    paths = [str(Path(radgaze.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _work(function: Callable[..., Any], piece: dict[str, Any], seen: list[str], folder: str, version: str) -> Any:
    """On a node: do a piece where the one who asked for it stands, and see what it sees."""
    where = f"The node {socket.gethostname()} of the Ray cluster"
    if radgaze.__version__ != version:
        raise InputError(f"{where} has radgaze {radgaze.__version__}, expected {version}; install the same on all.")
    with suppress(OSError):
        os.chdir(folder)  # for relative paths; where it is not shared, those are missed below
    for path in seen:
        if not os.path.exists(path):
            raise InputError(
                f"{where} does not see {path!r}; put what is read and written into a folder that all nodes have under "
                "one path."
            )
    return function(**piece)


# ---- the connection


@contextmanager
def open_cluster(address: str | None, folder: Path) -> Iterator[Cluster]:
    """A connection to Ray, as long as the block.

    Args:
        address: Of the cluster, ``HOST:PORT``. Else what ``RAY_ADDRESS`` says, else a Ray on this machine alone, which
            is started and ended with the block. A process that is connected to Ray already stays so.
        folder: Is written to, and shared by all nodes.

    Raises:
        InputError: No Ray at that address, or it is not installed.
    """
    try:
        ray = import_module("ray")
    except ImportError as error:
        raise InputError(
            f"--engine ray needs the package ray, which is not there ({error}); install it with "
            'pip install "radgaze[ray]".'
        ) from error
    if ray.is_initialized():
        connected = ray.get_runtime_context().gcs_address
        if address not in (None, connected):
            raise InputError(
                f"This process is connected to the Ray cluster at {connected!r} and not to {address!r}; leave the "
                "address away."
            )
        with _token(folder) as token:
            yield Cluster(ray, token)
        return
    with _quiet(), _old_handler(signal.SIGTERM):
        _connect(ray, address or os.environ.get("RAY_ADDRESS") or "local")
        try:
            with _token(folder) as token:
                yield Cluster(ray, token)
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    if "://" not in address and ":" in address:
        _check_answers(address)  # Ray itself would go on trying for minutes
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ImportError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"No Ray cluster can be used at {address!r} ({reason[:300]}); check the address, or start one with: "
            "ray start --head."
        ) from error


def _check_answers(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"No Ray cluster answers at {address!r} ({error}); check the address, HOST:PORT, or start one with: "
            "ray start --head."
        ) from error


@contextmanager
def _token(folder: Path) -> Iterator[Path]:
    """A file by which a node knows that it sees this very folder."""
    make_folder(folder)
    for old in folder.glob(".ray-*.partial"):
        old.unlink(missing_ok=True)  # of a call that was killed
    token = Path(os.path.abspath(folder)) / f".ray-{uuid4().hex}.partial"
    token.touch()
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray tells of a lost node on standard output, which is for results, whatever it is told about its logs."""
    worker: Any = import_module("ray._private.worker")
    told = getattr(worker, "print_to_stdstream", None)
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = told


@contextmanager
def _old_handler(number: int) -> Iterator[None]:
    """Ray answers a signal its own way; afterwards it is answered as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Callable[[int, FrameType | None], Any] | int | None = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, before)
