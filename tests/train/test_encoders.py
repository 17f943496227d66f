import csv
import json
from pathlib import Path
from random import Random

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from mmrag_batch.errors import InputError
from mmrag_batch.export.encoders import open_encoders
from mmrag_batch.table.names import parse_names
from mmrag_batch.train.demo_pictures import COLOURS, draw
from mmrag_batch.train.encoders import train_encoders, train_tokenizer
from mmrag_batch.train.mllama import prompt_texts
from mmrag_batch.train.settings import EncodersConfig
from mmrag_batch.train.table_pairs import Sampler, hold_out, picture_truths, text_truths
from mmrag_batch.train.vision import Asked

CHOICES = json.dumps(list(COLOURS))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour each that are asked about, and a row of documents with captions."""
    folder, random = tmp_path_factory.mktemp("table"), Random(0)
    rows = []
    for number in range(48):
        colour = list(COLOURS)[number % len(COLOURS)]
        draw(random, colour, "circle").save(folder / f"{number}.png")
        rows.append(("What colour is it?", f"{number}.png", CHOICES, "", colour, ""))
    documents = [
        {"id": "a", "image": "0.png", "text": "an amber fox"},
        {"id": "b", "image": "1.png", "text": "a calm lake"},
        {"id": "c", "text": "no picture"},
        {"id": "d", "image": "gone.png", "text": "a lost picture"},
    ]
    named = ("What colour is the amber fox?", "", CHOICES, json.dumps(documents), "red", '["a"]')
    rows += [named, ("What colour?", "", CHOICES, json.dumps(documents), "orange", '["b"]')]
    file = folder / "train.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        header = ("question_text", "question_image", "answer_choices", "documents", "label")
        writer.writerow([*header, "relevant"])
        writer.writerows(rows)
    return file


def test_a_table_says_which_texts_are_true_of_its_pictures(table: Path) -> None:
    kinds = picture_truths(table)
    assert kinds["caption"]["0.png"] == ["an amber fox"]
    assert kinds["shown"]["2.png"] == ["What colour is it? yellow"]
    assert kinds["named"]["1.png"] == ["What colour? orange"]
    assert text_truths(table)["What colour is the amber fox?"] == ["an amber fox"]
    assert "c" not in kinds["caption"]


def test_a_table_without_choices_says_the_same(table: Path) -> None:
    free = table.with_name("free.csv")
    pd.read_csv(table, dtype=str).drop(columns="answer_choices").to_csv(free, index=False)
    assert picture_truths(free) == picture_truths(table)
    tokenizer = train_tokenizer(["What colour is it?"], 40)
    assert Asked(free, tokenizer).by_picture == Asked(table, tokenizer).by_picture


def test_a_table_with_names_of_its_own_says_the_same(table: Path) -> None:
    """As `columns` of a config has them."""
    named = table.with_name("named.csv")
    theirs = {"question_text": "frage", "question_image": "bild", "label": "richtig"}
    pd.read_csv(table, dtype=str).rename(columns=theirs).to_csv(named, index=False)
    names = parse_names(",".join(f"{ours}={name}" for ours, name in theirs.items()))
    assert picture_truths(named, names) == picture_truths(table)
    assert text_truths(named, names) == text_truths(table)
    assert [*prompt_texts(named, names)] == [*prompt_texts(table)]
    tokenizer = train_tokenizer(["What colour is it?"], 40)
    assert Asked(named, tokenizer, names).by_picture == Asked(table, tokenizer).by_picture


def test_what_is_true_of_few_is_drawn_more_often_and_all_that_is_true_is_marked() -> None:
    truths = {"a": ["common", "rare"], "b": ["common"], "c": ["common"], "d": ["common"]}
    sampler = Sampler(truths, Random(0))
    drawn = [sampler.draw(["a", "b"]) for _ in range(400)]
    counts = [texts[0] for texts, _ in drawn].count("rare")
    assert 290 < counts < 350  # four in five
    for texts, same in drawn:
        assert same == [[True, True], [texts[0] == "common", True]]


def test_pictures_are_held_out_whole() -> None:
    sources = [f"{number}.png" for number in range(20)]
    held_out = hold_out(sources, 0.25, seed=1)
    assert len(held_out) == 5
    assert held_out == hold_out(reversed(sources), 0.25, seed=1) != hold_out(sources, 0.25, seed=2)


def config(table: Path, out: Path) -> EncodersConfig:
    return EncodersConfig(
        table=table,
        out=out,
        learning_rate=1e-3,
        steps=80,
        picture_batch=16,
        text_batch=2,
        image_size=16,
        width=32,
        image_blocks=1,
        text_blocks=1,
        heads=2,
        context_length=16,
        embedding_size=16,
    )


def test_small_encoders_learn_from_a_table_and_can_be_exported(
    table: Path, tmp_path: Path, steps: dict[str, tuple[int, int | None]]
) -> None:
    out = train_encoders(config(table, tmp_path / "run"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, last, accuracy = map(json.loads, lines)
    assert (first["pictures"], first["held_out"], first["questions"]) == (43, 5, 2)
    assert last["shown_loss"] < 1.6  # the logarithm of 16 is 2.8, of two that are equal 0.7
    assert accuracy["picture_accuracy"] >= 0.6
    assert steps["Training"] == (80, 80)
    opened = open_encoders(out)
    assert (opened.spec.image_size, opened.spec.embedding_size) == (16, 16)
    assert opened.image(torch.zeros(1, 3, 16, 16)).shape == (1, 16)
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert f"pictures of {table}" in provenance["inputs"]


def test_a_table_that_says_nothing_of_pictures_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('question_text,answer_choices,label\nWhy?,"[""a"", ""b""]",a\n')
    with pytest.raises(InputError, match="of no two pictures is anything known"):
        train_encoders(config(table, tmp_path / "run"))


def test_the_command_takes_another_table_than_its_config(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"{{table: a.csv, out: {tmp_path}/out, steps: 1, picture_batch: 1, text_batch: 1, "
        "learning_rate: 1}"
    )
    for command in ("encoders", "vision"):
        if command == "vision":
            file.write_text(
                f"{{table: a.csv, out: {tmp_path}/out, steps: 1, batch_size: 1, learning_rate: 1}}"
            )
        words = ["train", command, str(file), "--table", str(tmp_path / "none.csv")]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 66
        assert "none.csv" in done.stderr
