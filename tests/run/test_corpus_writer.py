"""A corpus that is made, changed and made anew by processes that may die: what it holds is what a
dict would."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from mmrag_batch.errors import ConfigError, MissingError, OutputError, StorageError
from mmrag_batch.retrieval.corpus import Corpus
from mmrag_batch.retrieval.corpus_manifest import MANIFEST, Models, read_corpus
from mmrag_batch.run import corpus_files, corpus_writer, files
from mmrag_batch.run.corpus_writer import CorpusWriter

SIZE = 8
MODELS = Models("encoders", "tower", SIZE)


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def vector(text: str) -> NDArray[np.float16]:
    random = np.random.default_rng(int.from_bytes(digest(text)[:4]))
    values = random.normal(size=SIZE)
    return (values / np.linalg.norm(values)).astype(np.float16)


def write(
    directory: Path,
    documents: Mapping[str, str],
    *,
    models: Models = MODELS,
    batch: int = 3,
    until: int | None = None,
    approximate: bool = False,
) -> CorpusWriter:
    """Bring a corpus to hold these documents; `until` so many were read, and it is left there."""
    items = list(documents.items())[:until]
    with CorpusWriter(directory, models, directory.parent, approximate=approximate) as writer:
        for start in range(0, len(items), batch):
            some = items[start : start + batch]
            contents = [digest(text) for _, text in some]
            states = writer.look_up([digest(name) for name, _ in some], contents)
            for (name, text), content, state in zip(some, contents, states):
                if state == "new":
                    record = {"id": name, "text": text}
                    writer.add(digest(name), content, record, vector(text))
        if until is None:
            writer.finish()
    return writer


def held(directory: Path) -> dict[str, str]:
    """What a corpus holds; each document is found by its own vector."""
    corpus = Corpus(directory)
    places = [
        place
        for segment, first in zip(corpus._segments, corpus._first)
        for place in np.nonzero(segment.alive)[0] + first
    ]
    records = [corpus.read(int(place)) for place in places]
    assert len(records) == len(corpus)
    if records:
        questions = np.stack([vector(one["text"]) for one in records]).astype(np.float32)
        nearest = corpus.search(questions, 1)
        for record, (found,) in zip(records, nearest.places):
            assert corpus.read(int(found))["text"] == record["text"]
    documents = {one["id"]: one["text"] for one in records}
    assert len(documents) == len(records)
    return documents


@pytest.fixture(autouse=True)
def small_segments() -> Iterator[None]:
    """Of a disk that is not waited for."""
    with mock.patch.object(corpus_writer, "SEGMENT", 8), mock.patch.object(os, "fsync"):
        yield


write_corpus = write


def texts(count: int, start: int = 0) -> dict[str, str]:
    return {f"d{number}": f"text {number}" for number in range(start, start + count)}


def test_documents_are_added_changed_and_removed(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, texts(20))
    assert held(corpus) == texts(20)
    changed = texts(30, start=5) | {"d7": "another text"}
    writer = write(corpus, changed)
    assert held(corpus) == changed
    assert (writer.added, writer.removed) == (16, 5)


def test_what_is_the_same_is_not_written_again(tmp_path: Path) -> None:
    write(tmp_path / "corpus", texts(20))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "corpus").iterdir()}
    writer = write(tmp_path / "corpus", texts(20))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "corpus").iterdir()} == before
    assert (writer.added, writer.removed) == (0, 0)


def test_the_version_is_that_of_the_documents_however_they_came(tmp_path: Path) -> None:
    write(tmp_path / "one", texts(40))
    write(tmp_path / "other", texts(25, start=12))
    write(tmp_path / "other", {**texts(40, start=5), "d9": "not yet"})
    assert read_corpus(tmp_path / "other").version != read_corpus(tmp_path / "one").version
    write(tmp_path / "other", dict(reversed(texts(40).items())))
    assert read_corpus(tmp_path / "other").version == read_corpus(tmp_path / "one").version
    write(tmp_path / "third", texts(40), models=Models("encoders", "retrained", SIZE))
    assert read_corpus(tmp_path / "third").version != read_corpus(tmp_path / "one").version


def test_an_id_that_comes_twice_is_told(tmp_path: Path) -> None:
    writer = CorpusWriter(tmp_path / "corpus", MODELS, tmp_path)
    a, b = digest("a"), digest("b")
    assert writer.look_up([a, a, b], [a, b, b]) == ["new", "twice", "new"]
    writer.add(a, a, {"id": "a", "text": "a"}, vector("a"))
    assert writer.look_up([a], [a]) == ["twice"]
    writer.commit()
    assert writer.look_up([a], [a]) == ["twice"]
    writer.finish()
    again = CorpusWriter(tmp_path / "corpus", MODELS, tmp_path)
    assert again.look_up([a], [a]) == ["same"]
    assert again.look_up([a], [b]) == ["twice"]


def test_many_small_changes_make_few_segments_with_little_that_is_dead(tmp_path: Path) -> None:
    documents = texts(16)
    for number in range(40):
        documents[f"new {number}"] = f"new text {number}"
        documents[f"d{number % 16}"] = f"changed {number}"
        write(tmp_path / "corpus", documents)
    assert held(tmp_path / "corpus") == documents
    manifest = read_corpus(tmp_path / "corpus")
    assert len(manifest.segments) <= 4 * 56 / 8 + corpus_writer.SMALL + 1
    assert sum(one.rows for one in manifest.segments) <= 56 / (1 - corpus_writer.DEAD)


def test_who_reads_a_corpus_has_it_whatever_becomes_of_it(tmp_path: Path) -> None:
    write(tmp_path / "corpus", texts(20))
    corpus = Corpus(tmp_path / "corpus")
    questions = np.stack([vector(text) for text in texts(20).values()]).astype(np.float32)
    before = corpus.search(questions, 1)
    for start in range(1, 40, 3):  # often enough for its files to be removed
        write(tmp_path / "corpus", texts(20, start=start))
    after = corpus.search(questions, 1)
    assert after.places.tolist() == before.places.tolist()
    found = [corpus.read(int(place))["text"] for (place,) in after.places]
    assert found == list(texts(20).values())


def test_other_models_make_every_vector_again(tmp_path: Path) -> None:
    write(tmp_path / "corpus", texts(20))
    retrained = Models("encoders", "retrained", SIZE)
    writer = write(tmp_path / "corpus", texts(20), models=retrained)
    assert writer.added == 20
    assert read_corpus(tmp_path / "corpus").models == retrained


@pytest.mark.parametrize("kind", ["vectors", "rows", "documents", "dead", "faiss"])
def test_a_damaged_file_is_told_and_made_again(tmp_path: Path, kind: str) -> None:
    corpus = tmp_path / "corpus"
    approximate = kind == "faiss"
    write(corpus, texts(20), approximate=approximate)
    write(corpus, texts(20) | {"d3": "another text"}, approximate=approximate)
    (file,) = list(corpus.glob(f"*.{kind}"))[:1]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(MissingError, match=r"damaged.*mmrag-batch index"):
        Corpus(corpus)
    file.unlink()
    with pytest.raises(MissingError, match=r"gone.*mmrag-batch index"):
        Corpus(corpus)
    write(corpus, texts(20), approximate=approximate)
    assert held(corpus) == texts(20)


def test_an_approximate_index_serves_until_much_has_changed(tmp_path: Path) -> None:
    """What was added is searched beside it, what was removed is found no more."""
    corpus = tmp_path / "corpus"
    write(corpus, texts(64), approximate=True)
    made = read_corpus(corpus).approximate
    assert made is not None
    assert sum(made.covers.values()) == 64
    write(corpus, texts(64, start=1), approximate=True)
    assert read_corpus(corpus).approximate == made
    assert held(corpus) == texts(64, start=1)
    write(corpus, texts(64, start=9), approximate=True)
    again = read_corpus(corpus).approximate
    assert again is not None
    assert again != made
    assert held(corpus) == texts(64, start=9)
    write(corpus, texts(64, start=9))
    assert read_corpus(corpus).approximate is None
    write(corpus, texts(64, start=9))
    assert not list(corpus.glob("*.faiss"))


def test_a_corpus_that_is_searched_otherwise_is_of_another_version(tmp_path: Path) -> None:
    versions = set()
    for approximate in (False, True, False, True):
        write(tmp_path / "corpus", texts(64), approximate=approximate)
        versions.add(read_corpus(tmp_path / "corpus").version)
    assert len(versions) == 2


def test_a_disk_that_fails_under_an_approximate_index_is_told(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, texts(20))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left")

    with (
        mock.patch.object(corpus_files._HashedFile, "write", fail),
        pytest.raises(StorageError, match="No space left"),
    ):
        write(corpus, texts(20), approximate=True)
    assert held(corpus) == texts(20)
    write(corpus, texts(20), approximate=True)
    assert held(corpus) == texts(20)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "segments": 3}'])
def test_a_manifest_that_cannot_be_read_is_told(tmp_path: Path, text: str) -> None:
    write(tmp_path / "corpus", texts(3))
    (tmp_path / "corpus" / MANIFEST).write_text(text)
    with pytest.raises(ConfigError, match="Remove it, then run `mmrag-batch index"):
        Corpus(tmp_path / "corpus")


def test_a_corpus_that_is_not_finished_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"is no corpus.*mmrag-batch index"):
        Corpus(tmp_path / "corpus")
    write(tmp_path / "corpus", texts(30), until=20)
    with pytest.raises(MissingError, match=r"not finished.*mmrag-batch index"):
        Corpus(tmp_path / "corpus")
    writer = write(tmp_path / "corpus", texts(30))
    assert writer.added < 30
    assert held(tmp_path / "corpus") == texts(30)


def test_a_change_that_is_not_finished_is_not_seen(tmp_path: Path) -> None:
    write(tmp_path / "corpus", texts(10))
    write(tmp_path / "corpus", texts(40, start=5), until=30)
    assert held(tmp_path / "corpus") == texts(10)


def test_a_strangers_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        CorpusWriter(tmp_path, MODELS, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_disk_that_fails_is_told(tmp_path: Path) -> None:
    with (
        CorpusWriter(tmp_path / "corpus", MODELS, tmp_path) as writer,
        mock.patch.object(os, "fsync", side_effect=OSError(28, "No space left")),
        pytest.raises(StorageError, match="No space left"),
    ):
        writer.add(digest("a"), digest("a"), {"id": "a", "text": "a"}, vector("a"))
        writer.commit()
    write(tmp_path / "corpus", texts(3))
    assert held(tmp_path / "corpus") == texts(3)


class Killed(BaseException):
    """Nothing that comes after happens."""


@contextmanager
def killed_at(operation: int) -> Iterator[list[int]]:
    """The process dies before that operation of the disk, counted from 0."""
    count = [0]

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if count[0] == operation:
                raise Killed
            count[0] += 1
            return real(*arguments, **options)

        return call

    with (
        mock.patch.object(os, "fsync", before(lambda _: None)),
        mock.patch.object(Path, "open", before(Path.open)),
        mock.patch.object(Path, "replace", before(Path.replace)),
        mock.patch.object(Path, "unlink", before(Path.unlink)),
        mock.patch.object(Path, "mkdir", before(Path.mkdir)),
        mock.patch.object(files, "sync_folder", before(files.sync_folder)),
    ):
        yield count


@pytest.mark.slow
@pytest.mark.parametrize("approximate", [False, True])
def test_a_death_at_any_operation_loses_nothing(tmp_path: Path, approximate: bool) -> None:
    """While a corpus is made, and while it is changed so that segments are written anew, or an
    approximate index."""
    write = partial(write_corpus, approximate=approximate)
    first, second = texts(30), {**texts(30, start=12), "d20": "another text"}
    deaths = 0
    for before, after in (({}, first), (first, second))[approximate:]:
        for operation in range(10_000):
            corpus = tmp_path / f"{len(before)}-{operation}"
            if before:
                write(corpus, before)
            with suppress(Killed), killed_at(operation):
                write(corpus, after)
                break
            deaths += 1
            if (corpus / MANIFEST).exists():
                assert held(corpus) in (before, after)
            write(corpus, after)
            assert held(corpus) == after
            names = {name for name, _ in read_corpus(corpus).files()}
            write(corpus, after)
            assert {file.name for file in corpus.iterdir()} == {MANIFEST, *names}
    assert deaths > (50 if approximate else 100)


class Corpora(RuleBasedStateMachine):
    """A corpus beside a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.corpus = Path(self.folder.name, "corpus")
        self.wanted: dict[str, str] = {}
        self.seen: dict[str, str] | None = None
        self.readers: list[tuple[Corpus, dict[str, str]]] = []

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(names=st.sets(st.integers(0, 40), max_size=20), version=st.integers(0, 3))
    def add(self, names: set[int], version: int) -> None:
        self.wanted |= {f"d{name}": f"text {name} {version}" for name in names}

    @rule(names=st.sets(st.integers(0, 40), max_size=20))
    def remove(self, names: set[int]) -> None:
        for name in names:
            self.wanted.pop(f"d{name}", None)

    @rule(seed=st.randoms(use_true_random=False))
    def shuffle(self, seed: Any) -> None:
        items = list(self.wanted.items())
        seed.shuffle(items)
        self.wanted = dict(items)

    @rule(approximate=st.booleans())
    def index(self, approximate: bool) -> None:
        write(self.corpus, self.wanted, approximate=approximate)
        self.seen = dict(self.wanted)
        names = {name for name, _ in read_corpus(self.corpus).files()}
        assert names <= {file.name for file in self.corpus.iterdir()}

    @rule(documents=st.integers(0, 40))
    def leave(self, documents: int) -> None:
        write(self.corpus, self.wanted, until=documents)

    @rule(operation=st.integers(0, 60), approximate=st.booleans())
    def die(self, operation: int, approximate: bool) -> None:
        before = self.seen
        with suppress(Killed), killed_at(operation):
            write(self.corpus, self.wanted, approximate=approximate)
            self.seen = dict(self.wanted)
            return
        if (self.corpus / MANIFEST).exists():
            self.seen = held(self.corpus)
            assert self.seen in (before, self.wanted)

    @rule()
    def read(self) -> None:
        if self.seen is not None:
            self.readers.append((Corpus(self.corpus), dict(self.seen)))

    @invariant()
    def what_is_seen_is_what_was_finished(self) -> None:
        if self.seen is not None:
            assert held(self.corpus) == self.seen
        for corpus, documents in self.readers[-2:]:
            assert len(corpus) == len(documents)
            for text in list(documents.values())[:2]:
                (place,) = corpus.search(vector(text)[None].astype(np.float32), 1).places[0]
                assert corpus.read(int(place))["text"] == text


