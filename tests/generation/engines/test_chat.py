"""What a chat server is asked, and what is made of its answers; whether it is there or busy is
tested with the server engine's (`test_server_away.py`)."""

import base64
import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from mmrag_batch.errors import UnavailableError
from mmrag_batch.generation.asking import AnswerRequest, AnswerResult, ask
from mmrag_batch.generation.engines.chat import (
    COMPLETIONS,
    SMALL,
    ChatDialect,
    Step,
    find_letter,
    letter_logits,
)
from mmrag_batch.generation.engines.http import Refused
from mmrag_batch.generation.engines.remote import RemoteWorker
from mmrag_batch.generation.rendering import Unrendered
from mmrag_batch.generation.supervisor import Supervisor
from mmrag_batch.prompt import PromptSpec, build_prompt
from mmrag_batch.records import Question, Usage
from mmrag_batch.report.metrics import evaluate
from mmrag_batch.settings import DEMO_BUNDLE
from tests.generation.conftest import by_key
from tests.generation.engines.stand_in import TOP, Reply, StandIn, chat_answer

LONGEST = 12
NUMBER = "9"


@pytest.fixture
def open_engine(stand_in: StandIn) -> Iterator[Callable[[], Supervisor]]:
    opened: list[Supervisor] = []

    def open_engine() -> Supervisor:
        dialect = ChatDialect(LONGEST)

        def connect() -> RemoteWorker:
            return RemoteWorker(
                stand_in.endpoint, dialect, model="demo", key=None, connections=8, row_timeout=60
            )

        opened.append(Supervisor(connect, window=8, elsewhere=True))
        return opened[-1]

    yield open_engine
    for engine in opened:
        engine.close()


def request(
    key: int = 0, *, choices: tuple[str, ...] = ("red", "blue", "green"), image: bool = False
) -> AnswerRequest:
    question = Question(f"What is {key}?", "q.png" if image else None, choices, ())
    prompt, unrendered = build_prompt(question, (), PromptSpec(1, 0, "letter")), Unrendered()
    return AnswerRequest(
        key,
        tuple(unrendered.render(prompt.messages)),
        (Image.new("RGB", (3, 2), "red"),) if image else (),
        tuple(unrendered.answer_ids(letter) for letter in "ABCDEFGH"[: len(choices)]),
        prompt.messages,
    )


def answer(engine: Supervisor, asked: AnswerRequest) -> AnswerResult:
    [result] = ask(engine, [asked])
    return result


def bodies(stand_in: StandIn, *, small: bool = False) -> list[Any]:
    """What was asked of the model: small questions, or rows."""
    asked = [body for path, body in stand_in.asked if path == COMPLETIONS]
    return [body for body in asked if (body["messages"] == list(SMALL)) == small]


def say(reply: object) -> Reply:
    return json.dumps(reply).encode()


def refuse(message: str) -> Reply:
    return 400, json.dumps({"error": {"message": message}}).encode()


def rows_get(reply: Callable[[Any], Reply]) -> Callable[[str, Any], Reply]:
    """A reply to rows alone."""
    return lambda path, body: (
        reply(body) if path == COMPLETIONS and body["messages"] != list(SMALL) else 200
    )


def test_a_choice_is_one_token_with_the_likeliest_of_it(
    stand_in: StandIn, open_engine: Callable[[], Supervisor]
) -> None:
    result = answer(open_engine(), request(image=True))
    [body] = bodies(stand_in)
    [message] = body.pop("messages")
    assert body == {
        "model": "demo",
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
        "structured_outputs": {"choice": ["A", "B", "C"]},
    }
    image, text = message["content"]
    assert message["role"] == "user"
    assert text == request(image=True).messages[0]["content"][1]
    head, _, data = image["image_url"]["url"].partition(",")
    assert (image["type"], head) == ("image_url", "data:image/png;base64")
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (shown.size, shown.getpixel((0, 0))) == ((3, 2), (255, 0, 0))
    a, b, c = math.exp(-0.5) + math.exp(-3.0), math.exp(-1.5), math.exp(-3.0)
    assert result.probabilities == pytest.approx([p / (a + b + c) for p in (a, b, c)])
    assert (result.error, result.usage) == (None, Usage(10, 1))


