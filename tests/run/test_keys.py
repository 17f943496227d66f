"""The key of an answer follows what a question means and how it is asked, and nothing else."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmrag_batch.bundle import BundleManifest, read_manifest
from mmrag_batch.declare import settings_of
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.records import Document, Question
from mmrag_batch.run.keys import (
    KEY_BYTES,
    answer_settings,
    differences,
    digest_images,
    digest_of,
    key_maker,
)
from mmrag_batch.run.plan import find_answer_settings
from mmrag_batch.settings import DEMO_BUNDLE, PredictSettings
from mmrag_batch.table.cells import parse_question

TEXT = st.text(min_size=1, max_size=5)
DOCUMENTS = st.builds(Document, TEXT, st.none() | TEXT, st.none() | TEXT)
QUESTIONS = st.builds(
    Question,
    text=TEXT,
    image=st.none() | TEXT,
    choices=st.lists(TEXT, max_size=3).map(tuple),
    documents=st.lists(DOCUMENTS, max_size=3).map(tuple),
    label=st.none() | st.integers(0, 3),
    relevant=st.none() | st.frozensets(TEXT, max_size=2),
)
CELLS = {
    "question_text": "What?",
    "question_image": "a.png",
    "answer_choices": '["x", "y"]',
    "documents": '["t", {"id": "d", "image": "i.png"}]',
    "label": "x",
    "relevant": "[0]",
    "note": "n",
}


def meaning(question: Question) -> tuple[object, ...]:
    return (question.text, question.image, question.choices, question.documents)


@given(one=QUESTIONS, other=QUESTIONS)
def test_questions_have_one_key_where_they_mean_the_same(one: Question, other: Question) -> None:
    key_of = key_maker({"top_k": 1})
    assert (key_of(one) == key_of(other)) == (meaning(one) == meaning(other))
    assert len(key_of(one)) == KEY_BYTES
    assert key_of(one) != key_maker({"top_k": 2})(one)


@pytest.mark.parametrize(
    "change",
    [
        {"answer_choices": "['x','y']"},
        {"answer_choices": ["x", "y"]},
        {"documents": '[ "t",{"image":"i.png","id":"d"} ]'},
        {"label": "y"},
        {"relevant": ""},
        {"note": "another"},
    ],
    ids=json.dumps,
)
def test_how_a_cell_is_written_and_what_only_evaluation_needs_is_not_in_a_key(
    change: dict[str, object],
) -> None:
    key_of = key_maker({})
    assert key_of(parse_question(CELLS | change)) == key_of(parse_question(CELLS))


@pytest.mark.parametrize(
    "change",
    [
        {"question_text": "What? "},
        {"question_image": "b.png"},
        {"question_image": ""},
        {"answer_choices": '["y", "x"]'},
        {"answer_choices": ""},
        {"documents": '["t", {"id": "e", "image": "i.png"}]'},
        {"documents": '["t"]'},
    ],
    ids=json.dumps,
)
def test_whatever_may_change_an_answer_is_in_a_key(change: dict[str, object]) -> None:
    key_of = key_maker({})
    assert key_of(parse_question(CELLS | change)) != key_of(parse_question(CELLS))


def settings(bundle: BundleManifest | None = None, **changes: object) -> dict[str, object]:
    asked = {"engine": "auto", "model": None, "top_k": None, "max_images": None}
    return answer_settings(bundle or read_manifest(DEMO_BUNDLE), asked | changes)


def test_an_engine_that_runs_the_bundle_changes_no_answer_and_others_do() -> None:
    assert settings(engine="vllm") == settings(engine="transformers") == settings()
    assert settings(top_k=3) == settings()  # which is what the bundle says
    told = differences(settings(), settings(engine="server", model="m", top_k=2))
    assert sorted(told) == [
        "engine: was the bundle's, is server",
        "model: was not set, is m",
        "top_k: was 3, is 2",
    ]


def test_other_weights_are_other_settings() -> None:
    manifest = read_manifest(DEMO_BUNDLE)
    other = replace(manifest, files=manifest.files | {"generator/model.safetensors": "0" * 64})
    (told,) = differences(settings(), settings(other))
    assert told.startswith("bundle: was ")
    assert len(told) < 60


def test_every_setting_that_is_declared_to_change_answers_does(tmp_path: Path) -> None:
    declared = {
        name for name, setting in settings_of(PredictSettings).items() if setting.changes_answers
    }
    assert declared == {"engine", "model", "candidates", "top_k", "max_images", "max_new_tokens"}
    run = PredictSettings(tmp_path / "in.csv", tmp_path / "out.csv", engine="server")
    others = {"engine": "scripted", "model": "m", "top_k": 1, "max_images": 7}
    for name, value in (others | {"max_new_tokens": 7}).items():
        changed = replace(run, **{name: value})  # type: ignore[arg-type]
        assert differences(find_answer_settings(run), find_answer_settings(changed)), name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)
    return tmp_path


def asked(*documents: str) -> Question:
    items = tuple(Document(str(n), None, image) for n, image in enumerate(documents))
    return Question("What?", "a.png", (), items, None, None)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a.png").unlink(),
        lambda root: (root / "b.png").write_bytes((root / "a.png").read_bytes()),
        lambda root: (root / "late.png").write_bytes((root / "a.png").read_bytes()),
    ],
    ids=["gone", "another", "come"],
)
def test_images_have_one_digest_until_one_is_gone_another_or_there_at_last(
    root: Path, change: Callable[[Path], object]
) -> None:
    question = asked("b.png", "late.png", "data:image/png;base64,AAAA")
    before = digest_images(question, ImageLoader(root))
    assert digest_images(question, ImageLoader(root)) == before
    assert len(before) == KEY_BYTES
    change(root)
    assert digest_images(question, ImageLoader(root)) != before


def test_a_question_without_image_files_has_no_digest(root: Path) -> None:
    question = Question("What?", "data:image/png;base64,AAAA", (), (), None, None)
    assert digest_images(question, ImageLoader(root)) == digest_of({}) == b""
