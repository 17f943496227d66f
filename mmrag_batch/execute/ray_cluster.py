"""A Ray cluster, as a run sees it: the connection to it, and the places that it has for workers."""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from mmrag_batch.errors import UnavailableError

REACHED_WITHIN = 10.0
"""Seconds for a cluster to take a connection."""
LOCAL: Mapping[str, Any] = {
    "include_dashboard": False,
    "object_store_memory": 256 * 2**20,  # bytes of rows that are on their way
}
"""Of a cluster that is started here."""
log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a worker may run: the node, which one of it this is, and what it asks for."""

    node: str
    slot: int
    cpus: int
    gpus: int


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the cluster, which is started here if `auto` finds none. Raises
    UnavailableError where there is none, or not for this Python and this Ray."""
    if ray.is_initialized():  # by the program that calls us, whose it is to end it
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    # It would print what it says of dead workers on stdout, where `--json` is to stand alone.
    ray._private.worker.print_to_stdstream = lambda data, **_: log.debug("%s", data["lines"])
    quiet = {"configure_logging": False, "log_to_driver": False}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address == "local" or not _found(address, quiet):
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())  # of this run alone
            ray.init("local", **LOCAL, **quiet)
            log.info("A Ray cluster was started here for this run.")
    except (RayError, RuntimeError, ValueError) as error:
        raise UnavailableError(f"--ray {address}: {error}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process at once
    try:
        has = ray.cluster_resources()
        cpus, gpus = (int(has.get(kind, 0)) for kind in ("CPU", "GPU"))
        log.info("The Ray cluster has nodes: %d, CPUs: %d, GPUs: %d.", len(ray.nodes()), cpus, gpus)
        yield
    finally:
        ray.shutdown()


def _found(address: str, quiet: Mapping[str, Any]) -> bool:
    """Whether there is a cluster, which then is connected to."""
    try:
        if address != "auto":  # Ray would try for minutes, and then end the process
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), REACHED_WITHIN).close()
        ray.init(address, **quiet)
    except OSError as error:
        if address != "auto":
            raise UnavailableError(f"--ray {address}: there is no Ray cluster ({error}).") from None
        return False
    return True


def find_places(gpus: int) -> dict[Place, str]:
    """Where workers may run, with the names of their hosts: on each `gpus` GPUs of a node, or on
    each node if the cluster has none, or 0 are wanted."""
    places: dict[Place, str] = {}
    nodes: dict[Place, str] = {}
    has_gpus = False
    for node in ray.nodes():
        name, host = node["NodeID"], node["NodeManagerHostname"]
        cores, devices = (int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
        if not node["Alive"]:
            continue
        if gpus and devices:
            has_gpus, slots = True, devices // gpus
            places |= {Place(name, slot, cores // slots, gpus): host for slot in range(slots)}
        if cores:
            nodes[Place(name, 0, cores, 0)] = host
    return places if has_gpus else nodes
