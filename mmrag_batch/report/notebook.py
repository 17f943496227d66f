"""What a notebook shows of an output: the figures and plots that its page begins with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmrag_batch.report.facts import read_facts
from mmrag_batch.report.metrics import Metrics, measure
from mmrag_batch.report.page import render_head
from mmrag_batch.report.summary import summarize
from mmrag_batch.table.names import AS_THEY_ARE, Names
from mmrag_batch.table.truth import Reading


@dataclass(frozen=True, slots=True)
class Evaluation(Metrics):
    """Metrics that show themselves in a notebook: `page` is the head of the page of `report`."""

    page: str = field(default="", repr=False, compare=False)

    def _repr_html_(self) -> str:
        return self.page


def evaluate(
    path: Path,
    *,
    by: Sequence[str] = (),
    reading: Reading | None = None,
    names: Names = AS_THEY_ARE,
) -> Evaluation:
    """As `metrics.evaluate`, with what a notebook shows."""
    facts = read_facts(path, by=by, reading=reading, names=names)
    metrics = measure(facts)
    overview = summarize(
        facts,
        title=f"Figures of {path.name}",
        notes=(),
        numbers=None,
        run=(),
        command="",
        explain="",
        comparison=None,
        ablations=(),
    )
    return Evaluation(metrics.overall, metrics.by, metrics.labels, page=render_head(overview))