def test_a_free_form_answer_has_the_probability_of_its_tokens(
    stand_in: StandIn, open_engine: Callable[[], Supervisor]
) -> None:
    engine = open_engine()
    stand_in.reply = rows_get(lambda body: say(chat_answer(" a hat ", top=[("a", -0.25)])))
    result = answer(engine, request(choices=()))
    [body] = bodies(stand_in)
    assert (body["max_tokens"], body["logprobs"], "top_logprobs" in body) == (LONGEST, True, False)
    assert result.text == "a hat"
    assert result.text_probability is not None
    assert result.text_probability.whole == pytest.approx(math.exp(-0.25))
    stand_in.reply = rows_get(lambda body: say(chat_answer("a hat")))
    assert answer(engine, request(choices=())).text_probability is None


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ([("B", -0.1), ("A", -2.5), ("C", -4.0), ("The", -9.0)], (-2.5, -0.1, -4.0)),
        ([("\u2581B", -0.1), ("The", -9.0)], (-9.0, -0.1, -9.0)),
        ([("B", -0.1), ("C", -9999.0), ("A", -9999.0)], (-0.1, -0.1, -0.1)),
        ([("B", -0.1), ("b", -1.0), ("Bee", -2.0)], (-2.0, -0.1, -2.0)),
        ([("The", -0.1), ("a", -1.0)], ()),
        ([("C", -9999.0)], ()),
    ],
)
def test_a_letter_that_is_not_listed_is_no_likelier_than_the_last_that_is(
    top: list[tuple[str, float]], expected: tuple[float, ...]
) -> None:
    assert letter_logits([Step(0.0, tuple(top))], "ABC") == pytest.approx(expected)


@pytest.mark.parametrize("number", [math.nan, math.inf, 5.0, -math.inf])
def test_a_log_probability_that_is_no_number_is_refused(number: float) -> None:
    with pytest.raises(Refused, match="not a finite number"):
        letter_logits([Step(0.0, (("A", number), ("B", -1.0)))], "AB")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *(("B", "B"), ("b", "B"), (" B.\n", "B"), ("**B**", "B"), ("(B)", "B"), ("__B__", "B")),
        *(("Answer: B", "B"), ("The correct answer is **B**.", "B"), ('{"answer": "B"}', "B")),
        *(("B. blue", None), ("A or B", None), ("", None), ("Blue", None), ("AB", None)),
        *(("I think B", None), ("answerB", None), ('{"answer": ""}', None), ("7", None)),
        (" " * 10**6, None),
        ("the " * 10**5, None),
        ("The correct" + " " * 10**6, None),
    ],
)
def test_a_reply_names_a_letter_or_none(text: str, letter: str | None) -> None:
    assert find_letter(text) == letter


def untold(body: Any) -> Reply:
    return say(chat_answer('{"answer": "C"}' if "response_format" in body else "C"))


