"""What `explain` says of a row, on the packaged bundle: real retrieval, real prompts."""

import csv
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from mmrag_batch.bundle import hash_files, read_manifest, write_manifest
from mmrag_batch.generation.engine import Request
from mmrag_batch.generation.engine import Result as EngineResult
from mmrag_batch.generation.engines import scripted
from mmrag_batch.generation.engines.scripted_worker import VARIABLE
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.settings import DEMO_BUNDLE
from tests.run.parts import call

ROOT = Path(__file__).parents[2]
DEMO, PAGE = ROOT / "examples" / "demo", ROOT / "docs" / "evaluation.md"
RIGHT, WRONG, LOST, PAINTED = "45-1", "45-35", "45-20", "45-2"
LONG, NO_PICTURE, FREE, FAILED = "long", "no picture", "free", "failed"
NAMES = (RIGHT, WRONG, LOST, PAINTED, LONG, NO_PICTURE, FREE, FAILED)
SPECIAL = "What does <|eot_id|> mean?"
TEXTS = [f"The {word} moon is made of wax. " * 300 for word in ("red", "purple", "blue")]


def read(table: Path) -> dict[str, dict[str, str]]:
    with table.open(newline="") as stream:
        return {row["id"]: row for row in csv.DictReader(stream)}


def write(table: Path, rows: Mapping[str, Mapping[str, str]]) -> None:
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[RIGHT]))
        writer.writeheader()
        writer.writerows(rows.values())


def predict(folder: Path, *options: object, environ: Mapping[str, str] = {}) -> Result:
    arguments = (folder / "in.csv", folder / "out.csv", "--engine", "scripted", *options)
    return call("predict", *arguments, environ=environ)


@pytest.fixture(scope="module")
def asked() -> Iterator[dict[str, Request]]:
    """What the engine of that run was asked, the first of each row."""
    requests: dict[str, Request] = {}
    by_hash = scripted.answer

    def answer(request: Request, digest: bytes | None = None) -> EngineResult:
        requests.setdefault(NAMES[request.key[0]], request)
        return by_hash(request, digest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripted, "answer", answer)
        yield requests


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, asked: dict[str, Request]) -> Path:
    """A folder with a run of NAMES; the labels of two are what it answered, and something else."""
    folder = tmp_path_factory.mktemp("ran")
    shutil.copytree(DEMO / "images", folder / "images")
    demo = read(DEMO / "questions.csv")
    rows = {name: demo[name] for name in (RIGHT, WRONG, LOST, PAINTED)}
    moon = demo["45-3"]
    rows[LONG] = moon | {"id": LONG, "documents": json.dumps(TEXTS), "relevant": "[1]"}
    rows[NO_PICTURE] = moon | {"id": NO_PICTURE, "question_image": "images/gone.jpg"}
    nothing = dict.fromkeys(moon, "")
    rows[FREE] = nothing | {"id": FREE, "question_text": SPECIAL, "label": "an end"}
    rows[FAILED] = moon | {"id": FAILED, "question_text": "What is a purple moon?"}
    assert tuple(rows) == NAMES
    write(folder / "in.csv", rows)
    too_large = json.dumps({"oom": [NAMES.index(FAILED)]})
    assert predict(folder, environ={VARIABLE: too_large}).exit_code == 3
    recorded = dict(asked)
    told = read(folder / "out.csv")
    choices = json.loads(rows[WRONG]["answer_choices"])
    rows[RIGHT]["label"] = told[RIGHT]["prediction"]
    rows[WRONG]["label"] = next(one for one in choices if one != told[WRONG]["prediction"])
    write(folder / "in.csv", rows)
    assert predict(folder).exit_code == 3
    assert asked == recorded  # a label changes no answer
    return folder


def explain(folder: Path, row: object, *options: object) -> dict[str, Any]:
    done = call("explain", folder / "out.csv", row, "--json", *options)
    assert done.exit_code == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    return values


@cache
def whole(ran: Path, row: str) -> Mapping[str, Any]:
    """The same of the run that nothing happened to."""
    return explain(ran, row)


def text(folder: Path, row: object, *options: object) -> str:
    done = call("explain", folder / "out.csv", row, *options)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def fates(values: Mapping[str, Any]) -> dict[str, str]:
    return {one["id"]: one["fate"] for one in values["documents"]}


