"""A run on a Ray cluster of two nodes, simulated on this machine: what is killed costs what was in
its hands, and the output is that of a plain run."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmrag_batch.settings import DEMO_BUNDLE
from tests.faults.commands import Commands
from tests.run.parts import Place, array, call, count, questions, wait_for, whole

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="no Ray here: pip install ray")
pytestmark = pytest.mark.slow
OBJECT_BYTES = 80 * 2**20
QUICK = ("--candidates", "given")
LINES = tuple(questions(200))


class Cluster:
    """Two nodes with a processor each."""

    def __init__(self) -> None:
        one = {"num_cpus": 1, "object_store_memory": OBJECT_BYTES}
        head = one | {"include_dashboard": False}
        self._one = one
        self._cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        self._second = self._cluster.add_node(**one)

    @property
    def options(self) -> tuple[str, ...]:
        """What a command on it is told; the rows have no documents to encode."""
        return ("--ray", self._cluster.address, *QUICK)

    def lose_a_node(self) -> None:
        """As when a machine is taken away."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def add_a_node(self) -> None:
        """In place of the one that was lost."""
        self._second = self._cluster.add_node(**self._one)

    def close(self) -> None:
        """End all of it."""
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    before = signal.getsignal(signal.SIGTERM)
    started = Cluster()
    signal.signal(signal.SIGTERM, before)  # Ray's would outlive it
    yield started
    started.close()


def workers() -> set[int]:
    return processes("ray::Worker")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.write(LINES)
    return made