def test_without_log_probabilities_a_letter_is_written_and_this_is_said_once(
    stand_in: StandIn, open_engine: Callable[[], Supervisor], caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.reply = lambda path, body: untold(body) if path == COMPLETIONS else 200
    results = by_key(ask(open_engine(), [request(key) for key in range(20)]))
    assert {(one.chosen, one.probabilities, one.error) for one in results.values()} == {
        (2, (), None)
    }
    assert caplog.text.count("gives no log-probabilities") == 1
    asked = bodies(stand_in)
    assert len(asked) == 20
    for body in asked:
        assert "logprobs" not in body
        assert body["max_tokens"] == LONGEST
        schema = body["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["answer"]["enum"] == ["A", "B", "C"]


def test_choices_without_probabilities_are_counted_and_said(
    stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in.reply = lambda path, body: untold(body) if path == COMPLETIONS else 200
    rows = ["question_text,answer_choices,label"]
    rows += [f'What is {number}?,"[""a"", ""b"", ""c""]",c' for number in range(5)]
    (tmp_path / "in.csv").write_text("\n".join([*rows, "What else?,,C", ""]))
    ignored = shutil.ignore_patterns("generator")
    shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle", ignore=ignored)
    words = ["--bundle", tmp_path / "bundle", "--endpoint", stand_in.endpoint, "--model", "demo"]
    words = ["predict", tmp_path / "in.csv", tmp_path / "out.csv", "--engine", "chat", *words]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert "5 choices have no probabilities" in done.stderr
    assert ", 60 prompt and 6 completion tokens. Next: " in done.stderr
    manifest = json.loads((tmp_path / "out.csv.manifest.json").read_text())
    assert (manifest["unscored"], manifest["rows"]["ok"]) == (5, 6)
    with (tmp_path / "out.csv").open(newline="") as stream:
        *choices, free = csv.DictReader(stream)
    for row in choices:
        assert (row["prediction"], row["prediction_index"], row["status"]) == ("c", "2", "ok")
        assert row["confidence"] == row["choice_probabilities"] == row["error"] == ""
    assert (free["prediction"], free["confidence"]) == ("C", "")
    scores = evaluate(tmp_path / "out.csv").overall
    assert scores.accuracy is not None
    assert (scores.accuracy.value, scores.mean_confidence) == (1, None)


def test_vllm_without_log_probabilities_writes_one_of_the_letters(
    stand_in: StandIn, open_engine: Callable[[], Supervisor]
) -> None:
    stand_in.reply = lambda path, body: (
        refuse(REFUSALS["logprobs"]) if path == COMPLETIONS and "logprobs" in body else 200
    )
    assert answer(open_engine(), request()).chosen == 0
    [body] = bodies(stand_in)
    assert body["structured_outputs"] == {"choice": ["A", "B", "C"]}
    assert "response_format" not in body


def test_structured_output_that_a_server_passes_over_is_not_asked_of_it(
    stand_in: StandIn, open_engine: Callable[[], Supervisor]
) -> None:
    stand_in.reply = lambda path, body: (
        say(chat_answer("A", top=TOP)) if path == COMPLETIONS else 200
    )
    assert answer(open_engine(), request()).probabilities
    [body] = bodies(stand_in)
    assert "structured_outputs" not in body


REFUSALS = {
    "logprobs": "This model does not support logprobs",
    "structured_outputs": "Unrecognized request argument supplied: structured_outputs",
    "response_format": "Invalid parameter: 'response_format' of type 'json_schema'",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model",
    "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
}


@pytest.mark.parametrize("words", [*((word,) for word in REFUSALS), tuple(REFUSALS)], ids=str)
@pytest.mark.parametrize("named", [True, False])
def test_what_a_server_refuses_of_a_small_question_is_not_asked_of_it_again(
    stand_in: StandIn,
    open_engine: Callable[[], Supervisor],
    words: tuple[str, ...],
    named: bool,
) -> None:
    def reply(path: str, body: Any) -> Reply:
        if path != COMPLETIONS:
            return 200
        if wrong := [word for word in words if word in body]:
            return refuse(REFUSALS[wrong[0]] if named else "I do not know this parameter")
        return 200 if "logprobs" in body else untold(body)

    stand_in.reply = reply
    result = answer(open_engine(), request())
    assert result.error is None
    assert result.probabilities if result.chosen is None else result.chosen == 2
    asked = bodies(stand_in)
    assert asked
    assert not [word for word in words for body in asked if word in body]
    if named and "logprobs" not in words:
        assert all("logprobs" in body for body in asked)
    if "max_tokens" in words:
        assert all("max_completion_tokens" in body for body in asked)
    assert len(bodies(stand_in, small=True)) <= 2 * len(REFUSALS)


def test_a_server_that_refuses_the_barest_question_ends_the_run(
    stand_in: StandIn, open_engine: Callable[[], Supervisor]
) -> None:
    stand_in.reply = lambda path, body: refuse("I am no chat") if path == COMPLETIONS else 200
    with pytest.raises(UnavailableError, match=r"/v1/chat/completions takes no .* I am no chat"):
        open_engine()


def test_a_row_whose_likeliest_tokens_are_no_letters_is_asked_to_write_one(
    stand_in: StandIn, open_engine: Callable[[], Supervisor]
) -> None:
    engine = open_engine()

    def reply(body: Any) -> Reply:
        if "logprobs" in body:
            return say(chat_answer("**", top=[("**", -0.1), ("The", -3.0)]))
        return say(chat_answer("**B**", tokens=(10, 4)))

    stand_in.reply = rows_get(reply)
    result = answer(engine, request())
    assert (result.chosen, result.probabilities, result.usage) == (1, (), Usage(20, 5))


@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (chat_answer("It depends."), "no_choice", "'It depends.'"),
        (chat_answer("D"), "no_choice", "'D'"),
        (chat_answer("", ending="length"), "no_choice", "--max-new-tokens"),
        (chat_answer(None, refusal="I cannot help."), "refused", "The model refused: I cannot"),
        (chat_answer("", ending="content_filter"), "refused", "content filter"),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_a_row_that_is_not_answered_is_an_error_in_the_servers_words(
    stand_in: StandIn,
    open_engine: Callable[[], Supervisor],
    reply: object,
    code: str,
    words: str,
    told: bool,
) -> None:
    if not told:
        stand_in.reply = lambda path, body: untold(body) if path == COMPLETIONS else 200
    engine = open_engine()
    before = stand_in.reply
    stand_in.reply = lambda path, body: (
        say(reply)
        if path == COMPLETIONS and "What is 1?" in json.dumps(body)
        else before(path, body)
    )
    results = by_key(ask(engine, [request(key) for key in range(3)]))
    assert [key for key, one in results.items() if one.error] == [1]
    error = results[1].error
    assert error is not None
    assert (error.code, words in error.message) == (code, True)
    assert results[1].usage.prompt in (10, 20)


def test_a_row_that_the_server_does_not_take_is_an_error_in_its_words(
    stand_in: StandIn, open_engine: Callable[[], Supervisor]
) -> None:
    engine = open_engine()
    words = "This model's maximum context length is 8192 tokens; lower max_tokens or logprobs."
    stand_in.reply = lambda path, body: refuse(words) if "What is 1?" in json.dumps(body) else 200
    results = by_key(ask(engine, [request(key) for key in range(3)]))
    error = results[1].error
    assert error is not None
    assert (error.code, words in error.message) == ("engine_failed", True)
    assert [key for key, one in results.items() if one.error] == [1]
    assert all("max_tokens" in body for body in bodies(stand_in))


def test_an_answer_of_nothing_is_an_error_where_it_was_cut_off(
    stand_in: StandIn, open_engine: Callable[[], Supervisor]
) -> None:
    engine = open_engine()
    stand_in.reply = rows_get(lambda body: say(chat_answer(None, ending="length")))
    error = answer(engine, request(choices=())).error
    assert error is not None
    assert (error.code, "--max-new-tokens" in error.message) == ("no_answer", True)
    stand_in.reply = rows_get(lambda body: say(chat_answer("")))
    assert answer(engine, request(choices=())) == AnswerResult(0, usage=Usage(10, 1))


STRANGE = [
    chat_answer({"a": "b"}),  # type: ignore[arg-type]
    chat_answer("A", tokens=(-1, 1)),
    chat_answer("A", tokens=(10**30, 1)),
    chat_answer("A", tokens=("many", 1)),
    chat_answer("A", top=[("A", None)]),
    chat_answer("A", top=[("A", "x" * 99_999)]),
    {"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": 5}]}}]},
    {"choices": [{"message": None}]},
]


