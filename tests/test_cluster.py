"""Work on a real Ray cluster of two nodes, one of which is killed: the same files, nothing lost, nothing done twice."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import radgaze
from radgaze import cli, cluster
from radgaze.cluster import Cluster, Node, cluster_for
from radgaze.cohort import Cohort
from radgaze.cohort.sources.engine import write_cohort
from radgaze.comparison.jobs import threads_of
from radgaze.errors import InputError, RadgazeError
from radgaze.inference.folder import _batches, _put_in_order, predict, split_engine
from radgaze.inference.sources import Source
from radgaze.training import Run, fit
from tests import pieces
from tests.cohort.pictures import make_raws, options, write_image
from tests.cohort.sources.test_engine import files_of, spy_on_reading
from tests.inference.predictors import blob, formula_predictor
from tests.long import LONG

ray = pytest.importorskip("ray", reason='the package ray is not installed; pip install "radgaze[ray]"')
nodes_of_ray = pytest.importorskip("ray.cluster_utils", reason="this Ray cannot start a cluster for tests")

ROOT = Path(__file__).resolve().parents[1]
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_log_monitor": False}


class TwoNodes:
    """A cluster on this machine that has a second node again whenever a test asks for it."""

    def __init__(self) -> None:
        self.cluster = nodes_of_ray.Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        self.second: Any = None

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def complete(self) -> None:
        self.second = self.second or self.cluster.add_node(**NODE)

    def kill_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    @contextmanager
    def killed_when(self, ready: Callable[[], bool]) -> Iterator[None]:
        """The second node is killed as soon as ``ready``, while the block runs; which must not end before."""
        begun = threading.Event()

        def kill() -> None:
            while not ready():
                time.sleep(0.01)
            begun.set()
            self.kill_second()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        yield
        assert begun.is_set(), "the work ended before the node was killed"
        killer.join()


@pytest.fixture(scope="module")
def cluster_of_two() -> Iterator[TwoNodes]:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))  # by which the nodes find tests.pieces
        patch.delenv("RAY_ADDRESS", raising=False)
        two = TwoNodes()
        ray.init(address=two.address, log_to_driver=False, logging_level=logging.ERROR)
        yield two
        ray.shutdown()
        two.cluster.shutdown()
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def two(cluster_of_two: TwoNodes) -> TwoNodes:
    cluster_of_two.complete()
    return cluster_of_two


@pytest.fixture
def opened(two: TwoNodes, tmp_path: Path) -> Iterator[Cluster]:
    with cluster_for("ray", None, tmp_path) as found:
        assert found is not None
        yield found


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- pieces


class TestPieces:
    def test_a_dead_nodes_pieces_are_done_elsewhere_and_no_other_twice(
        self, two: TwoNodes, opened: Cluster, tmp_path: Path
    ) -> None:
        log, second = tmp_path / "log", two.second.node_id
        given = [{"log": str(log), "number": number, "stuck_on": second} for number in range(12)]
        with two.killed_when(lambda: any(line.endswith(second) for line in lines(log))):
            found = list(opened.map(pieces.trace, given))
        assert sorted(found) == [(number, (number, "1")) for number in range(12)]
        begun = [line.split() for line in lines(log)]
        lost = {number for number, node in begun if node == second}
        assert lost, "no piece was in work on the node that was killed"
        times = Counter(number for number, _ in begun)
        assert times == {str(number): 2 if str(number) in lost else 1 for number in range(12)}

    def test_results_come_in_order_where_that_is_asked_for(self, opened: Cluster, tmp_path: Path) -> None:
        waits = [0.5, 0.0, 0.2, 0.0]
        given = [{"log": str(tmp_path / "log"), "number": n, "seconds": wait} for n, wait in enumerate(waits)]
        assert [position for position, _ in opened.map(pieces.trace, given, in_order=True)] == [0, 1, 2, 3]

    def test_an_error_of_a_piece_is_its_own(self, opened: Cluster) -> None:
        with pytest.raises(InputError, match=r"^Number 7 is refused\.$"):
            list(opened.map(pieces.refuse, [{"number": 7}]))

    def test_a_piece_that_ends_every_worker_is_given_up(self, opened: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cluster, "RETRIES", 1)
        with pytest.raises(RadgazeError, match=r"lost 2 times on the Ray cluster and is given up \(WorkerCrashedError"):
            list(opened.map(pieces.die, [{}]))

    def test_relative_paths_mean_the_same_on_a_node(
        self, opened: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "near").write_text("found")
        monkeypatch.chdir(tmp_path)
        assert list(opened.map(pieces.read, [{"relative": "near"}], files=lambda _: ["near"])) == [(0, "found")]

    def test_a_node_that_does_not_see_a_file_says_so(
        self, opened: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        elsewhere, exists = tmp_path / "elsewhere.png", os.path.exists
        monkeypatch.setattr(os.path, "exists", lambda path: path == elsewhere or exists(path))
        with pytest.raises(InputError, match=r"The node .* does not see '.*elsewhere\.png'; put what is read"):
            list(opened.map(pieces.refuse, [{"number": 1}], files=lambda _: [elsewhere]))

    def test_a_folder_that_is_not_shared_is_found_out(self, opened: Cluster) -> None:
        opened.token.unlink()
        with pytest.raises(InputError, match=r"does not see '.*\.ray-.*\.partial'"):
            list(opened.map(pieces.refuse, [{"number": 1}]))

    def test_a_node_without_the_code_is_named(
        self, opened: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "only_here.py").write_text("def work(): pass")
        monkeypatch.syspath_prepend(tmp_path)
        work = import_module("only_here").work
        with pytest.raises(InputError, match=r"lacks what the work needs \(.*No module named 'only_here'\); install"):
            list(opened.map(work, [{}]))

    def test_another_radgaze_is_refused(self, opened: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(radgaze, "__version__", "9.9")
        with pytest.raises(InputError, match=r"has radgaze .*, expected 9\.9; install the same on all"):
            list(opened.map(pieces.refuse, [{"number": 1}]))

    def test_a_cluster_without_what_is_needed(self, opened: Cluster) -> None:
        with pytest.raises(RadgazeError, match="No node of the Ray cluster has 64 CPUs and 0 GPUs"):
            list(opened.map(pieces.refuse, [{"number": 1}], cpus=64))


# ---- import


def gradient(path: Path, side: int, number: int) -> Path:
    """An image that takes a while to be read."""
    pixels = np.add.outer(np.arange(side), np.arange(side) * (number + 1)) // 8
    return write_image(path, pixels.astype(np.uint8))


def test_an_import_that_loses_a_node_is_the_local_one(two: TwoNodes, tmp_path: Path) -> None:
    raws = make_raws(tmp_path, 40)
    for index in range(8, 40):
        raws[index].image, raws[index].masks = gradient(tmp_path / f"{index}.png", 800, index), {}
    (tmp_path / "9.png").write_bytes(b"no picture")
    raws[20].image = tmp_path / "missing.png"
    local = write_cohort(raws, tmp_path / "local", **options())
    journal = tmp_path / "out.partial" / "journal.jsonl"
    with two.killed_when(lambda: bool(lines(journal))):
        spread = write_cohort(raws, tmp_path / "out", **options(engine="ray", workers=None))
    assert files_of(spread.path) == files_of(local.path)
    assert sorted(entry["study_id"] for entry in spread.meta["left_out"]) == ["s20", "s9"]


def test_what_a_killed_import_on_ray_has_read_is_kept(
    two: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [gradient(tmp_path / f"{index}.png", 40 if index < 16 else 4000, index).name for index in range(18)]
    table = tmp_path / "images.csv"
    table.write_text("study_id,image\n" + "".join(f"{name[:-4]},{name}\n" for name in names))
    command = ["radgaze.cli", "import", "tables", str(table), "--out", "out", "--size", "48x32", "--quiet"]
    on_ray = ["--engine", "ray", "--address", two.address, "--workers", "1"]
    environment = os.environ | cluster.import_environment()
    journal = tmp_path / "out.partial" / "journal.jsonl"
    with subprocess.Popen([sys.executable, "-m", *command, *on_ray], cwd=tmp_path, env=environment) as killed:
        while not lines(journal):
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
    kept = [names[json.loads(line)["row"]] for line in lines(journal)]
    assert 0 < len(kept) < 18
    images = spy_on_reading(monkeypatch)
    given: dict[str, Any] = {"size": (48, 32), "workers": 1, "progress": False}
    resumed = radgaze.import_tables(table, tmp_path / "out", **given)
    assert sorted(images) == sorted(str(tmp_path / name) for name in names if name not in kept)
    local = radgaze.import_tables(table, tmp_path / "local", **given)
    assert files_of(resumed.path) == files_of(local.path)


# ---- runs


@pytest.fixture(scope="module")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings: dict[str, Any] = {"model": {"width": 2}, "sigma": 6.0, "precision": "fp32", "epochs": 1}
    return fit(cohort, tmp_path_factory.mktemp("run") / "run", "mt-unet", progress=False, **settings)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve radiographs, and at the end a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(12):
        Image.fromarray(blob(60, 40 + index, seed=index)).save(folder / f"{index:02d}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def predicted(run: Run, images: Path, out: Path, **given: Any) -> dict[str, bytes]:
    summary = predict(run, images, out, maps=True, batch_size=2, progress=False, **given)
    assert (summary["predicted"], summary["failed"]) == (12, 1)
    return tree(out)


@pytest.fixture(scope="module")
def predictions(run: Run, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without Ray."""
    out = tmp_path_factory.mktemp("predictions") / "out"
    predicted(run, images, out)
    return out


