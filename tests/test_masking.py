"""What is a secret in a message, and what is not."""

import logging
import sys
from pathlib import Path

import pytest

from mmrag_batch.errors import RowError
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.masking import MaskingFormatter, mask
from mmrag_batch.records import Document, Prediction, Problem, Question, Row
from mmrag_batch.run.answers import answer_of, to_kept
from mmrag_batch.sources import document_problem
from mmrag_batch.table.cells import parse_choices


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("see https://me:pw@example.org/a.png", "see https://***@example.org/a.png"),
        ("https://example.org/a?sig=abc&x=1", "https://example.org/a?sig=***&x=1"),
        ("a token=abc, b", "a token=*** b"),
        ("hf_" + "a" * 20 + " and sk-" + "b" * 20, "*** and ***"),
        ("ghp_" + "c" * 36, "***"),
        ("AKIA" + "A" * 16, "***"),
        ("eyJ" + "a" * 12 + "." + "b" * 12 + "." + "c" * 8, "***"),
        ("the risk-of-being-too-careful-here", "the risk-of-being-too-careful-here"),
        ("mail me@example.org at 5 o'clock", "mail me@example.org at 5 o'clock"),
        ("images/a.png: no such file", "images/a.png: no such file"),
    ],
)
def test_f13_tokens_and_passwords_are_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("at https://me:p@ss@host/a.png,", "at https://***@host/a.png,"),
        ("at 'https://me:p/ss@host/a.png'", "at 'https://***@host/a.png'"),
        ("https://me:a/b@c/d@host/x", "https://***@host/x"),
        ("https://me:a@b/c@host/x", "https://***@host/x"),
        ("https://token@with@host/x", "https://***@host/x"),
        ("https://:secret@host/x", "https://***@host/x"),
        ("http://host:8000/@me/a.png", "http://host:8000/@me/a.png"),
        ("https://host/@me/a.png", "https://host/@me/a.png"),
        ("Authorization: Bearer abc.DEF-123=", "Authorization: Bearer ***"),
        ("the bearer of news", "the bearer of news"),
    ],
)
def test_n01_passwords_with_any_character_are_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_n01_what_a_row_failed_of_is_filed_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = "ghp_" + "c" * 36
    monkeypatch.setenv("OPENAI_API_KEY", "correct horse battery")
    question = Question("What?", None, (), (Document(key, "a text", "a.png"),), None, None)
    echoed = Problem("engine_failed", "The server could not answer: Bearer correct horse battery")
    failed = Row(0, 2, key, {}, question=question, error=echoed)
    degraded = Row(1, 3, key, {}, question=question, prediction=Prediction("x"))
    problem = document_problem(question.documents[0], RowError("image_missing", "no such file"))
    degraded.problems.append(problem)
    for row in (failed, degraded):
        kept = to_kept(answer_of(row), start=0, images=b"")
        assert "***" in kept.answer.decode()
        assert key not in kept.answer.decode()
        assert "horse" not in kept.answer.decode()


def test_f13_the_secrets_of_the_environment_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_API_KEY", "correct horse battery")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert mask("sent 'correct horse battery' as a") == "sent '***' as a"


def test_f13_the_error_of_a_row_shows_no_secret_of_its_cells() -> None:
    with pytest.raises(RowError) as caught:
        parse_choices("hf_" + "a" * 30)
    assert str(caught.value).endswith("found '***'")


def test_f13_the_error_of_an_image_shows_no_password(tmp_path: Path) -> None:
    with pytest.raises(RowError) as caught:
        ImageLoader(tmp_path).load("https://me:pw@host/a.png")
    assert "pw" not in str(caught.value)
    assert "'https://***@host/a.png'" in str(caught.value)


def test_f13_a_log_record_is_masked_with_its_traceback() -> None:
    try:
        raise ValueError("https://me:pw@host refused")
    except ValueError:
        info = sys.exc_info()
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "with %s", ("ghp_" + "c" * 36,), info)
    text = MaskingFormatter("%(message)s").format(record)
    assert text.startswith("with ***\n")
    assert text.endswith("ValueError: https://***@host refused")
