"""Validating a table: every problem is found, with its line and whether it costs the answer."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.errors import InputError
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.table.check import check_table


def write_table(folder: Path, *rows: dict[str, object]) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"question_text": "Why?"} | row) + "\n" for row in rows))
    return path


def test_every_problem_is_found_by_its_line(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    path = write_table(
        tmp_path,
        {"id": "fine", "question_image": "good.png", "documents": ["good.png", "a text"]},
        {"documents": 5},
        {"question_image": "absent.png"},
        {"id": "worn", "documents": ["bad.png", "good.png", {"id": "x", "image": "absent.png"}]},
        {"answer_choices": ["a", "b"], "label": "c"},
        {"documents": ["a"], "relevant": [0, 1, "x"]},
    )
    found = [
        (item.line, item.id, item.problem.code, item.fatal)
        for item in check_table(path, ImageLoader(tmp_path))[1]
    ]
    assert found == [
        (2, "1", "bad_documents", True),
        (3, "2", "image_missing", True),
        (4, "worn", "image_corrupt", False),
        (4, "worn", "image_missing", False),
        (5, "4", "bad_label", False),
        (6, "5", "bad_relevant", False),
        (6, "5", "bad_relevant", False),
    ]


def test_a_problem_of_a_document_names_it(tmp_path: Path) -> None:
    path = write_table(tmp_path, {"documents": [{"id": "x", "image": "absent.png"}]})
    (finding,) = check_table(path, ImageLoader(tmp_path))[1]
    assert finding.problem.message.startswith("document 'x': 'absent.png': no such file")


def test_labels_and_relevance_that_fit_are_no_problem(tmp_path: Path) -> None:
    path = write_table(
        tmp_path,
        {"answer_choices": ["a", "b"], "label": "b", "documents": ["x"], "relevant": ["0"]},
        {"answer_choices": ["a", "b"], "label": None, "relevant": []},
        {"label": "anything"},
    )
    assert list(check_table(path, ImageLoader(tmp_path))[1]) == []


def test_an_image_of_many_rows_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "a.png")
    row: dict[str, object] = {"documents": ["a.png"]}
    path = write_table(tmp_path, row, row, row)
    images = ImageLoader(tmp_path)
    loaded: list[str] = []
    monkeypatch.setattr(images, "load", loaded.append)
    assert list(check_table(path, images)[1]) == []
    assert loaded == ["a.png"]


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path, {"id": "a"}, {"id": "a"})
    with pytest.raises(InputError, match="same id"):
        check_table(path, ImageLoader(tmp_path))


def test_a_column_that_predict_would_write_is_refused_as_predict_does(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("question_text,status\nWhat?,new\n")
    with pytest.raises(InputError, match="already has the output column 'status'"):
        check_table(path, ImageLoader(tmp_path))