def test_a_right_row_is_told_from_question_to_answer(ran: Path) -> None:
    row, values = read(ran / "out.csv")[RIGHT], whole(ran, RIGHT)
    assert (values["row"], values["line"], values["notes"]) == (0, 2, [])
    assert values["question"]["picture"]["size"] == [97, 103]
    ranked = [one for one in values["documents"] if one["rank"]]
    assert [one["rank"] for one in ranked] == list(range(1, 11))
    assert [
        {"id": one["id"], "score": round(one["score"], 4)} for one in ranked if one["rank"] <= 3
    ] == json.loads(row["evidence"])
    assert [one["id"] for one in ranked if one["relevant"]] == ["7"]
    prompt = values["prompt"]
    assert prompt["text"].startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>")
    assert "[1] This thing belongs to Paul." in prompt["text"]
    assert prompt["images"] == ["images/00001-q.jpg"]
    assert 0 < prompt["tokens"] < prompt["limit"] == 1024
    assert values["answer"]["right"] is True
    assert values["answer"]["probabilities"] == json.loads(row["choice_probabilities"])
    said = text(ran, 0)
    assert "<|image|> [images/00001-q.jpg]Evidence:" in said
    assert said.endswith("\n  right\n")
    assert max(map(len, said.splitlines())) <= 100


def test_a_wrong_row_shows_what_was_right(ran: Path) -> None:
    said = text(ran, WRONG)
    label = read(ran / "out.csv")[WRONG]["label"]
    assert f"{label}   <- label\n" in said
    assert said.endswith("\n  wrong\n")


def test_a_document_that_cannot_be_read_is_named_with_its_reason_and_what_to_do(ran: Path) -> None:
    values = whole(ran, LOST)
    [lost] = [one for one in values["documents"] if one["fate"] == "unreadable"]
    assert (lost["id"], lost["rank"], lost["picture"]["size"]) == ("1", None, None)
    assert lost["problem"].startswith("image_missing: 'images/lost.jpg'")
    assert values["answer"]["status"] == "degraded"
    assert values["next"].endswith(" --engine scripted --retry-degraded")


def test_the_page_shows_a_row_as_it_is(ran: Path) -> None:
    blocks = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    [shown] = [block for block in blocks if "Question\n" in block]
    shown, said = (
        one[one.index("Question\n") : one.index("Answer:")] for one in (shown, text(ran, LOST))
    )
    assert shown == said


def test_what_a_prompt_has_no_room_for_is_told_as_cut_or_shortened(ran: Path) -> None:
    values = whole(ran, LONG)
    assert fates(values) == {"1": "shortened", "0": "cut", "2": "cut"}
    best = values["documents"][0]
    assert best["relevant"] and TEXTS[1].startswith(best["kept_text"])
    assert values["prompt"]["limit"] - 10 < values["prompt"]["tokens"] <= values["prompt"]["limit"]
    assert values["notes"] == []
    said = text(ran, LONG)
    assert f"the first {len(best['kept_text']):,} of its {len(TEXTS[1]):,} characters" in said


def test_a_row_that_failed_is_shown_with_the_error_and_the_next_command(ran: Path) -> None:
    values, said = whole(ran, NO_PICTURE), text(ran, NO_PICTURE)
    assert values["prompt"] is None
    assert values["unsent"].startswith("image_missing: question_image: 'images/gone.jpg'")
    assert values["answer"]["error"] == read(ran / "out.csv")[NO_PICTURE]["error"]
    assert values["notes"] == []
    assert "picture: images/gone.jpg (cannot be read): image_missing" in said
    assert said.endswith(f"  Next: mend the cause, then\n    {values['next']}\n")
    command, verb, table, *others = shlex.split(values["next"])
    assert (command, verb) == ("mmrag-batch", "predict")
    assert Path(table).samefile(ran / "in.csv")
    assert others == [str(ran / "out.csv"), "--engine", "scripted", "--retry-errors"]


def test_a_row_that_the_engine_failed_at_is_shown_with_what_it_was_sent(ran: Path) -> None:
    values = explain(ran, FAILED)
    assert values["notes"] == []
    assert values["prompt"]["tokens"] > 0
    assert values["answer"]["error"].startswith("engine_oom: line 9: ")
    assert values["next"].endswith("--retry-errors")


def test_the_prompt_is_the_one_that_the_engine_got(ran: Path, asked: dict[str, Request]) -> None:
    renderer = Renderer(DEMO_BUNDLE / "generator")
    for name in (RIGHT, LONG, FREE):
        prompt, tokens = whole(ran, name)["prompt"], asked[name].token_ids
        assert "".join(renderer.show(tokens[: prompt["tokens"]])) == prompt["text"]
        assert len(tokens) - prompt["tokens"] <= 1  # up to the first fork of its choices


def test_what_is_typed_is_told_from_the_special_tokens_of_the_template(ran: Path) -> None:
    values = whole(ran, FREE)
    assert values["notes"] == [
        "<|eot_id|> stands in a text of the row: to the generator these are characters."
    ]
    assert values["documents"] == []
    assert values["question"]["answers"] == ["an end"]
    assert values["answer"]["right"] is False
    assert values["answer"]["confidence_per_token"] > 0


