import json
from pathlib import Path
from random import Random

import pandas as pd
import pytest

from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.table.truth import read_labelled_rows
from mmrag_batch.train import demo_world
from mmrag_batch.train.demo_world import (
    FACTS,
    KINDS,
    THINGS,
    Thing,
    ask_fact,
    ask_look,
    make_row,
    write_world,
)

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return made(tmp_path_factory.mktemp("rows"), 60)


def made(directory: Path, count: int, *, seed: int = 5) -> Rows:
    (directory / "images").mkdir(exist_ok=True)
    return [make_row(directory, number, seed) for number in range(count)]


def test_a_row_is_the_same_however_many_are_written(tmp_path: Path) -> None:
    few = write_world(tmp_path / "few", rows=3, seed=5)
    many = write_world(tmp_path / "many", rows=6, seed=5)
    assert many.read_text().startswith(few.read_text())
    images = sorted((tmp_path / "few" / "images").iterdir())
    assert images
    for image in images:
        assert image.read_bytes() == (tmp_path / "many" / "images" / image.name).read_bytes()


def test_another_seed_is_another_world(tmp_path: Path) -> None:
    first, second = made(tmp_path, 5), made(tmp_path, 5, seed=6)
    assert all(a["documents"] != b["documents"] for a, b in zip(first, second))


def test_every_kind_occurs(rows: Rows) -> None:
    assert {row["kind"] for row in rows} == set(KINDS)


def test_the_label_is_among_two_to_five_distinct_choices(rows: Rows) -> None:
    sizes = set()
    for row in rows:
        choices = json.loads(row["answer_choices"])
        assert row["label"] in choices
        assert len(set(choices)) == len(choices)
        sizes.add(len(choices))
    assert sizes == {2, 3, 4, 5}


def test_the_label_stands_at_every_place(rows: Rows) -> None:
    places = {json.loads(row["answer_choices"]).index(row["label"]) for row in rows}
    assert places == {0, 1, 2, 3, 4}


def test_only_visual_questions_have_no_relevant_document(rows: Rows) -> None:
    for row in rows:
        relevant = json.loads(row["relevant"])
        assert len(relevant) == (0 if row["kind"] == "visual" else 1)
        assert all(index < len(json.loads(row["documents"])) for index in relevant)


def test_the_question_is_shown_only_where_the_picture_is_needed(rows: Rows) -> None:
    for row in rows:
        assert bool(row["question_image"]) == (row["kind"] in {"knowledge", "visual"})


def test_the_relevant_document_of_a_fact_states_the_answer(rows: Rows) -> None:
    asked = [row for row in rows if row["kind"] in {"knowledge", "named"}]
    assert asked
    for row in asked:
        (index,) = json.loads(row["relevant"])
        document = json.loads(row["documents"])[index]
        text = document if isinstance(document, str) else document["text"]
        assert row["label"] in text


def test_the_relevant_document_of_a_look_shows_it_and_does_not_say_it(rows: Rows) -> None:
    asked = [row for row in rows if row["kind"] == "picture_document"]
    assert asked
    for row in asked:
        (index,) = json.loads(row["relevant"])
        document = json.loads(row["documents"])[index]
        assert row["label"] not in document["text"]
        assert document["image"].startswith("images/")


def subject(document: dict[str, object]) -> str:
    """The thing that a document is about: it shows it, else names it."""
    if isinstance(thing := document.get("image"), Thing):
        return thing.name
    (name,) = (thing.name for thing in THINGS if thing.name in str(document["text"]).lower())
    return name


@pytest.mark.parametrize("kind", ["knowledge", "named"])
def test_no_other_document_tells_the_fact_that_is_asked(kind: str) -> None:
    for seed in range(200):
        asked = ask_fact(Random(seed), kind)
        (values,) = (fact.values for fact in FACTS.values() if asked.answer in fact.values)
        (relevant,) = (document for document, helps in asked.documents if helps)
        tells = [
            subject(document) == subject(relevant)
            and any(value in str(document.get("text")) for value in values)
            for document, _ in asked.documents
        ]
        assert tells == [helps for _, helps in asked.documents]


def test_no_other_photo_is_from_the_city_that_is_asked() -> None:
    for seed in range(200):
        asked = ask_look(Random(seed), "picture_document")
        (photo,) = (str(document["text"]) for document, helps in asked.documents if helps)
        (city,) = (city for city in demo_world.CITIES if city in photo)
        others = [d for d, helps in asked.documents if not helps]
        stated = {str(d.get("text", "")) for d in others}
        assert stated.isdisjoint(words.format(v=city) for words in demo_world.PHOTOS)


def test_wear_spares_the_relevant_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_world, "DAMAGE_RATE", 0.0)
    new = made(tmp_path, 40)
    monkeypatch.setattr(demo_world, "DAMAGE_RATE", 1.0)
    worn = made(tmp_path, 40)
    seen = set()
    for before, after in zip(new, worn):
        assert {**before, "documents": ""} == {**after, "documents": ""}
        documents, left = json.loads(before["documents"]), json.loads(after["documents"])
        if not left:
            assert before["kind"] == "visual"
            seen.add("emptied")
            continue
        (index,) = (i for i, (a, b) in enumerate(zip(documents, left, strict=True)) if a != b)
        assert index not in json.loads(before["relevant"])
        seen.add("lost" if isinstance(left[index], dict) else "odd")
    assert seen == {"emptied", "lost", "odd"}


def test_a_world_without_choices_is_the_same_but_for_them(tmp_path: Path) -> None:
    tables = [
        pd.read_csv(write_world(tmp_path / name, rows=5, seed=5, free_form=free_form))
        for name, free_form in (("chosen", False), ("written", True))
    ]
    assert tables[1].equals(tables[0].drop(columns="answer_choices"))


def test_predict_can_read_the_table(demo_table: Path) -> None:
    rows = list(read_labelled_rows(demo_table))
    images = ImageLoader(demo_table.parent)
    assert len(rows) == 40
    for row in rows:
        assert row.error is None
        assert row.question is not None
        assert row.question.label is not None
        assert row.question.choices[row.question.label] == row.cells["label"]
        assert row.question.relevant is not None
        assert len(row.question.relevant) == (row.cells["kind"] != "visual")
        if row.question.image is not None:
            assert images.load(row.question.image).mode == "RGB"