@LONG
def test_a_prediction_that_loses_a_node_is_the_local_one(
    two: TwoNodes, run: Run, images: Path, predictions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with two.killed_when(lambda: len(lines(out / "predictions.jsonl")) > 0):
        assert predicted(run, images, out, engine="ray") == tree(predictions)
    names = [json.loads(line)["image"] for line in lines(out / "predictions.jsonl")]
    assert names == [str(path) for path in sorted(images.iterdir())]


@pytest.mark.parametrize("first", [pytest.param(None, marks=LONG), "ray"])
def test_ray_goes_on_where_it_was_stopped_and_so_does_a_call_without(
    two: TwoNodes, run: Run, images: Path, predictions: Path, tmp_path: Path, first: str | None
) -> None:
    out = tmp_path / "out"
    predict(
        run,
        [images / f"{index:02d}.png" for index in range(4)],
        out,
        maps=True,
        batch_size=2,
        progress=False,
        engine=first,
    )
    second = "ray" if first is None else None
    assert predicted(run, images, out, engine=second, resume=True) == tree(predictions)


def test_lines_that_came_in_any_order_are_put_in_that_of_the_images(tmp_path: Path) -> None:
    journal = tmp_path / "predictions.jsonl"
    journal.write_text("".join(json.dumps({"image": name}) + "\n" for name in ("b", "earlier", "c", "a", "another")))
    _put_in_order(journal, [Source(Path(name)) for name in "abc"])
    assert [json.loads(line)["image"] for line in lines(journal)] == ["earlier", "another", "a", "b", "c"]


def test_batches_are_those_of_one_forward_pass() -> None:
    sources = [Source(Path(name), "missing" if name in "bc" else None) for name in "abcdefg"]
    assert ["".join(str(one.path) for one in batch) for batch in _batches(sources, 2)] == ["abcd", "ef", "g"]


@LONG
def test_other_engines_predict_on_ray_too(two: TwoNodes, run: Run, images: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    local = predicted(run, images, tmp_path / "local", engine="onnx")
    assert predicted(run, images, tmp_path / "out", engine="ray:onnx") == local


def test_redundancy_is_the_same_to_the_last_digit(two: TwoNodes, run: Run, tmp_path: Path) -> None:
    reports = {}
    for engine in ("local", "ray"):
        radgaze.measure_redundancy(run, images=5, out=tmp_path / engine, engine=engine, progress=False)
        found = tree(tmp_path / engine)
        created = json.loads(found["redundancy.json"])["created"].encode()
        undated = {name: re.sub(rb"<time.*?</time>", b"", content) for name, content in found.items()}
        reports[engine] = {name: content.replace(created, b"") for name, content in undated.items()}
    assert reports["local"].keys() == {"redundancy.json", "redundancy.html", ".lock"}
    assert reports["local"] == reports["ray"]


@LONG
def test_a_comparison_that_loses_a_node_is_the_local_one(two: TwoNodes, cohort: Cohort, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "seeds": 2,
        "settings": {"model": {"width": 2}, "sigma": 6.0, "precision": "fp32", "epochs": 8},
        "resamples": 50,
        "progress": False,
    }
    local = radgaze.compare(cohort, tmp_path / "local", ["mt-unet"], jobs=2, **given)
    out = tmp_path / "out"

    def both_in_work() -> bool:
        states = [path.read_text() for path in out.glob("runs/*/state.json")]
        return len(states) == 2 and all(json.loads(state)["epoch"] >= 1 for state in states)

    with two.killed_when(both_in_work):
        spread = radgaze.compare(cohort, out, ["mt-unet"], engine="ray", **given)
    assert local["failed"] == spread["failed"] == []
    sittings = []
    for there in sorted((tmp_path / "local" / "runs").iterdir()):
        here = out / "runs" / there.name
        for name in ("config.json", "weights.safetensors", "studies-test.csv"):
            assert (here / name).read_bytes() == (there / name).read_bytes()
        assert len(Run.open(here).history) == 8
        sittings.append(len(list(here.glob("tensorboard/**/events*"))))
    assert sorted(sittings) == [1, 2], "the run on the node that was killed goes on from its last epoch"


# ---- without a cluster


def test_threads_are_shared_out_over_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    eights = [Node(8, 0), Node(8, 0)]
    assert threads_of(eights, 40) == 1
    assert threads_of(eights, 16) == 1
    assert threads_of(eights, 4) == 4
    assert threads_of(eights, 3) == 4  # of 5 threads, a node has room for one run alone
    assert threads_of(eights, 1) == 8
    assert threads_of([Node(8, 0), Node(3, 0)], 3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of(eights, 40) == 3


def test_engines_of_predict() -> None:
    assert split_engine(None) == (False, None)
    assert split_engine("onnx") == (False, "onnx")
    assert split_engine("ray") == (True, None)
    assert split_engine("ray:onnx") == (True, "onnx")


def test_an_address_without_ray(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--address '10\.0\.0\.1:6379' is of a Ray cluster; add --engine ray"):
        write_cohort(make_raws(tmp_path, 2), tmp_path / "out", **options(address="10.0.0.1:6379"))


@pytest.mark.parametrize(
    "command", ["predict {run} {images} --out out", "compare {cohort} --out out", "redundancy {run}"]
)
def test_every_command_refuses_an_address_without_ray(command: str, run: Run, images: Path, cohort: Cohort) -> None:
    words = command.format(run=run.path, images=images, cohort=cohort.path).split()
    with pytest.raises(InputError, match="--address 'a:1' is of a Ray cluster"):
        cli.app([*words, "--address", "a:1"], standalone_mode=False)


def test_an_unknown_engine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"engine is 'rya'; did you mean 'ray'\?"):
        cluster_for("rya", None, tmp_path)


def test_an_address_where_nothing_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(InputError, match=rf"No Ray cluster answers at '{address}'"),
            cluster_for("ray", address, tmp_path),
        ):
            pass
    with (
        pytest.raises(InputError, match="No Ray cluster answers at 'host:port'"),
        cluster_for("ray", "host:port", tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_process_keeps_its_connection(two: TwoNodes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is connected to the Ray cluster at"), cluster_for("ray", "a:1", tmp_path):
        pass
    with cluster_for("ray", two.address, tmp_path):
        pass
    assert ray.is_initialized()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=r'needs the package ray.*pip install "radgaze\[ray\]"'),
        cluster_for("ray", None, tmp_path),
    ):
        pass


def test_a_prediction_on_ray_needs_a_folder_and_a_file_of_the_network(run: Run, images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="predicts into a folder"):
        predict(run, images, engine="ray")
    with pytest.raises(InputError, match="with a network that is in one"):
        predict(formula_predictor(), images, tmp_path / "out", engine="ray")
