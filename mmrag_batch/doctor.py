"""What this machine can run and what is missing, with the line to type.

A check is a question, an answer and, where something is missing, what to do about it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrag_batch import __version__, machine
from mmrag_batch.machine import Gpu

if TYPE_CHECKING:
    from mmrag_batch.parity import Parity

GIB = 2**30
MOST_APART = 0.02
"""How far probabilities may differ for rounding: in bfloat16; in float32 they do by some 1e-6."""
SHOWN = ("onnxruntime", "torch", "transformers", "vllm", "bitsandbytes", "pyarrow", "ray")


@dataclass(frozen=True, slots=True)
class Check:
    """Something to do with mmrag-batch: whether it works here, how, and what to type if not."""

    name: str
    works: bool
    detail: str
    remedy: str = ""


def describe() -> list[str]:
    """The machine, a line a part."""
    total, free = machine.memory()
    gpus = [
        f"{gpu.name}, {gpu.memory / GIB:.0f} GiB, driver {gpu.driver}" for gpu in machine.gpus()
    ]
    features = ", ".join(_features()) or "neither VNNI nor BF16"
    return [
        _line("mmrag-batch", __version__),
        _line("python", machine.python()),
        _line("cores", f"{machine.cores()} ({features})"),
        _line("memory", f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free"),
        _line("GPU", "; ".join(gpus) or "none that a driver answers for"),
        _line("Slurm", machine.slurm() or "not installed"),
        *(_line(name, version or "not installed") for name, version in _packages().items()),
    ]


def facts_of(checks: Sequence[Check]) -> dict[str, Any]:
    """The machine and what can be done on it, for programs; memory in bytes."""
    total, free = machine.memory()
    return {
        "mmrag_batch": __version__,
        "python": machine.python(),
        "cores": machine.cores(),
        "features": _features(),
        "memory": total,
        "memory_free": free,
        "gpus": [asdict(gpu) for gpu in machine.gpus()],
        "slurm": machine.slurm() or None,
        "packages": _packages(),
        "checks": [asdict(check) for check in checks],
    }


def check() -> list[Check]:
    """What can be done here, `predict` first."""
    gpus = machine.gpus()
    return [
        _predict(gpus),
        _on_gpu(gpus),
        _vllm(),
        _extra("evaluate", "report"),
        _extra("Parquet tables", "parquet"),
        _extra("train and export", "train"),
        _extra("train in 4 bits", "train-4bit"),
        _int8(),
    ]


def compare(bundle: Path) -> "Parity":
    """How far transformers and vLLM are apart with a bundle's generator. Raises what opening the
    bundle and the engines does."""
    from mmrag_batch.bundle import open_bundle
    from mmrag_batch.parity import compare_engines
    from mmrag_batch.settings import PredictSettings

    settings = PredictSettings(bundle, bundle, bundle=bundle)
    return compare_engines(open_bundle(bundle), settings)


def agree(parity: "Parity") -> bool:
    """Whether two engines give the same answers."""
    return parity.same == parity.rows and parity.probability <= MOST_APART


def tell(bundle: Path, parity: "Parity") -> str:
    """A line on that for people."""
    return (
        f"{bundle}: transformers and vLLM give {parity.same} of {parity.rows} answers alike, with "
        f"probabilities that differ by {parity.probability:.1e} at most"
        + (
            "."
            if agree(parity)
            else f"; {MOST_APART:g} would be rounding. Use one of them, not both."
        )
    )


def show(checks: Sequence[Check]) -> Iterator[str]:
    """A line for each check, and one for what to type."""
    for item in checks:
        yield f"{'yes' if item.works else 'no':4}{item.name:22}{item.detail}"
        if item.remedy:
            yield f"{'':26}{item.remedy}"


def _predict(gpus: Sequence[Gpu]) -> Check:
    """`predict` runs where ONNX Runtime, torch and transformers are installed."""
    problems = machine.unmet_requirements(machine.extras()["cpu"])
    if problems:
        extra = "gpu" if gpus else "cpu"
        detail = "missing: " + ", ".join(problems)
        return Check("predict", works=False, detail=detail, remedy=machine.install(extra))
    return Check("predict", works=True, detail="with transformers")


def _on_gpu(gpus: Sequence[Gpu]) -> Check:
    """Whether torch and ONNX Runtime use the GPUs that are there."""
    name = "predict, on a GPU"
    if not gpus:
        return Check(name, works=False, detail="no NVIDIA driver answers (nvidia-smi)")
    if machine.has_two_runtimes():
        remedy = f"{machine.pip()} uninstall -y onnxruntime onnxruntime-gpu; "
        remedy += f"{machine.pip()} install --no-deps onnxruntime-gpu"
        detail = "onnxruntime and onnxruntime-gpu have overwritten each other"
        return Check(name, works=False, detail=detail, remedy=remedy)
    cpu_only = list(_cpu_only_packages())
    if cpu_only:
        remedy = machine.install("gpu", again=True)
        return Check(name, works=False, detail=f"not by {', '.join(cpu_only)}", remedy=remedy)
    return Check(name, works=True, detail=f"{len(gpus)} of {gpus[0].name}")


def _cpu_only_packages() -> Iterator[str]:
    """The packages that see no GPU. They are loaded for this, which takes seconds."""
    try:
        import torch

        if not torch.cuda.is_available():
            yield f"torch {torch.__version__}"
    except ImportError:
        yield "torch (not installed)"
    try:
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            yield f"onnxruntime {onnxruntime.__version__} (a CPU build)"
    except ImportError:
        yield "onnxruntime (not installed)"


def _vllm() -> Check:
    """vLLM needs no GPU where its CPU build is installed."""
    requirements = [item for item in machine.extras()["gpu"] if item.name == "vllm"]
    problems = machine.unmet_requirements(requirements)
    if problems:
        return Check(
            "predict, with vLLM",
            works=False,
            detail="missing: " + ", ".join(problems),
            remedy=machine.install("gpu"),
        )
    return Check(
        "predict, with vLLM",
        works=True,
        detail=f"vllm {machine.installed_version(requirements[0])}",
    )


def _extra(name: str, extra: str) -> Check:
    problems = machine.unmet_requirements(machine.extras()[extra])
    if problems:
        detail = "missing: " + ", ".join(problems)
        return Check(name, works=False, detail=detail, remedy=machine.install(extra))
    return Check(name, works=True, detail=f"mmrag-batch[{extra}]")


def _int8() -> Check:
    works = bool(machine.cpu_flags() & machine.INT8)
    detail = (
        "export encoders --precision int8" if works else "no VNNI: int8 would be slower than fp32"
    )
    return Check("int8 encoders", works=works, detail=detail)


def _features() -> list[str]:
    flags = machine.cpu_flags()
    return [name for name, kind in (("VNNI", machine.INT8), ("BF16", machine.BF16)) if flags & kind]


def _packages() -> dict[str, str | None]:
    """The versions that are installed."""
    requirements = {item.name: item for group in machine.extras().values() for item in group}
    return {name: machine.installed_version(requirements[name]) for name in SHOWN}


def _line(name: str, value: str) -> str:
    return f"{name:14}{value}"
