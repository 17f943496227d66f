"""Public benchmarks in the layout that each is published in, a few rows of our own in it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from mmrag_batch.datasets.dataset import DATASETS
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.records import Row
from mmrag_batch.table.check import check_table
from mmrag_batch.table.truth import read_labelled_rows
from tests.test_docs import named_commands


def picture(color: str, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(stream, kind)
    return stream.getvalue()


def write(file: Path, content: bytes | str | object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))


def write_parquet(file: Path, *rows: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), file)


def held(color: str) -> dict[str, object]:
    """A picture as the hub holds it."""
    return {"bytes": picture(color), "path": None}


def scienceqa(folder: Path) -> None:
    problem = {
        "question": "Which is a solid?",
        "choices": ["ice", "steam"],
        "answer": 0,
        "hint": "Look at the picture.",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade3",
        "subject": "natural science",
        "topic": "physics",
        "category": "States",
        "skill": "Identify solids",
        "lecture": "A solid keeps its shape.",
        "solution": "Ice is a solid.",
        "split": "test",
    }
    write(folder / "images/test/7/image.png", picture("red"))
    bare = problem | {"image": None, "hint": "", "lecture": "", "answer": 1, "split": "train"}
    write(folder / "problems.json", {"7": problem, "12": bare})


def a_okvqa(folder: Path) -> None:
    item = {
        "split": "val",
        "image_id": 461751,
        "question_id": "22jb",
        "question": "What is in his mouth?",
        "choices": ["toothpick", "food", "straw", "pipe"],
        "correct_choice_idx": 3,
        "direct_answers": ["pipe"] * 9 + ["straw"],
        "difficult_direct_answer": False,
        "rationales": ["He smokes."],
    }
    hidden = {key: item[key] for key in ("image_id", "question", "choices")}
    for split in ("val", "test"):
        write(folder / f"coco/{split}2017/000000461751.jpg", picture("red", "jpeg"))
    write(folder / "aokvqa_v1p0_val.json", [item])
    write(folder / "aokvqa_v1p0_test.json", [hidden | {"question_id": "x", "split": "test"}])


def mmmu(folder: Path) -> None:
    row: dict[str, Any] = {
        "id": "validation_Art_1",
        "question": "Which one, <image 1> or <image 2>?",
        "options": "['the first', \"Vermeer's\"]",
        "explanation": "",
        **{f"image_{number}": None for number in range(1, 8)},
        "image_1": held("red"),
        "image_2": held("blue"),
        "img_type": "['Paintings']",
        "answer": "B",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Painting",
    }
    open_row = row | {"id": "dev_Art_2", "options": "[]", "answer": "['1.5', '3/2']"}
    write_parquet(folder / "Art/validation-00000-of-00001.parquet", row)
    write_parquet(folder / "Art/dev-00000-of-00001.parquet", open_row | {"image_2": None})


def mrag_bench(folder: Path) -> None:
    row = {
        "id": 3,
        "aspect": "angle",
        "scenario": "Viewpoint",
        "image": held("red"),
        "gt_images": [held("green"), held("blue")],
        "question": "What is it?",
        "A": "a fox",
        "B": "a wolf",
        "C": "a dog",
        "D": "a cat",
        "answer_choice": "C",
        "answer": "a dog",
        "image_type": "photo",
        "source": "web",
        "retrieved_images": [held("white"), held("blue")],
    }
    write_parquet(folder / "data/test-00000-of-00001.parquet", row)


def webqa(folder: Path) -> None:
    lines = [
        f"{30_000_000 + number}\t".encode() + base64.b64encode(picture(color, "jpeg")) + b"\n"
        for number, color in enumerate(["red", "green"])
    ]
    write(folder / "imgs.tsv", b"".join(lines))
    write(folder / "imgs.lineidx", f"0\n{len(lines[0])}\n")
    images = [
        {"image_id": 30_000_000 + number, "title": f"A gate {number}", "caption": "", "url": ""}
        for number in range(2)
    ]
    snippet = {"title": "Gates", "fact": "A gate opens.", "url": "", "snippet_id": "d5_0"}
    item = {
        "Q": '"Which colour is the gate?"',
        "A": ['"The gate is green."'],
        "Topic": "gates",
        "split": "val",
        "Qcate": "color",
        "Guid": "d5",
        "img_posFacts": images[1:],
        "img_negFacts": images[:1],
        "txt_posFacts": [],
        "txt_negFacts": [snippet],
    }
    test = {"Q": '"And?"', "Qcate": "color", "txt_Facts": [snippet], "img_Facts": images}
    write(folder / "WebQA_train_val.json", {"d5": item})
    write(folder / "WebQA_test.json", {"d6": test})


LAYOUTS = {
    "scienceqa": scienceqa,
    "a-okvqa": a_okvqa,
    "mmmu": mmmu,
    "mrag-bench": mrag_bench,
    "webqa": webqa,
}


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def rows_of(folder: Path, name: str, *options: str, out: str = "out.csv") -> list[Row]:
    """The rows of a benchmark; none of them has a problem, its pictures included."""
    LAYOUTS[name](folder / "set")
    done = call("import", name, folder / "set", folder / out, *options)
    assert done.exit_code == 0, done.output
    assert list(check_table(folder / out, ImageLoader(folder))[1]) == []
    return list(read_labelled_rows(folder / out))


def facts(row: Row) -> tuple[Any, ...]:
    """What a row asks, and what is true of it."""
    question = row.question
    assert question is not None
    documents = [(item.id, item.text, item.image is not None) for item in question.documents]
    return question.choices, question.label, documents, question.relevant, row.cells["split"]


def test_every_benchmark_has_a_layout_here() -> None:
    assert set(LAYOUTS) == set(DATASETS)


def test_scienceqa_has_hints_and_lectures_as_evidence(tmp_path: Path) -> None:
    first, second = rows_of(tmp_path, "scienceqa")
    hint, lecture = "Look at the picture.", "A solid keeps its shape."
    documents = [("hint", hint, False), ("lecture", lecture, False)]
    assert facts(first) == (("ice", "steam"), 0, documents, {"hint", "lecture"}, "test")
    assert facts(second) == (("ice", "steam"), 1, [], frozenset(), "train")
    assert first.question is not None
    assert first.question.image == "set/images/test/7/image.png"
    assert (first.id, first.cells["subject"]) == ("7", "natural science")
    assert "Ice is a solid." not in map(str, first.cells.values())  # it says the answer


def test_a_okvqa_has_the_answers_of_people(tmp_path: Path) -> None:
    test, val = rows_of(tmp_path, "a-okvqa", out="out.jsonl")
    choices = ("toothpick", "food", "straw", "pipe")
    assert facts(val) == (choices, 3, [], None, "val")
    assert facts(test)[1:] == (None, [], None, "test")
    assert val.cells["answers"] == ["pipe"] * 9 + ["straw"]


def test_a_picture_that_is_not_there_is_counted(tmp_path: Path) -> None:
    a_okvqa(tmp_path / "set")
    (tmp_path / "set/coco/val2017/000000461751.jpg").unlink()
    done = call("import", "a-okvqa", tmp_path / "set", tmp_path / "out.csv")
    assert "1 pictures are named and not there" in done.stderr


@pytest.mark.parametrize("out", ["out.csv.gz", "out.tsv", "out.jsonl.gz", "out.parquet"])
def test_a_benchmark_is_written_as_any_table(out: str, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "mrag-bench", out=out)
    assert [facts(row) for row in rows] == [
        facts(row) for row in rows_of(tmp_path, "mrag-bench", out="plain.csv")
    ]


def test_mmmu_has_its_other_pictures_as_evidence(tmp_path: Path) -> None:
    dev, validation = rows_of(tmp_path, "mmmu", out="out.jsonl")
    choices = ("the first", "Vermeer's")
    documents = [("image 2", None, True)]
    assert facts(validation) == (choices, 1, documents, {"image 2"}, "validation")
    assert facts(dev) == ((), None, [], frozenset(), "dev")
    assert dev.cells["label"] == ["1.5", "3/2"]


def test_mrag_bench_has_each_picture_once(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, "mrag-bench")
    documents = [(str(number), None, True) for number in range(3)]
    choices = ("a fox", "a wolf", "a dog", "a cat")
    assert facts(row) == (choices, 2, documents, {"0", "1"}, "test")
    assert len(list((tmp_path / "out.csv.images").iterdir())) == 4


def test_webqa_has_snippets_and_pictures(tmp_path: Path) -> None:
    val, test = rows_of(tmp_path, "webqa", out="out.jsonl")
    gate, other = ("30000001", "A gate 1", True), ("30000000", "A gate 0", True)
    snippet = ("d5_0", "Gates: A gate opens.", False)
    assert facts(val) == ((), None, [gate, snippet, other], {"30000001"}, "val")
    assert facts(test) == ((), None, [snippet, other, gate], None, "test")
    assert val.question is not None
    assert val.question.text == "Which colour is the gate?"
    assert val.cells["label"] == ["The gate is green."]


IMPORTS = [words[1:] for words in named_commands() if words[1] == "import"]


@pytest.mark.parametrize("words", IMPORTS, ids=lambda words: words[1])
def test_the_commands_of_the_page_run_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    LAYOUTS[words[1]](Path(words[2]))
    done = call(*words)
    assert done.exit_code == 0, done.output
    assert list(read_labelled_rows(tmp_path / words[3]))


def test_the_page_has_a_command_for_each_of_them() -> None:
    assert sorted(words[1] for words in IMPORTS) == sorted(DATASETS)


def test_one_split_is_written_alone_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, "scienceqa", "--split", "train")
    assert row.id == "12"
    done = call("import", "scienceqa", tmp_path / "set", tmp_path / "b.csv", "--split", "dev")
    assert done.exit_code == 66
    assert "no split 'dev'; it has test, train" in done.stderr
    assert not (tmp_path / "b.csv").exists()


def test_a_table_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    scienceqa(tmp_path / "set")
    (tmp_path / "out.csv").write_text("mine")
    words = ["import", "scienceqa", tmp_path / "set", tmp_path / "out.csv"]
    assert call(*words).exit_code == 73
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert call(*words, "--overwrite").exit_code == 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_layout_is_told_and_writes_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    done = call("import", name, tmp_path / "set", tmp_path / "out.csv")
    assert (done.exit_code, done.exception.__class__) == (66, SystemExit)
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_a_row_that_is_not_as_published_is_named(tmp_path: Path) -> None:
    scienceqa(tmp_path / "set")
    problems = json.loads((tmp_path / "set/problems.json").read_text())
    del problems["12"]["choices"]
    write(tmp_path / "set/problems.json", problems)
    done = call("import", "scienceqa", tmp_path / "set", tmp_path / "out.csv")
    assert done.exit_code == 65
    assert "row 2 is not as scienceqa is published: KeyError: 'choices'" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_pictures_outside_the_folder_of_the_table_are_refused(tmp_path: Path) -> None:
    scienceqa(tmp_path / "set")
    (tmp_path / "else").mkdir()
    done = call("import", "scienceqa", tmp_path / "set", tmp_path / "else" / "out.csv")
    assert done.exit_code == 65
    assert "Write the table beside the benchmark's folder." in done.stderr
