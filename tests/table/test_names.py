"""Columns under other names: the same name is read, a near one is told, and a mapping is obeyed."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from mmrag_batch.declare import load_config
from mmrag_batch.errors import ConfigError, InputError, RowError
from mmrag_batch.table.cells import parse_documents
from mmrag_batch.table.names import find_columns, parse_names, tell_columns
from mmrag_batch.table.rows import read_header, read_rows, scan
from mmrag_batch.train.settings import GeneratorConfig

OTHERS = {
    "question_text": "What colour is it?",
    "image": "",
    "options": '["red", "blue"]',
    "answer": "red",
    "context": '["The thing is red."]',
}
MAPPING = "question_image=image,answer_choices=options,label=answer,documents=context"


def write_csv(folder: Path, *rows: dict[str, str], name: str = "in.csv") -> Path:
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path


def call(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "name", ["Documents", " documents", "DOCUMENTS ", "documents\u200b", "Documents_"]
)
def test_field_07_a_name_that_differs_in_what_nobody_reads_is_ours(
    tmp_path: Path, name: str
) -> None:
    path = write_csv(tmp_path, {"Question Text": "Why?", name: '["a"]', "note": "x"})
    (row,) = read_rows(path)
    assert row.question is not None
    assert [document.text for document in row.question.documents] == ["a"]
    assert dict(row.cells) == {"Question Text": "Why?", name: '["a"]', "note": "x"}
    assert f"{name!r} as `documents`" in call("validate", path)[1]


def test_field_07_two_columns_that_could_be_ours_are_told_and_neither_is_read(
    tmp_path: Path,
) -> None:
    path = write_csv(tmp_path, {"question_text": "a", "Label": "x", "LABEL": "y"})
    (row,) = read_rows(path)
    assert row.cells.get("label") is None
    (said,) = tell_columns(read_header(path))
    assert "'Label' (`label`), 'LABEL' (`label`)" in said


def test_field_07_a_column_that_is_there_is_not_looked_for_elsewhere() -> None:
    columns = ("question_text", "documents", "Documents", "context", "ID")
    assert find_columns(columns) == {}
    assert tell_columns(columns) == []


def test_field_07_ids_are_only_what_is_called_so(tmp_path: Path) -> None:
    row = {"question_text": "a", "ID": "same"}
    assert sum(1 for _ in scan(write_csv(tmp_path, row, row))) == 2


def test_field_07_near_names_are_told_by_validate_with_what_to_type(tmp_path: Path) -> None:
    path = write_csv(tmp_path, OTHERS)
    code, output = call("validate", path)
    assert code == 0
    for name in ("image", "options", "answer", "context"):
        assert f"{name!r} (`" in output
    assert f"--columns {MAPPING.replace('label=answer,documents=context', '')}" in output
    assert "1 problems; 0 rows would get no answer." in output
    code, output = call("validate", path, "--columns", MAPPING)
    assert (code, "not used" in output) == (0, False)
    assert "'context' as `documents`" in output


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("documets", "documents"),
        ("question_img", "question_image"),
        ("choices", "answer_choices"),
        ("ground_truth", "label"),
        ("Answers", "answer_choices"),
        ("Passages", "documents"),
    ],
)
def test_field_07_what_is_like_ours_is_told(name: str, ours: str) -> None:
    (said,) = tell_columns(("question_text", name))
    assert f"{name!r} (`{ours}`" in said


def test_field_07_predict_warns_once_and_a_mapping_is_kept(tmp_path: Path) -> None:
    path, out = write_csv(tmp_path, OTHERS, OTHERS | {"context": '["It is blue."]'}), "out.csv"
    predict = ("predict", path, tmp_path / out, "--engine", "scripted", "--device", "cpu")
    code, output = call(*predict)
    assert (code, output.count("not used")) == (0, 1)
    assert "'options' (`answer_choices`)" in output
    assert f"--columns {MAPPING}" in call(*predict, "--columns", MAPPING)[1]
    code, output = call(*predict, "--columns", MAPPING, "--fresh")
    assert (code, output.count("not used")) == (0, 0)
    assert "'options' as `answer_choices`" in output
    assert f"evaluate {tmp_path / out} --columns {MAPPING}" in output
    with (tmp_path / out).open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert list(first)[:5] == list(OTHERS)
    assert first["prediction"] in {"red", "blue"}
    assert json.loads(second["evidence"])[0]["id"] == "0"
    code, output = call("evaluate", tmp_path / out, "--columns", MAPPING, "--json")
    assert code == 0
    assert json.loads(output)["overall"]["accuracy"]["rows"] == 2
    assert "nothing to do" in call(*predict, "--columns", MAPPING)[1]


def test_field_07_the_column_of_a_mapping_goes_before_one_of_our_name(tmp_path: Path) -> None:
    path = write_csv(tmp_path, {"question_text": "short", "prompt": "the whole question"})
    (row,) = read_rows(path, names=parse_names("question_text=prompt"))
    assert row.question is not None
    assert row.question.text == "the whole question"


def test_field_07_a_question_under_another_name_is_told_with_its_mapping(tmp_path: Path) -> None:
    path = write_csv(tmp_path, {"prompt": "Why?", "image": ""})
    with pytest.raises(InputError, match=r"'prompt'.*--columns question_text=prompt"):
        read_header(path)
    assert read_header(path, {"question_text": "prompt"}) == ("prompt", "image")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("question=image", "did you mean 'question_text'"),
        ("wheels=image", "known: id, question_text"),
        ("label=a,label=b", "'label' is given twice"),
    ],
)
def test_field_07_a_mapping_of_what_is_not_ours_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_names(text)


def test_field_07_a_mapping_to_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path, {"question_text": "a"})
    with pytest.raises(InputError, match="no column 'picture', as --columns"):
        read_header(path, {"question_image": "picture"})
    assert call("validate", path, "--columns", "label")[0] == 78


def test_field_07_training_reads_the_same_mapping(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    lines = "base: a\ntable: b\nout: c\nsteps: 1\nbatch_size: 1\nlearning_rate: 1\ntop_k: 1\n"
    lines += f"max_images: 1\nscoring: letter\ncolumns: {MAPPING}\n"
    file.write_text(lines)
    assert parse_names(load_config(file, GeneratorConfig).columns)["label"] == "answer"
    file.write_text(lines.replace(MAPPING, "nonsense"))
    with pytest.raises(ConfigError, match="expected our names"):
        load_config(file, GeneratorConfig)


def test_field_07_the_title_of_a_document_is_text_before_its_text() -> None:
    documents = parse_documents(
        [
            {"title": "Cranes", "text": "They lift."},
            {"title": "Only a title"},
            {"title": "A photo", "image": "a.png"},
            {"title": None, "Text": "no title"},
        ]
    )
    texts = [document.text for document in documents]
    assert texts == ["Cranes\nThey lift.", "Only a title", "A photo", "no title"]


def test_field_07_keys_of_documents_are_told_once(tmp_path: Path) -> None:
    documents = json.dumps([{"doc_id": "a", "Text": "x"}, {"doc_id": "b", "Text": "y"}])
    row = {"question_text": "a", "documents": documents}
    path = write_csv(tmp_path, row, row)
    predict = ("predict", path, tmp_path / "out.csv", "--engine", "scripted", "--device", "cpu")
    for command in (("validate", path), predict):
        code, output = call(*command)
        assert (code, output.count("'doc_id' (`id`)")) == (0, 1)
        assert output.count("key 'Text' of documents is read as `text`") == 1
    mapped = call("validate", path, "--columns", "documents.id=doc_id")[1]
    assert "doc_id" not in mapped


def test_field_07_an_id_with_an_underscore_is_an_id() -> None:
    notes: list[str] = []
    (document,) = parse_documents([{"_id": "a", "text": "x"}], notes=notes)
    assert document.id == "a"
    assert notes == ["key '_id' of documents is read as `id`."]


@pytest.mark.parametrize("key", ["content", "passage", "Contents"])
def test_field_07_a_document_without_a_text_says_what_could_be_one(key: str) -> None:
    with pytest.raises(RowError, match=f"{key}.*`text`.*--columns documents.text={key}"):
        parse_documents([{key: "The LX-10 lifts 10 t."}])
    (document,) = parse_documents([{key: "It lifts."}], {"documents.text": key})
    assert document.text == "It lifts."
