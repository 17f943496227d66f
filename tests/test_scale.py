"""What docs/scale.md reckons: its tables are those of the program, which reckons with what other
pages show and the code has."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import row_costs, scale
from mmrag_batch.retrieval.corpus import Corpus
from mmrag_batch.retrieval.corpus_manifest import Models
from mmrag_batch.retrieval.corpus_segment import OpenSegment
from mmrag_batch.retrieval.store import EmbeddingStore
from mmrag_batch.run import corpus_writer, survey
from mmrag_batch.run.corpus_writer import CorpusWriter
from mmrag_batch.run.keys import key_maker
from mmrag_batch.run.shards import Shard
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.table.rows import scan

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "scale.md").read_text()


def test_the_page_shows_what_the_program_prints() -> None:
    shown = re.findall(r"(?:^\|.*\n)+", PAGE, re.M)
    assert shown == [make() + "\n" for make in scale.TABLES]
    running = " ".join(PAGE.split())
    for words in scale.sentences().values():
        assert words in running


@pytest.mark.parametrize("figure", scale.FIGURES, ids=lambda figure: figure.words)
def test_a_figure_is_the_one_that_its_page_shows(figure: scale.Figure) -> None:
    assert f"{figure.value:,.10g}" in figure.words
    assert figure.words in " ".join((ROOT / figure.page).read_text().split())


def test_encoders_take_the_operations_that_pages_say() -> None:
    billions = [round(one / 1e9) for one in (scale.PICTURE_OPERATIONS, scale.TEXT_OPERATIONS)]
    said = (ROOT / "docs" / "your-own-bundle.md").read_text()
    assert "{} GFLOP an image, {} a text of 77 tokens".format(*billions) in said


def test_the_costs_of_rows_are_those_of_each_step(tmp_path: Path) -> None:
    seconds, sizes = row_costs.measure(tmp_path, 256)
    assert len(seconds) == len(row_costs.STEPS) == len(scale.MEASURED)
    assert min(seconds) > 0
    assert (sizes["record"], sizes["output"]) == (scale.RECORD, scale.OUTPUT)
    for _, where in row_costs.STEPS:
        assert (ROOT / "mmrag_batch" / where).is_file()


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of 6 documents, in 3 segments."""
    monkeypatch.setattr(corpus_writer, "SEGMENT", 2)
    with CorpusWriter(tmp_path / "corpus", Models("made", "up", 4), tmp_path) as writer:
        for n in range(6):
            name = n.to_bytes(16)
            writer.add(name, name, {"id": str(n)}, np.ones(4, np.float16))
        writer.finish()
    return tmp_path / "corpus"


def test_an_open_corpus_holds_two_files_a_segment_and_so_many_bytes_a_document(
    corpus: Path, steps: dict[str, tuple[int, int | None]]
) -> None:
    opened = Corpus(corpus)
    assert len(opened.manifest.segments) == 3
    targets = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    assert sum(target.startswith(str(corpus.resolve())) for target in targets) == 2 * 3
    segments: list[OpenSegment] = opened._segments
    held = [one.rows.nbytes + one.ties.nbytes + one.alive.nbytes for one in segments]
    assert sum(held) == scale.KEPT * 6
    files = sum(file.stat().st_size for file in corpus.iterdir() if file.suffix != ".json")
    assert [done for what, (done, _) in steps.items() if "Checking" in what] == [files]


def test_an_embedding_store_holds_so_many_bytes_an_embedding(tmp_path: Path) -> None:
    writer = EmbeddingStore(tmp_path, 4)
    for n in range(5):
        writer.put(str(n), np.ones(4, np.float32))
    store = EmbeddingStore(tmp_path, 4)
    held = sum(one.nbytes for one in (*store._keys, store._order, store._starts))
    assert held == 5 * scale.STORED
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 5 * (4 * 4 + 36)
    assert scale.EMBEDDING == 4 * scale.SIZE + 36


def test_a_task_reads_the_whole_table_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions, _ = row_costs.write_tables(tmp_path, 20)
    read = 0

    def counted(*about: object) -> object:
        nonlocal read
        for record in scan(*about):  # type: ignore[arg-type]
            read += 1
            yield record

    monkeypatch.setattr(survey, "scan", counted)

    def accepts(*_: object) -> bool:
        return True

    with AnswerStore(tmp_path / "store", lambda: None) as store:
        taken = survey.take_survey(questions, store, key_maker({}), accepts, shard=Shard(1, 4))
        assert (read, taken.missing) == (40, 5)
        taken.close()


def test_an_approximate_index_has_so_many_bytes_a_document() -> None:
    faiss = pytest.importorskip("faiss")
    index = faiss.index_factory(scale.SIZE, "IVF16,RaBitQ", faiss.METRIC_INNER_PRODUCT)
    assert index.code_size + np.dtype(np.int64).itemsize == scale.CODE
