"""How many of the relevant documents are among the best N, most of which are no evidence: the rows
of an output are ranked once more, by the settings of its run; its generator is not loaded."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mmrag_batch.factory import load_bundle, open_images, open_retrieval
from mmrag_batch.progress import Progress
from mmrag_batch.report.ranking import Retrieval, retrieval
from mmrag_batch.run.files import Paths
from mmrag_batch.run.one import find_output
from mmrag_batch.run.plan import settings_of_run
from mmrag_batch.table.names import parse_names
from mmrag_batch.table.truth import find_ranks, read_labels


def measure_depth(
    path: Path, depth: int, given: Mapping[str, object], *, store: Path | None = None
) -> Retrieval | None:
    """The figures of retrieval of an output at `depth`; None where no row has a relevant document.
    What is `given` stands in for settings of the run. Raises what `find_output`, `load_bundle` and
    opening a retriever do."""
    output = find_output(Paths.of(path, store))
    settings = settings_of_run(output.paths, output.job, output.manifest, given)
    # As many documents as are asked for, and all cores, for no engine is at work.
    settings = replace(settings, top_k=depth, engine="transformers")
    labels = read_labels(path, names=parse_names(settings.columns))
    ranks, counts = [], []
    rows = (row for row in labels.rows() if row.question is not None and row.question.relevant)
    bundle = load_bundle(settings, weights=False)
    with (
        open_retrieval(settings, bundle, open_images(settings)) as retrieve,
        Progress("Ranking", unit="rows") as progress,
    ):
        for row in progress.each(retrieve(rows)):
            assert row.question is not None  # no others are ranked
            relevant = row.question.relevant or frozenset()
            evidence = [item.document.id for item in row.evidence]
            ranks.append(find_ranks(evidence, relevant, row.question.documents))
            counts.append(len(relevant))
    return retrieval(ranks, counts, depth) if ranks else None
