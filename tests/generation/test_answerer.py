from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.errors import InternalError, RowError
from mmrag_batch.generation import answerer as answerer_module
from mmrag_batch.generation.answerer import Answerer
from mmrag_batch.generation.engine import Engine, Request, Result
from mmrag_batch.generation.engines.scripted import ScriptedEngine
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Document, Evidence, Prediction, Problem, Question, Row
from mmrag_batch.stages import Page, pixel_bytes


class Album:
    """An image store that has every image but those named `broken`."""

    def digest(self, source: str) -> str:
        return source

    def pages(self, source: str) -> tuple[Page, ...]:
        return ()

    def load(self, source: str) -> Image.Image:
        if "broken" in source:
            raise RowError("image_corrupt", f"{source} is no image")
        return Image.new("RGB", (8, 8))


class Recorder(ScriptedEngine):
    """A scripted engine that keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(window=8)
        self.asked: dict[int, Request] = {}

    def generate(self, requests: Iterable[Request], /) -> Iterator[Result]:
        kept = list(requests)
        self.asked |= {request.key[0]: request for request in kept}
        return super().generate(kept)


@pytest.fixture(scope="module")
def renderer(tiny_generator_dir: Path) -> Renderer:
    return Renderer(tiny_generator_dir)


def answerer(renderer: Renderer, engine: Engine, *, max_prompt_tokens: int = 500) -> Answerer:
    return Answerer(
        renderer,
        engine,
        Album(),
        PromptSpec(2, max_prompt_tokens, "letter"),
    )


def row(
    number: int = 0,
    *,
    text: str = "What?",
    image: str | None = None,
    choices: tuple[str, ...] = ("red", "blue"),
    evidence: Iterable[tuple[str | None, str | None]] = (),
) -> Row:
    kept = tuple(
        Evidence(Document(str(rank), text, image), 1.0 / (1 + rank))
        for rank, (text, image) in enumerate(evidence)
    )
    question = Question(text, image, choices, tuple(e.document for e in kept), None, None)
    return Row(number, number + 2, str(number), {}, question=question, evidence=kept)


def kept_ids(row: Row) -> list[str]:
    return [item.document.id for item in row.evidence]


def test_f07_a_choice_question_gets_one_of_its_choices(renderer: Renderer) -> None:
    [done] = answerer(renderer, ScriptedEngine())([row(choices=("red", "green", "blue"))])
    assert done.prediction is not None
    assert done.prediction.index is not None
    assert done.prediction.text == ("red", "green", "blue")[done.prediction.index]
    assert len(done.prediction.probabilities) == 3


def test_a_free_form_question_gets_a_text(renderer: Renderer) -> None:
    [done] = answerer(renderer, ScriptedEngine())([row(choices=())])
    assert done.prediction is not None
    probability = done.prediction.text_probability
    assert done.prediction == Prediction(done.prediction.text, text_probability=probability)
    assert done.prediction.text.startswith("answer ")
    assert probability is not None
    assert 0 < probability.whole < probability.per_token < 1


def test_every_row_comes_back_once_with_its_own_answer(renderer: Renderer) -> None:
    def rows() -> list[Row]:
        return [row(number, text=f"What is {number}?") for number in range(100)]

    together = {done.number: done for done in answerer(renderer, ScriptedEngine())(rows())}
    assert sorted(together) == list(range(100))
    for one in rows()[::10]:
        [alone] = answerer(renderer, ScriptedEngine())([one])
        assert together[one.number].prediction == alone.prediction


def test_a_row_with_an_error_passes_through_untouched(renderer: Renderer) -> None:
    problem = Problem("bad_documents", "not a list")
    broken = Row(1, 3, "1", {}, error=problem)
    done = list(answerer(renderer, ScriptedEngine())([row(0), broken, row(2)]))
    assert sorted(one.number for one in done) == [0, 1, 2]
    [passed] = [one for one in done if one.number == 1]
    assert passed is broken
    assert (passed.error, passed.prediction) == (problem, None)


def test_rows_with_errors_do_not_pile_up(renderer: Renderer) -> None:
    read = 0

    def rows() -> Iterator[Row]:
        nonlocal read
        for number in range(500):
            read += 1
            yield Row(number, number + 2, str(number), {}, error=Problem("bad", "bad"))
        yield row(500)

    stage = answerer(renderer, ScriptedEngine(window=4))
    ahead = 0
    for given, _ in enumerate(stage(rows())):
        ahead = max(ahead, read - given)
    assert given == 500
    assert ahead <= stage.window


def test_a_broken_question_image_is_an_error(renderer: Renderer) -> None:
    [done] = answerer(renderer, ScriptedEngine())([row(image="broken.png")])
    assert done.error == Problem("image_corrupt", "question_image: broken.png is no image")
    assert done.prediction is None


def test_a_document_with_a_broken_image_is_left_out(renderer: Renderer) -> None:
    engine = Recorder()
    evidence = [("a", "a.png"), ("b", "broken.png"), ("c", "c.png"), ("d", None)]
    [done] = answerer(renderer, engine)([row(evidence=evidence)])
    assert done.error is None
    assert done.prediction is not None
    assert kept_ids(done) == ["0", "2", "3"]
    assert [problem.code for problem in done.problems] == ["image_corrupt"]
    assert "document '1'" in done.problems[0].message
    assert len(engine.asked[0].images) == 2  # c.png takes the place of broken.png


def test_images_past_the_limit_are_not_loaded(renderer: Renderer) -> None:
    evidence = [(None, "a.png"), ("b", "broken.png")]
    [done] = answerer(renderer, ScriptedEngine())([row(image="q.png", evidence=evidence)])
    assert (done.problems, kept_ids(done)) == ([], ["0", "1"])


def test_f08_the_lowest_ranked_evidence_is_trimmed_until_the_prompt_fits(
    renderer: Renderer,
) -> None:
    engine = Recorder()
    evidence = [("short", "a.png"), ("word " * 20, None), ("tail", "b.png")]
    [whole] = answerer(renderer, engine)([row(evidence=evidence)])
    needed = len(engine.asked[0].token_ids)
    assert kept_ids(whole) == ["0", "1", "2"]
    [cut] = answerer(renderer, engine, max_prompt_tokens=needed - 1)([row(evidence=evidence)])
    assert kept_ids(cut) == ["0", "1"]
    assert (cut.error, cut.problems) == (None, [])
    assert len(engine.asked[0].images) == 1
    assert len(engine.asked[0].token_ids) < needed


@pytest.mark.parametrize("image", [None, "a.png"])
@pytest.mark.parametrize("room", [100, 128, 250])
def test_f08_the_text_of_the_best_evidence_is_cut_where_it_alone_is_too_long(
    renderer: Renderer, image: str | None, room: int
) -> None:
    engine = Recorder()
    text = " ".join(f"word{number} 12.50," for number in range(300))
    evidence = [(text, image), ("short", None)]
    [done] = answerer(renderer, engine, max_prompt_tokens=room)([row(evidence=evidence)])
    assert (done.error, done.problems, kept_ids(done)) == (None, [], ["0"])
    assert text.startswith(done.evidence[0].document.text or "")
    assert room - 10 < len(engine.asked[0].token_ids) <= room
    assert len(engine.asked[0].images) == (image is not None)


def test_f08_a_question_that_alone_is_too_long_is_an_error(renderer: Renderer) -> None:
    long = row(text="word " * 500, evidence=[("a", None)])
    [done] = answerer(renderer, ScriptedEngine())([long])
    assert done.error is not None
    assert done.error.code == "prompt_too_long"


def test_an_engines_error_is_the_rows_error(renderer: Renderer) -> None:
    problem = Problem("engine_failed", "no")

    class Failing(ScriptedEngine):
        def generate(self, requests: Iterable[Request], /) -> Iterator[Result]:
            for request in requests:
                yield Result(request.key, error=problem)

    [done] = answerer(renderer, Failing())([row()])
    assert (done.error, done.prediction) == (problem, None)


def test_an_engine_that_loses_a_row_is_found_out(renderer: Renderer) -> None:
    class Losing(ScriptedEngine):
        def generate(self, requests: Iterable[Request], /) -> Iterator[Result]:
            yield from list(super().generate(requests))[1:]

    with pytest.raises(InternalError, match="no answer to 1 rows"):
        list(answerer(renderer, Losing())([row(0), row(1)]))


def test_a_single_choice_is_certain_and_no_engine_is_asked(renderer: Renderer) -> None:
    engine = Recorder()
    [done] = answerer(renderer, engine)([row(choices=("red",))])
    assert done.prediction == Prediction("red", 0, (1.0,))
    assert engine.asked == {}


class Lazy(ScriptedEngine):
    """Takes a whole window before it answers, and keeps count of what the images of it take."""

    def __init__(self) -> None:
        super().__init__(window=100)
        self.bytes: list[int] = []

    def generate(self, requests: Iterable[Request], /) -> Iterator[Result]:
        kept = list(islice(requests, self.window))
        images = {id(image): image for request in kept for image in request.images}
        self.bytes.append(sum(map(pixel_bytes, images.values())))
        yield from super().generate(kept)


def test_k01_the_images_that_an_engine_has_take_so_many_bytes_at_most(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answerer_module, "ENGINE_BYTES", 10 * 8 * 8 * 4)
    engine = Lazy()
    rows = [row(number, image=f"{number}.png") for number in range(64)]
    done = list(answerer(renderer, engine)(rows))
    assert sorted(one.number for one in done) == list(range(64))
    assert all(one.prediction is not None for one in done)
    assert max(engine.bytes) == 10 * 8 * 8 * 4
    assert sum(engine.bytes) == 64 * 8 * 8 * 4


def test_k01_an_image_over_the_budget_is_answered_alone(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answerer_module, "ENGINE_BYTES", 1)
    engine = Lazy()
    done = list(answerer(renderer, engine)([row(number, image="a.png") for number in range(5)]))
    assert sorted(one.number for one in done) == list(range(5))
    assert engine.bytes == [8 * 8 * 4] * 5


def test_k01_an_image_that_many_rows_show_counts_once(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answerer_module, "ENGINE_BYTES", 8 * 8 * 4)
    image, engine = Image.new("RGB", (8, 8)), Lazy()
    monkeypatch.setattr(Album, "load", lambda *_: image)
    done = list(answerer(renderer, engine)([row(number, image="a.png") for number in range(50)]))
    assert len(done) == 50
    assert engine.bytes == [8 * 8 * 4]
