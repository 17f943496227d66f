import numpy as np

from mmrag_batch.retrieval.cache import EmbeddingCache


def test_an_embedding_is_found_by_its_key() -> None:
    cache = EmbeddingCache(2)
    embedding = np.arange(3, dtype=np.float32)
    cache.put("a", embedding)
    found = cache.get("a")
    assert found is not None
    assert found.tolist() == [0, 1, 2]
    assert cache.get("b") is None


def test_it_never_holds_more_than_its_capacity() -> None:
    cache = EmbeddingCache(3)
    for number in range(10):
        cache.put(str(number), np.zeros(2, np.float32))
        assert len(cache) == min(number + 1, 3)


def test_the_least_recently_used_is_forgotten_first() -> None:
    cache = EmbeddingCache(2)
    for key in "ab":
        cache.put(key, np.zeros(2, np.float32))
    cache.get("a")
    cache.put("c", np.zeros(2, np.float32))
    assert [key for key in "abc" if cache.get(key) is not None] == ["a", "c"]


def test_a_kept_row_does_not_keep_its_batch_alive() -> None:
    cache = EmbeddingCache(1)
    cache.put("a", np.zeros((1000, 4), np.float32)[3])
    found = cache.get("a")
    assert found is not None
    assert found.base is None
