import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrag_batch.bundle import RetrieverSpec, encoders_key, hash_files, read_retriever_spec
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.records import Document, Question, Row
from mmrag_batch.retrieval import store as store_module
from mmrag_batch.retrieval.cache import EmbeddingCache
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.retriever import open_embedder
from mmrag_batch.retrieval.store import KEY, EmbeddingStore, StoredCache

SIZE = 5


def vector(number: float) -> Floats:
    return np.arange(SIZE, dtype=np.float32) + np.float32(number)


def filled(directory: Path, *numbers: int) -> Path:
    """A store into which a process put these entries."""
    store = EmbeddingStore(directory, SIZE)
    for number in numbers:
        store.put(f"text:{number}", vector(number))
    return directory


def found(store: EmbeddingStore, number: int) -> list[float] | None:
    embedding = store.get(f"text:{number}")
    return None if embedding is None else embedding.tolist()


def test_what_one_process_put_another_finds(tmp_path: Path) -> None:
    filled(tmp_path, *range(100))
    filled(tmp_path, *range(100, 130))
    store = EmbeddingStore(tmp_path, SIZE)
    assert len(store) == 130
    assert all(found(store, number) == vector(number).tolist() for number in range(130))
    assert found(store, 130) is None


def test_what_a_process_put_it_finds_itself(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "new", SIZE)
    assert found(store, 1) is None
    assert not (tmp_path / "new").exists()
    for number in range(3):
        store.put(f"text:{number}", vector(number))
    store.put("text:1", vector(7))  # the same content has the same embedding: the first stays
    assert [found(store, number) for number in range(3)] == [vector(n).tolist() for n in range(3)]


def test_what_was_found_can_be_changed(tmp_path: Path) -> None:
    store = EmbeddingStore(filled(tmp_path, 1), SIZE)
    embedding = store.get("text:1")
    assert embedding is not None
    embedding += 1
    assert found(store, 1) == vector(1).tolist()


def test_keys_whose_hashes_begin_alike_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_digest", lambda key: b"12345678" + key.encode().ljust(24))
    store = EmbeddingStore(filled(tmp_path, 1, 2, 3), SIZE)
    expected = [vector(1).tolist(), vector(2).tolist(), vector(3).tolist(), None]
    assert [found(store, number) for number in (1, 2, 3, 4)] == expected


WRITER = """
import sys, numpy as np
from pathlib import Path
from mmrag_batch.retrieval.store import EmbeddingStore
store = EmbeddingStore(Path(sys.argv[1]), 5)
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 300):
    store.put(f"text:{number}", np.arange(5, dtype=np.float32) + np.float32(number))
print("done", flush=True)
sys.stdin.read()
"""


def test_shards_write_at_once_and_a_killed_one_leaves_what_it_put(tmp_path: Path) -> None:
    shards = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(start)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for start in (0, 150, 300)  # half of each one's contents is another's, too
    ]
    for shard in shards:
        assert shard.stdout is not None
        assert shard.stdout.readline() == b"done\n"
        shard.kill()
        shard.communicate()
    store = EmbeddingStore(tmp_path, SIZE)
    assert all(found(store, number) == vector(number).tolist() for number in range(600))


@pytest.mark.parametrize("suffix", [".keys", ".vectors"])
@pytest.mark.parametrize("cut", [1, KEY.itemsize - 1])
def test_a_torn_last_entry_is_not_found(tmp_path: Path, suffix: str, cut: int) -> None:
    (file,) = filled(tmp_path, *range(4)).glob(f"*{suffix}")
    os.truncate(file, file.stat().st_size - min(cut, 4 * SIZE))
    store = EmbeddingStore(tmp_path, SIZE)
    assert [found(store, number) is not None for number in range(4)] == [True, True, True, False]