@pytest.mark.parametrize("strange", STRANGE, ids=range(len(STRANGE)))
def test_k06_a_chat_answer_of_a_strange_shape_is_one_error(
    stand_in: StandIn, open_engine: Callable[[], Supervisor], clock: object, strange: object
) -> None:
    engine = open_engine()
    stand_in.reply = lambda path, body: say(strange) if "What is 1?" in json.dumps(body) else 200
    results = by_key(ask(engine, [request(key) for key in range(3)]))
    assert [key for key, one in results.items() if one.error] == [1]
    error = results[1].error
    assert error is not None
    assert (error.code, len(error.message) < 600) == ("engine_failed", True)


def test_a_text_with_half_a_surrogate_pair_can_be_written_down(
    stand_in: StandIn, open_engine: Callable[[], Supervisor]
) -> None:
    engine = open_engine()
    stand_in.reply = rows_get(lambda body: say(chat_answer("\ud800 hat")))
    assert answer(engine, request(choices=())).text == "? hat"


def test_the_model_that_is_named_is_the_one_that_is_asked(
    stand_in: StandIn, open_engine: Callable[[], Supervisor], caplog: pytest.LogCaptureFixture
) -> None:
    names = say({"data": [{"id": name} for name in ("other", "demo")]})
    stand_in.reply = lambda path, body: 200 if path == COMPLETIONS else names
    assert answer(open_engine(), request()).error is None
    assert {body["model"] for body in bodies(stand_in)} == {"demo"}
    assert caplog.text == ""
