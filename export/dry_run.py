"""What an export will do, before it does it: its steps, what they write, need and take.

Everything that can be refused without computing is refused here: missing parts, encoders that
cannot be exported, towers of another size, an adapter of another base, a disk that is too small.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrag_batch.bundle import MANIFEST, RETRIEVER_SPEC, Precision, RetrieverSpec
from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.export.encoders import read_encoders
from mmrag_batch.export.linking import can_link
from mmrag_batch.export.merge import plan_merge, read_base
from mmrag_batch.export.settings import ExportConfig
from mmrag_batch.export.staging import check_space
from mmrag_batch.parts import read_spec
from mmrag_batch.train.towers import load_towers

GIB = 2**30
IMPORTS = GIB
"""Memory of the packages that an export loads."""
SECONDS = {"encoders": 60.0, "towers": 60.0, "generator": 10.0, "manifest": 2.0}
"""A GiB of weights on two cores, roughly: exported and compared, merged and compared, hashed."""
BITS: dict[Precision, int] = {"fp32": 32, "fp16": 16, "int8": 8}
TRACING = 5.0
"""Seconds to trace a network for ONNX, whatever its size."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what it reads, the bytes that it writes, its peak memory in bytes, its seconds, and
    how it takes what it reads, where there are several ways."""

    name: str
    source: Path
    writes: int
    memory: int
    seconds: float
    how: str = ""


def plan_export(config: ExportConfig) -> list[Step]:
    """The steps of an export in their order.

    Raises MissingError for parts that are not there, ConfigError for towers that do not fit the
    encoders or have none, OutputError for a disk that is too small, and what `read_encoders` and
    `plan_merge` raise.
    """
    base, adapter, out = config.generator, config.adapter, config.out
    shards = read_base(base) if adapter is None else plan_merge(base, adapter).shards
    sizes = [file.stat().st_size for file in shards]
    steps = [] if config.encoders is None else _retriever_steps(config, config.encoders)
    if config.encoders is None and config.towers is not None:
        raise ConfigError(
            f"{config.towers} are of no use without the encoders that they were trained on; name "
            "them: --encoders, or `encoders:` of the config."
        )
    hashed = sum(step.writes for step in steps) + sum(sizes)
    if adapter is None and can_link(shards, out):
        steps.append(Step("generator", base, 0, IMPORTS, 0.0, "linked"))
    else:
        memory = IMPORTS if adapter is None else max(sizes) + 2 * GIB
        seconds = _seconds("generator", sum(sizes))
        how = "copied" if adapter is None else "merged"
        steps.append(Step("generator", base, sum(sizes), memory, seconds, how))
    steps.append(Step("manifest", out, 0, IMPORTS, _seconds("manifest", hashed)))
    check_space(out, sum(step.writes for step in steps))
    return steps


def has_towers(retriever: Path) -> bool:
    """Whether the graphs of both towers lie in a directory of graphs."""
    return all((retriever / f"{side}_tower.onnx").is_file() for side in ("question", "document"))


def is_exported(encoders: Path) -> bool:
    """Whether a directory holds graphs, which are copied, and not weights, which are exported."""
    in_bundle = (encoders.parent / MANIFEST).is_file()
    return in_bundle or (encoders / RETRIEVER_SPEC).is_file()


def show(steps: Sequence[Step], out: Path) -> str:
    """The steps as a table for people."""
    lines = [f"{'step':11}{'writes':>11}{'memory':>11}{'time':>9}  from"]
    for step in steps:
        cells = f"{_size(step.writes):>11}{_size(step.memory):>11}{_time(step.seconds):>9}"
        lines.append(f"{step.name:11}{cells}  {step.source}{step.how and f' ({step.how})'}")
    total_size = _size(sum(step.writes for step in steps))
    memory = _size(max(step.memory for step in steps))
    seconds = _time(sum(step.seconds for step in steps))
    lines.append(
        f"{out}: {total_size} in {seconds} or so on two cores, with {memory} of memory. "
        "Nothing was written."
    )
    return "\n".join(lines)


def _retriever_steps(config: ExportConfig, encoders: Path) -> list[Step]:
    share = BITS[config.precision] / 32
    if is_exported(encoders):
        spec = read_spec(encoders)
        steps = [_retrieval("encoders", encoders, share, copied=True)]
    else:
        steps = [_retrieval("encoders", encoders, share, copied=False)]
        spec = read_encoders(encoders, config.vocabulary)
    if config.towers is not None:
        steps.append(_retrieval("towers", config.towers, 1.0, copied=False))
        _check_sizes(encoders, config.towers, spec)
    elif not has_towers(encoders):
        steps.append(Step("towers", encoders, 0, IMPORTS, 2 * TRACING, "untrained"))
    return steps


def _check_sizes(encoders: Path, towers: Path, spec: RetrieverSpec) -> None:
    size = load_towers(towers).config.embedding_size
    if size != spec.embedding_size:
        raise ConfigError(
            f"{towers} takes embeddings of {size} dimensions, and {encoders} gives "
            f"{spec.embedding_size}. Name the encoders that the towers were trained on."
        )


def _retrieval(name: str, source: Path, share: float, *, copied: bool) -> Step:
    """Encoders or towers, of which `share` is left in their precision. Up to four copies of their
    weights are in memory while they are exported."""
    if not source.exists():
        raise MissingError(f"{source} is missing; train the {name} or correct the path.")
    files = [source] if source.is_file() else list(source.iterdir())
    size = sum(file.stat().st_size for file in files if file.is_file())
    if copied:
        return Step(name, source, size, IMPORTS, _seconds("manifest", size))
    seconds = 2 * TRACING + _seconds(name, size)
    return Step(name, source, int(share * size), IMPORTS + 4 * size, seconds)


def _seconds(name: str, size: int) -> float:
    return SECONDS[name] * size / GIB


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, round(seconds))} s"