@pytest.mark.slow
def test_a_corpus_is_what_a_dict_would_be() -> None:
    """Made, changed, left, read, and killed at any operation, in any order."""
    run_state_machine_as_test(
        Corpora,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_record_is_one_line_of_json(tmp_path: Path) -> None:
    write(tmp_path / "corpus", {"a": "two\nlines", "b": "\u2028 é"})
    (file,) = (tmp_path / "corpus").glob("*.documents")
    lines = file.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["text"] for line in lines if line] == ["two\nlines", "\u2028 é"]


OPEN_IN = """
import sys
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from mmrag_batch.errors import StorageError
from mmrag_batch.retrieval.corpus import Corpus
from mmrag_batch.retrieval.corpus_segment import OPEN_FILES

_, hard = getrlimit(RLIMIT_NOFILE)
setrlimit(RLIMIT_NOFILE, (24, hard))
corpus = Corpus(Path(sys.argv[1]))
assert len(corpus) == 120
del corpus
assert getrlimit(RLIMIT_NOFILE)[0] == min(hard, OPEN_FILES)
setrlimit(RLIMIT_NOFILE, (24, 24))
try:
    Corpus(Path(sys.argv[1]))
except StorageError as error:
    print(error)
"""


def test_a_corpus_of_many_segments_opens_as_many_files_as_the_system_allows(tmp_path: Path) -> None:
    write(tmp_path / "corpus", texts(120))
    done = subprocess.run(
        [sys.executable, "-c", OPEN_IN, tmp_path / "corpus"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "may have 24 files open" in done.stdout
    assert "`ulimit -n 65536`" in done.stdout
