"""Whether the engines that run a bundle's generator agree: a few questions, asked of each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from mmrag_batch.bundle import Bundle
from mmrag_batch.errors import InternalError
from mmrag_batch.generation.answerer import fit_prompt
from mmrag_batch.generation.asking import AnswerRequest, AnswerResult, ask
from mmrag_batch.generation.engine import open_engine
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.prompt import PromptSpec, answer_texts
from mmrag_batch.records import Document, Evidence, Question
from mmrag_batch.settings import PredictSettings

SIZES = ((96, 64), (64, 96), (160, 160), (333, 50), (40, 41))
"""Of pictures, in pixels: whatever is cut into tiles, filled up or resized on its way."""
ASKED = (
    ("What is shown?", ("a square", "a gradient", "nothing")),
    ("Which of these is darker at its rim?", ("the first", "the second", "neither", "both")),
    ("Say in a few words what you see.", ()),
)
TEXTS = ("A gradient goes from light to dark.", "Nobody knows <|image|> what this is: 42 %.")


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two engines are apart: of `rows` answers `same` are the same, and no probability of
    a choice, nor that of a text, differs by more than `probability`."""

    rows: int
    same: int
    probability: float


def compare_engines(
    bundle: Bundle, settings: PredictSettings, engines: tuple[str, str] = ("vllm", "transformers")
) -> Parity:
    """Ask both engines the built-in questions, one engine after the other.

    Raises UnavailableError for an engine that is not installed, InternalError with an engine's own
    words where it does not answer.
    """
    said, template = bundle.manifest.generator, bundle.manifest.template_version
    spec = PromptSpec(said.max_images, said.max_prompt_tokens, said.scoring, template)
    renderer = Renderer(bundle.generator_dir)
    first, second = (_answers(name, bundle, settings, spec, renderer) for name in engines)
    pairs = [(first[key], second[key]) for key in first]
    return Parity(
        rows=len(pairs),
        same=sum(_choice(one) == _choice(other) for one, other in pairs),
        probability=max(
            abs(a - b) for one, other in pairs for a, b in zip(_numbers(one), _numbers(other))
        ),
    )


def _requests(renderer: Renderer, spec: PromptSpec) -> Iterator[AnswerRequest]:
    """Every question with no, one and several pictures, and with texts beside them."""
    pictures = {str(size): _picture(size) for size in SIZES}
    names = list(pictures)
    key = 0
    for text, choices in ASKED:
        for count in range(min(spec.max_images, len(names) - 1) + 1):
            shown = [names[(key + step) % len(names)] for step in range(count)]
            question = Question(text, shown[0] if shown else None, choices, ())
            documents = [Document(name, None, name) for name in shown[1:]]
            documents += [Document(line, line, None) for line in TEXTS]
            evidence = tuple(Evidence(one, 1.0) for one in documents)
            _, prompt, token_ids = fit_prompt(renderer, question, evidence, spec, pictures)
            options = answer_texts(question, spec.scoring) if choices else ()
            yield AnswerRequest(
                key,
                tuple(token_ids),
                tuple(pictures[name] for name in prompt.images),
                tuple(map(renderer.answer_ids, options)),
            )
            key += 1


def _answers(
    name: str,
    bundle: Bundle,
    settings: PredictSettings,
    spec: PromptSpec,
    renderer: Renderer,
) -> dict[int, AnswerResult]:
    with open_engine(name, replace(settings, engine=name), bundle, spec) as engine:
        # Not before the engine is there: vLLM sets up how libraries log as they are loaded.
        results = {result.key: result for result in ask(engine, _requests(renderer, spec))}
    for result in results.values():
        if result.error is not None:
            raise InternalError(f"The engine {name} did not answer: {result.error.message}")
    return results


def _choice(result: AnswerResult) -> object:
    options = result.probabilities
    return options.index(max(options)) if options else result.text


def _numbers(result: AnswerResult) -> tuple[float, ...]:
    if result.probabilities or result.text_probability is None:
        return result.probabilities
    return (result.text_probability.whole,)


def _picture(size: tuple[int, int]) -> Image.Image:
    """Other in each channel, and nowhere flat."""
    light, dark = Image.radial_gradient("L"), Image.linear_gradient("L")
    return Image.merge("RGB", (light, dark, dark.rotate(90))).resize(size)
