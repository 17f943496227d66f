"""Where workers of a Ray cluster may run. Its nodes are made up: none here has a GPU."""

from collections.abc import Mapping

import pytest

ray_cluster = pytest.importorskip(
    "mmrag_batch.execute.ray_cluster", reason="no Ray here: pip install ray"
)


def node(name: str, resources: Mapping[str, float], *, alive: bool = True) -> dict[str, object]:
    """As `ray.nodes` tells it."""
    host = {"NodeID": name, "NodeManagerHostname": f"host-{name}"}
    return {**host, "Alive": alive, "Resources": {**resources, "memory": 1e9}}


@pytest.mark.parametrize(
    ("gpus", "places"),
    [
        (0, {"a": [(64, 0)], "b": [(16, 0)], "c": [(4, 0)]}),
        (1, {"a": [(8, 1)] * 8, "b": [(5, 1)] * 3}),
        (2, {"a": [(16, 2)] * 4, "b": [(16, 2)]}),
        (4, {"a": [(32, 4)] * 2}),
        (16, {}),
    ],
)
def test_a_worker_gets_its_gpus_and_a_share_of_the_processors(
    gpus: int, places: Mapping[str, list[tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        node("a", {"CPU": 64.0, "GPU": 8.0}),
        node("b", {"CPU": 16.0, "GPU": 3.0}),
        node("c", {"CPU": 4.0}),
        node("gone", {"CPU": 64.0, "GPU": 8.0}, alive=False),
    ]
    monkeypatch.setattr(ray_cluster.ray, "nodes", lambda: nodes)
    found: dict[str, list[tuple[int, int]]] = {}
    for place, host in ray_cluster.find_places(gpus).items():
        assert host == f"host-{place.node}"
        found.setdefault(place.node, []).append((place.cpus, place.gpus))
    assert found == places


def test_without_a_gpu_each_node_gets_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("a", {"CPU": 4.0}), node("b", {"CPU": 2.0}), node("c", {})]
    monkeypatch.setattr(ray_cluster.ray, "nodes", lambda: nodes)
    assert [place.node for place in ray_cluster.find_places(1)] == ["a", "b"]