def processes(word: str) -> set[int]:
    """Those on this machine whose command begins with a word, whatever its folder."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            if Path(name.partition(b"\0")[0].decode()).name.startswith(word):
                found.add(int(entry.name))
    return found


def test_an_output_is_that_of_a_plain_run(cluster: Cluster, place: Place) -> None:
    done = place.predict(*cluster.options)
    assert done.exit_code == 0, done.stderr
    assert place.output.read_bytes() == whole(LINES)
    assert place.asked() == Counter(range(200))
    assert re.search(rf"worker [12] on {os.uname().nodename}: The retriever is ready", done.stderr)
    wait_for(lambda: not workers())


def test_i01_a_worker_that_is_killed_costs_what_it_had(cluster: Cluster, place: Place) -> None:
    done = place.predict(*cluster.options, "--json", kill={30: 1})
    assert done.exit_code == 0, done.stderr
    assert "has died" in done.stderr
    assert json.loads(done.stdout)["rows"]["ok"] == 200  # which Ray has not printed into
    assert place.output.read_bytes() == whole(LINES)
    asked = place.asked()
    assert asked.keys() == set(range(200))
    assert max(asked.values()) <= 2


def test_i01_a_node_that_is_lost_costs_what_it_had(
    cluster: Cluster, place: Place, commands: Commands
) -> None:
    running = place.start(commands, *cluster.options, delay=0.03)
    try:
        wait_for(lambda: count(place.output.with_name("out.csv.store")) >= 20)
        cluster.lose_a_node()
        done = running.wait()
    finally:
        cluster.add_a_node()
    assert done.code == 0, done.output
    assert "has died" in done.output
    assert place.output.read_bytes() == whole(LINES)


def test_i01_a_row_that_kills_its_workers_is_an_error_and_the_others_are_answered(
    cluster: Cluster, place: Place
) -> None:
    done = place.predict(*cluster.options, kill={7: 99})
    assert done.exit_code == 3, done.stderr
    assert "worker_died 1" in done.stderr
    expected, rows = (
        list(csv.reader(text.splitlines()))
        for text in (whole(LINES).decode(), place.output.read_text())
    )
    assert [at for at, pair in enumerate(zip(expected, rows)) if pair[0] != pair[1]] == [8]
    assert len((place.folder / "asked.txt.kills").read_text().split()) == 3


def test_workers_that_die_wherever_they_are_started_end_the_run(
    cluster: Cluster, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrag_batch.execute.ray.MAX_DEATHS_IN_A_ROW", 1)
    done = place.predict(*cluster.options, kill=dict.fromkeys(range(200), 99))
    assert done.exit_code == 69, done.stderr
    assert "Then run the same command again." in done.stderr
    again = place.predict(*cluster.options)
    assert again.exit_code == 0
    assert place.output.read_bytes() == whole(LINES)


def test_an_error_of_a_stage_ends_the_run_as_it_does_here(cluster: Cluster, place: Place) -> None:
    crash = dict.fromkeys(range(200), 99)
    plain = place.predict(crash=crash)
    done = place.predict(*cluster.options, crash=crash)
    assert (plain.exit_code, done.exit_code) == (69, 69)
    said = "The engine died 5 times, 5 of them without an answer in between."
    assert said in plain.stderr
    assert re.search(rf"worker [12] on {os.uname().nodename}: {said}", done.stderr)


def test_i02_a_driver_that_is_killed_takes_its_workers_along_and_a_rerun_goes_on(
    cluster: Cluster, place: Place, commands: Commands
) -> None:
    store = place.output.with_name("out.csv.store")
    running = place.start(commands, *cluster.options, delay=0.03)
    wait_for(lambda: count(store) >= 20)
    assert workers()
    running.send_signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    wait_for(lambda: not workers())
    committed = count(store)
    place.asked()
    done = place.predict(*cluster.options)
    assert done.exit_code == 0, done.stderr
    assert f"{committed} of them answered before" in done.stderr
    assert place.output.read_bytes() == whole(LINES)
    assert place.asked().total() == 200 - committed


def test_a_signal_stops_a_run_which_then_goes_on(
    cluster: Cluster, place: Place, commands: Commands
) -> None:
    store = place.output.with_name("out.csv.store")
    running = place.start(commands, *cluster.options, "--grace", 60, delay=0.03)
    wait_for(lambda: count(store) >= 20)
    running.send_signal(signal.SIGTERM)
    done = running.wait()
    assert done.code == 75, done.output
    assert "Stopped by SIGTERM" in done.output
    committed = count(store)
    assert set(place.asked()) == set(range(committed)) or committed < 200
    again = place.predict(*cluster.options)
    assert again.exit_code == 0, again.stderr
    assert place.asked().total() == 200 - committed
    assert place.output.read_bytes() == whole(LINES)


def test_shards_of_an_array_and_of_ray_are_merged_to_the_bytes_of_one_run(
    cluster: Cluster, place: Place
) -> None:
    plain = place.predict("--shard", "0/3", *QUICK)
    as_slurm_does = place.predict(*cluster.options, environ=array(1, range(3)))
    on_ray = place.predict(*cluster.options, "--shard", "2/3")
    assert [done.exit_code for done in (plain, as_slurm_does, on_ray)] == [0, 0, 0]
    assert place.merge().exit_code == 0
    assert place.output.read_bytes() == whole(LINES)
    assert place.asked() == Counter(range(200))


def test_a_corpus_that_grew_is_searched_on_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    costs = [f"The red star of {number} costs {number} coins." for number in range(2, 12)]
    questions = [f"What does the red star of {number} cost?" for number in range(2, 10)]
    place = Place(tmp_path)
    place.table.write_text("\n".join(["question_text", *questions, ""]))
    corpus = ("--corpus", tmp_path / "corpus")

    def index(*documents: str) -> None:
        (tmp_path / "docs.csv").write_text("\n".join(["text", *documents, ""]))
        assert call("index", tmp_path / "docs.csv", tmp_path / "corpus").exit_code == 0

    index(*costs)
    assert place.predict(*corpus).exit_code == 0
    index(*costs, "What does the red star of 5 cost? The red star of 5 costs 5 coins.")
    place.asked()
    done = place.predict(*corpus, *cluster.options[:2])
    assert done.exit_code == 0, done.stderr
    assert "rows have the evidence that they had." in done.stderr
    assert 0 < place.asked().total() < 8
    other = Place(tmp_path, name="other.csv")
    assert other.predict(*corpus).exit_code == 0
    assert place.output.read_bytes() == other.output.read_bytes()


def test_a_bundle_that_a_worker_does_not_see_is_named(
    cluster: Cluster, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmrag_batch.run import predict

    bundle = place.folder / "bundle"
    shutil.copytree(DEMO_BUNDLE, bundle)
    find_stages = predict._find_stages

    def find_and_lose(settings: Any) -> Any:
        found = find_stages(settings)
        bundle.rename(place.folder / "elsewhere")
        return found

    monkeypatch.setattr(predict, "_find_stages", find_and_lose)
    done = place.predict(*cluster.options, "--bundle", bundle)
    assert done.exit_code == 66, done.stderr
    assert f"on {os.uname().nodename}: {bundle} is no bundle" in done.stderr


def test_a_worker_of_another_version_is_refused(
    cluster: Cluster, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrag_batch.execute.ray.find_versions", lambda: ("3.99", "0.0.7"))
    done = place.predict(*cluster.options)
    assert done.exit_code == 69
    assert "the run was started by Python 3.99 and mmrag-batch 0.0.7" in done.stderr


def test_a_node_without_this_program_is_told(
    cluster: Cluster, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.folder / "not_there.py").write_text("class Worker:\n    def open(self, *_): ...\n")
    monkeypatch.syspath_prepend(place.folder)
    module = importlib.import_module("not_there")
    (place.folder / "not_there.py").unlink()  # before a worker wants it
    monkeypatch.setattr("mmrag_batch.execute.ray.Worker", module.Worker)
    done = place.predict(*cluster.options)
    assert done.exit_code == 69
    assert "mmrag-batch cannot be imported there: ModuleNotFoundError" in done.stderr


def test_the_demo_bundle_gives_the_same_bytes(cluster: Cluster, tmp_path: Path) -> None:
    table = Path(__file__).parents[2] / "examples/demo/questions.csv"
    words = ("predict", table, "--device", "cpu", "--limit", 6, "--batch-size", 1)
    for name, options in {"plain.csv": (), "ray.csv": cluster.options[:2]}.items():
        done = call(*words[:2], tmp_path / name, *words[2:], *options)
        assert done.exit_code == 0, done.stderr
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()


def test_where_there_is_no_cluster_one_is_started_and_ended(
    place: Place, commands: Commands
) -> None:
    before = processes("raylet")
    place.write(LINES[:40])
    running = place.start(commands, "--ray", "local")
    wait_for(lambda: processes("raylet") - before)
    done = running.wait(within=120)
    assert done.code == 0, done.output
    assert "A Ray cluster was started here for this run." in done.output
    assert place.output.read_bytes() == whole(LINES[:40])
    wait_for(lambda: processes("raylet") <= before)


def test_an_address_where_nobody_answers_is_told_at_once(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # which nobody has, once it is closed
    done = place.predict("--ray", f"127.0.0.1:{port}")
    assert done.exit_code == 69
    assert f"--ray 127.0.0.1:{port}: there is no Ray cluster" in done.stderr


def test_a_client_of_ray_is_refused_with_the_reason(place: Place) -> None:
    done = place.predict("--ray", "ray://head:10001")
    assert done.exit_code == 78
    assert "end with the connection of a Ray client" in done.stderr
