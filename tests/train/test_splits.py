import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.errors import ConfigError, InputError
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.records import Document, Question
from mmrag_batch.train.splits import (
    Column,
    Contents,
    check_column,
    contents,
    hold_out,
    hold_out_by,
    question_contents,
    read_column,
)


def asked(question: object, *documents: object, picture: object = "") -> Contents:
    return contents((str(question), picture), [(str(document), "") for document in documents])


def is_parted(rows: Sequence[Contents], held_out: set[int], *sides: str) -> bool:
    """Whether rows that are held out share nothing with the others."""
    found: list[set[object]] = [set(), set()]
    for index, row in enumerate(rows):
        for side in sides:
            found[index in held_out] |= getattr(row, side)
    return not found[0] & found[1]


def test_rows_that_share_something_by_way_of_others_are_on_one_side() -> None:
    """Groups of four: two share the question, two the picture, two a document."""
    rows = []
    for group in range(25):
        rows += [
            asked(f"q{group}", f"a{group}"),
            asked(f"q{group}", f"b{group}", f"c{group}"),
            asked(f"r{group}", f"c{group}", f"d{group}"),
            asked(f"s{group}", f"e{group}", picture=f"p{group}"),
        ]
        rows[-2] = contents((f"r{group}", f"p{group}"), [(f"c{group}", "")])
    chosen = hold_out(rows, 20, seed=1)
    assert len(chosen) == 20
    assert is_parted(rows, chosen, "question", "documents")
    assert len({index // 4 for index in chosen}) == 5
    assert chosen == hold_out(rows, 20, seed=1)
    assert chosen != hold_out(rows, 20, seed=2)


def test_one_manual_of_all_rows_is_passed_over_with_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = [asked(n // 2, "manual") for n in range(100)]
    with caplog.at_level(logging.WARNING):
        chosen = hold_out(rows, 10, seed=0)
    assert "new questions about known documents" in caplog.text
    assert "held_out_by" in caplog.text
    assert len(chosen) == 10
    assert is_parted(rows, chosen, "question")


def test_a_few_manuals_are_held_out_whole(caplog: pytest.LogCaptureFixture) -> None:
    rows = [asked(n, f"manual {n % 6}") for n in range(60)]
    chosen = hold_out(rows, 8, seed=0)
    assert len({index % 6 for index in chosen}) == 1
    assert len(chosen) == 10
    assert not caplog.records


def test_rows_that_all_ask_about_one_picture_cannot_be_parted() -> None:
    rows = [asked(n, picture="map") for n in range(20)]
    with pytest.raises(InputError, match=r"All 20 rows share a question or a pict.*held_out_by"):
        hold_out(rows, 2, seed=0)


def test_contents_are_the_same_under_any_name(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "red.png").read_bytes())
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "blue.png")
    images = ImageLoader(tmp_path)

    def found(text: str, image: str | None, *documents: Document) -> Contents:
        return question_contents(Question(text, image, (), documents, None, None), images)

    one = found("What\u2019s a caf\u00e9?", "red.png", Document("0", "A  text.", None))
    other = found("what\u2019s a CAFE\u0301? ", "./copy.png", Document("x", "a text.", None))
    assert one == other
    assert not one.question & found("What\u2019s a caf\u00e9?", "blue.png").question
    page = found("Which?", None, Document("0", "Page 3", "copy.png"))
    assert page.documents & one.question, "a picture is the same wherever it is shown"
    lost = found("Which?", None, Document("0", None, "lost.png"))
    assert lost.documents & found("Who?", None, Document("1", "It.", "lost.png")).documents


def test_a_column_splits_by_its_values(caplog: pytest.LogCaptureFixture) -> None:
    column = Column("manual", [f"m{n % 20}" for n in range(200)])
    with caplog.at_level(logging.INFO):
        chosen = hold_out_by(column, 30, seed=0)
    assert len(chosen) == 30
    held_out = {index % 20 for index in chosen}
    assert len(held_out) == 3
    assert all(f"'m{number}'" in caplog.text for number in held_out)
    assert hold_out_by(column, 30, seed=1) != chosen == hold_out_by(column, 30, seed=0)


def test_a_column_of_few_values_gives_its_rarest() -> None:
    column = Column("kind", ["a"] * 50 + ["b"] * 30 + ["c"] * 20)
    assert hold_out_by(column, 10, seed=0) == set(range(80, 100))
    with pytest.raises(InputError, match="all rows have the same `kind`"):
        hold_out_by(Column("kind", ["a"] * 9), 2, seed=0)


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("question_text,manual\nA?,one\nB?,\nC?,one\n")
    with pytest.raises(
        ConfigError,
        match=r"has no column 'manuel'. Did you mean 'manual'\? Its columns are: question_text, ma",
    ):
        check_column(table, "manuel")
    check_column(table, "manual")
    column = read_column(table, "manual")
    assert column.values == ["one", "", "one"]
    assert column.at([2, 1]).values == ["one", ""]
