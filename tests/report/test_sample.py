"""Which rows a page shows."""

from collections import Counter

import pandas as pd

from mmrag_batch.report.sample import choose, describe


def facts(rows: int) -> pd.DataFrame:
    """Every fifth row is wrong, every tenth of the others has no answer; confidences differ."""
    wrong = [number % 5 == 0 for number in range(rows)]
    failed = [number % 10 == 1 for number in range(rows)]
    return pd.DataFrame(
        {
            "right": [not (bad or lost) for bad, lost in zip(wrong, failed)],
            "status": ["error" if lost else "ok" for lost in failed],
            "confidence": [
                None if lost else ((number * 7) % rows) / rows for number, lost in enumerate(failed)
            ],
        }
    )


def test_a_small_output_is_shown_in_whole_and_in_order() -> None:
    chosen = choose(facts(20), 20)
    assert [one.number for one in chosen] == list(range(20))
    assert describe(chosen, 20, 20) == "All 20 rows, in the order of the table."
    assert describe(chosen, 20, 7).startswith("The first 7 of 20 rows. There is no room")


def test_confident_mistakes_come_first_then_errors_then_doubts_then_the_luck_of_the_draw() -> None:
    frame = facts(1000)
    chosen = choose(frame, 100)
    counts = Counter(one.reason for one in chosen)
    assert list(counts.items()) == [
        ("confident mistake", 35),
        ("no answer", 15),
        ("least confident", 15),
        ("at random", 35),
    ]
    numbers = [one.number for one in chosen]
    assert len(set(numbers)) == 100
    mistakes = frame.loc[numbers[:35]]
    assert not mistakes["right"].any()
    assert list(mistakes["confidence"]) == sorted(mistakes["confidence"], reverse=True)
    wrong = frame[~frame["right"] & (frame["status"] == "ok")]
    assert mistakes["confidence"].min() >= wrong["confidence"].drop(numbers[:35]).max()
    assert set(frame.loc[numbers[35:50], "status"]) == {"error"}
    doubts = frame.loc[numbers[50:65], "confidence"]
    assert doubts.max() <= frame["confidence"].drop(numbers[:65]).min()


def test_the_same_rows_are_chosen_again_and_the_rule_is_said() -> None:
    chosen = choose(facts(1000), 100, flipped=[3, 10])
    assert chosen == choose(facts(1000), 100, flipped=[3, 10])
    assert [one.number for one in chosen[:2]] == [3, 10]
    rule = describe(chosen, 1000, 100)
    assert rule.startswith("100 of 1,000 rows, for these reasons: 2 that the other run answers")
    assert "35 that are wrong, the most confident first" in rule
    assert "drawn at random from all others (seed 0)" in rule


def test_no_rows_may_be_asked_for() -> None:
    assert choose(facts(10), 0) == []
    assert describe([], 10, 0) == "0 of 10 rows."


def test_rows_without_labels_are_shown_by_their_confidence() -> None:
    frame = facts(100)
    frame["right"] = None
    counts = Counter(one.reason for one in choose(frame, 20))
    assert "confident mistake" not in counts
    assert counts["least confident"] == 3