def test_pictures_that_changed_after_the_run_are_told(ran: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(ran, folder)
    assert explain(folder, PAINTED)["notes"] == []
    shutil.copy(folder / "images" / "00001-q.jpg", folder / "images" / "00002-q.jpg")
    values = explain(folder, PAINTED)
    assert values["notes"][0].startswith("A picture of the row has changed")
    assert any(note.startswith(("The scores are", "The evidence was")) for note in values["notes"])
    assert values["next"].endswith("--verify-inputs")
    (folder / "images" / "00002-q.jpg").unlink()
    values = explain(folder, PAINTED)
    assert any(note.startswith("It would fail now: image_missing") for note in values["notes"])


def test_another_bundle_or_none_is_told(ran: Path, tmp_path: Path) -> None:
    missing = explain(ran, RIGHT, "--bundle", tmp_path / "gone")
    assert "is no bundle" in missing["unranked"]
    assert missing["answer"]["right"] is True
    assert set(fates(missing).values()) == {"unranked"}
    bare = tmp_path / "bare"
    shutil.copytree(DEMO_BUNDLE / "generator", bare / "generator")
    manifest = read_manifest(DEMO_BUNDLE)
    write_manifest(bare, replace(manifest, retriever=None, files=hash_files(bare)))
    (bare / "generator" / "model.safetensors").unlink()  # it is not looked at
    values = explain(ran, RIGHT, "--bundle", bare)
    assert "has no retriever" in values["unranked"]
    assert "Evidence" not in values["prompt"]["text"]
    assert values["notes"][0].startswith("Ranking and prompt are made with something else")
    assert "bundle: was " in values["notes"][0]
    assert "The evidence was '7', '9', '2' and is empty now" in values["notes"][1]


def test_a_row_that_is_not_there_is_told_with_what_there_is(ran: Path, tmp_path: Path) -> None:
    done = call("explain", ran / "out.csv", "45-99")
    assert done.exit_code == 66
    assert "has no row 45-99: its rows are 0 to 7, with ids such as '45-1', '45-35'" in done.stderr
    done = call("explain", tmp_path / "out.csv", "0")
    assert done.exit_code == 66
    assert "Run `mmrag-batch predict INPUT" in done.stderr
    done = call("explain", ran / "in.csv", "0")
    assert done.exit_code == 65
    assert "has no column prediction" in done.stderr


def test_shards_are_explained_before_they_are_merged(ran: Path, tmp_path: Path) -> None:
    table = tmp_path / "in.csv"
    write(table, {name: row for name, row in read(ran / "in.csv").items() if name in (RIGHT, FREE)})
    assert predict(tmp_path, "--shard", "0/2", "--image-root", ran).exit_code == 0
    values, output = explain(tmp_path, RIGHT), tmp_path / "out.csv"
    assert values["answer"] == whole(ran, RIGHT)["answer"]
    assert values["notes"] == [f"{output} is not there yet: this is what is known so far."]
    later = explain(tmp_path, FREE)
    assert (later["row"], later["answer"]) == (1, None)
    assert later["prompt"]["tokens"] > 0
    assert later["next"] == f"mmrag-batch merge {output}"


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_outputs_of_other_formats_and_names_are_read_as_the_run_read_them(
    ran: Path, tmp_path: Path, name: str
) -> None:
    table = (ran / "in.csv").read_text().replace(",documents,label,", ",facts,answer,", 1)
    (tmp_path / "in.csv").write_text(table)
    store = shutil.copy(ran / "out.csv.store", tmp_path / "answers")
    names = ("--columns", "documents=facts,label=answer", "--image-root", ran, "--store", store)
    output = tmp_path / name
    done = call("predict", tmp_path / "in.csv", output, "--engine", "scripted", *names)
    assert "0 to ask" in done.stderr
    done = call("explain", output, LOST, "--json", "--store", store)
    values, before = json.loads(done.stdout), whole(ran, LOST)
    for part in ("notes", "question", "documents", "prompt", "answer"):
        assert values[part] == before[part]
    assert shlex.split(values["next"])[-3:] == ["--store", str(store), "--retry-degraded"]


def test_an_output_alone_is_explained_as_far_as_that_goes(ran: Path, tmp_path: Path) -> None:
    shutil.copy(ran / "out.csv", tmp_path)
    environ = {"MMRAG_ENGINE": "chat", "MMRAG_MODEL": "theirs"}
    done = call("explain", tmp_path / "out.csv", RIGHT, "--image-root", ran, environ=environ)
    assert done.exit_code == 0, done.stderr
    assert "No manifest says what" in done.stdout
    assert "as messages: the server has the chat template" in done.stdout
    assert "<image> [images/00001-q.jpg]Evidence:" in done.stdout
    assert "  A. Jonas" not in done.stdout.partition("Prompt:")[0]
    assert "A. Jonas" in done.stdout
