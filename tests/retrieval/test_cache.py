import numpy as np

from mmrag_batch.retrieval.cache import EmbeddingCache


def test_an_embedding_is_found_by_its_key() -> None:
    cache = EmbeddingCache(2, 3)
    embedding = np.arange(3, dtype=np.float32)
    cache.put("a", embedding)
    found = cache.get("a")
    assert found is not None
    assert found.tolist() == [0, 1, 2]
    assert cache.get("b") is None


def test_it_never_holds_more_than_its_capacity() -> None:
    cache = EmbeddingCache(3, 2)
    for number in range(10):
        cache.put(str(number), np.zeros(2, np.float32))
        assert len(cache) == min(number + 1, 3)


def test_the_least_recently_used_is_forgotten_first() -> None:
    cache = EmbeddingCache(2, 2)
    for key in "ab":
        cache.put(key, np.zeros(2, np.float32))
    cache.get("a")
    cache.put("c", np.zeros(2, np.float32))
    assert [key for key in "abc" if cache.get(key) is not None] == ["a", "c"]


def test_a_key_that_is_put_again_keeps_its_place_and_changes_its_embedding() -> None:
    cache = EmbeddingCache(2, 1)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        cache.put(key, np.array([value], np.float32))
    found = {key: cache.get(key) for key in "abc"}
    assert found == {"a": [3], "b": None, "c": [4]}


def test_what_was_found_stays_when_its_place_is_taken() -> None:
    cache = EmbeddingCache(1, 2)
    cache.put("a", np.zeros(2, np.float32))
    found = cache.get("a")
    cache.put("b", np.ones(2, np.float32))
    assert found is not None
    assert found.tolist() == [0, 0]