def test_an_empty_segment_is_passed_over(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    (tmp_path / "0.keys").touch()
    (tmp_path / "0.vectors").touch()
    assert found(EmbeddingStore(tmp_path, SIZE), 1) == vector(1).tolist()


def test_c09_a_damaged_entry_is_warned_of_once_and_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (file,) = filled(tmp_path, *range(4)).glob("*.vectors")
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    data[4 * SIZE] ^= 1
    file.write_bytes(data)
    store = EmbeddingStore(tmp_path, SIZE)
    assert [found(store, number) is not None for number in range(4)] == [False, False, True, True]
    assert [record.message for record in caplog.records] == [
        f"The embedding cache {tmp_path} has a damaged entry; it is computed again."
    ]
    store.put("text:0", vector(0))
    assert found(EmbeddingStore(tmp_path, SIZE), 0) == vector(0).tolist()


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that this process may read but not write to, whoever runs it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        filled(path, 1)
        path.chmod(0o555)
        for file in path.iterdir():
            file.chmod(0o444)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield path
        finally:
            if root:
                os.seteuid(0)
            path.chmod(0o755)


def test_c09_a_read_only_cache_is_read_and_warned_of_once(
    readable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = EmbeddingStore(readable, SIZE)
    assert found(store, 1) == vector(1).tolist()
    for number in (2, 3):
        store.put(f"text:{number}", vector(number))
        assert found(store, number) is None
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (
            logging.WARNING,
            f"The embedding cache {readable} cannot be written (Permission denied); what is new is "
            "not kept.",
        )
    ]


def test_c09_a_full_disk_ends_the_writing_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = EmbeddingStore(tmp_path, SIZE)
    store.put("text:1", vector(1))
    assert store._files is not None
    with Path("/dev/full").open("wb", buffering=0) as full:
        os.dup2(full.fileno(), store._files[0])
    for number in (2, 3):
        store.put(f"text:{number}", vector(number))
    (record,) = caplog.records
    assert "No space left on device" in record.message
    reopened = EmbeddingStore(tmp_path, SIZE)
    assert [found(reopened, n) is not None for n in (1, 2)] == [True, False]


def test_c09_embeddings_are_computed_again_where_the_cache_is_no_folder(
    tiny_retriever_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    expected = embedded(tiny_retriever_dir, tmp_path, None)
    np.testing.assert_array_equal(
        embedded(tiny_retriever_dir, tmp_path, tmp_path / "cache"), expected
    )
    assert len(caplog.records) == 1


def embedded(retriever: Path, root: Path, store: Path | None) -> Floats:
    """(2, 2, D): what two questions are embedded as."""
    spec = read_retriever_spec(retriever)
    embedder = open_embedder(
        retriever, spec, ImageLoader(root), device="cpu", threads=1, store=store
    )
    rows = [
        Row(
            n, n + 2, str(n), {}, Question(text, None, (), (Document("0", text, None),), None, None)
        )
        for n, text in enumerate(["a red cube", "what does it cost?"])
    ]
    return np.stack([row.question.modalities for row in embedder.embed(rows) if row is not None])


def test_embeddings_come_back_bit_for_bit_without_the_encoders(
    tiny_retriever_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embedded(tiny_retriever_dir, tmp_path, tmp_path / "cache")
    monkeypatch.delattr("mmrag_batch.retrieval.encoder.Encoder.encode_texts")
    np.testing.assert_array_equal(embedded(tiny_retriever_dir, tmp_path, tmp_path / "cache"), first)


def test_what_lies_in_memory_is_not_read_from_disk(tmp_path: Path) -> None:
    store = EmbeddingStore(filled(tmp_path, 1), SIZE)
    cache = StoredCache(EmbeddingCache(2, SIZE), store)
    assert cache.get("text:2") is None
    first = cache.get("text:1")
    for file in tmp_path.iterdir():
        os.truncate(file, 0)  # what was mapped is gone
    again = cache.get("text:1")
    assert first is not None
    assert again is not None
    assert first.tolist() == again.tolist() == vector(1).tolist()


@pytest.fixture
def spec(tiny_retriever_dir: Path) -> RetrieverSpec:
    return read_retriever_spec(tiny_retriever_dir)


def test_other_encoders_have_another_folder(spec: RetrieverSpec, tiny_retriever_dir: Path) -> None:
    files = hash_files(tiny_retriever_dir)
    key = encoders_key(spec, files)
    for name in ("image_encoder.onnx", "text_encoder.onnx", "tokenizer.json"):
        assert encoders_key(spec, {**files, name: "0"}) != key
    assert encoders_key(replace(spec, framing="stretch"), files) != key


def test_retrained_towers_keep_their_folder(spec: RetrieverSpec, tiny_retriever_dir: Path) -> None:
    files = hash_files(tiny_retriever_dir)
    retrained = {**files, "question_tower.onnx": "0", "retriever.json": "0"}
    assert encoders_key(replace(spec, temperature=9.0), retrained) == encoders_key(spec, files)
