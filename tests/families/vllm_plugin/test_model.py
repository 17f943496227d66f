"""One eager engine: answers equal to transformers', and bad requests that it survives."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.families.vllm_plugin.conftest import Answer

pytestmark = pytest.mark.vllm
CASES = [
    "text only",
    "eight tiles",
    "1 tile",
    "2 tiles",
    "3 tiles",
    "4 tiles",
    "two apart",
    "two adjacent",
    "one, then two",
    "two, then one",
    "late",
    "first token",
    "last token",
]


@pytest.fixture(scope="module")
def engine(start_engine: Callable[..., Any]) -> Any:
    return start_engine(enforce_eager=True, enable_prefix_caching=True)  # which it switches off


@pytest.mark.parametrize("case", CASES)
def test_an_answer_is_that_of_transformers(
    engine: Any, check: Callable[..., None], case: str
) -> None:
    check(engine, [case])


def test_a_mixed_batch_has_the_answers_of_each_alone(
    engine: Any, check: Callable[..., None]
) -> None:
    check(engine, [*CASES, *CASES[::2]])


def test_the_images_matter(reference: "dict[str, Answer]") -> None:
    same_text = ["1 tile", "2 tiles", "3 tiles", "4 tiles"]
    assert len({tuple(reference[case].token_ids[:10]) for case in same_text}) == 4


def test_log_probabilities_of_a_prompt_with_images_are_finite(
    engine: Any, prompt: Callable[[str], Any]
) -> None:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    output = engine.generate(prompt("two adjacent"), params, use_tqdm=False)[0]
    image = max(output.prompt_token_ids)
    for token, place in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:]):
        assert (place[token].logprob == -float("inf")) == (token == image)


def test_memory_is_measured_with_all_images_that_a_step_may_bring(engine: Any) -> None:
    processor = engine.llm_engine.renderer.mm_processor
    [item] = processor.get_dummy_mm_inputs({"image": 1})["mm_kwargs"]["image"]
    images = 4 * 3 * 4  # of one tile: four requests of three images of four tiles, as a step has
    assert item["num_tiles"].data.tolist() == [1] * images
    assert len(set(item["image_hashes"].data.tolist())) == images  # equal ones are encoded once


BAD = {
    "an image token without an image": ("text only", None, "1 image tokens but 0 images"),
    "more images than tokens": ("1 tile", 2, "1 image tokens but 2 images"),
    "fewer images than tokens": ("two apart", 1, "2 image tokens but 1 images"),
    "more images than the limit": ("one, then two", 4, "At most 3 image"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_request_is_refused_and_the_next_is_answered(
    engine: Any, prompt: Callable[[str], Any], check: Callable[..., None], bad: str
) -> None:
    from vllm.exceptions import VLLMValidationError

    case, images, message = BAD[bad]
    request = dict(prompt(case))
    if images is None:
        image_token = max(prompt("1 tile")["prompt_token_ids"])
        request["prompt_token_ids"] = [image_token, *request["prompt_token_ids"]]
    else:
        request["multi_modal_data"] = {"image": [Image.new("RGB", (30, 30))] * images}
    with pytest.raises(VLLMValidationError, match=message):
        engine.generate(request, use_tqdm=False)
    check(engine, ["two apart", "text only"], tokens=5)


NAMED: dict[str, Any] = {
    "no image in a list": {"multi_modal_data": {"image": []}},
    "an id alone": {
        "multi_modal_data": {"image": [None]},
        "multi_modal_uuids": {"image": ["seen before"]},
    },
    "an id alone beside an image": {
        "multi_modal_data": {"image": [None, Image.new("RGB", (30, 30))]},
        "multi_modal_uuids": {"image": ["seen before", "new"]},
    },
}


@pytest.mark.parametrize("named", NAMED)
def test_images_that_are_named_and_do_not_come_are_refused(
    engine: Any, prompt: Callable[[str], Any], check: Callable[..., None], named: str
) -> None:
    from vllm.exceptions import VLLMValidationError

    seen = prompt("1 tile") | {"multi_modal_uuids": {"image": ["seen before"]}}
    engine.generate([seen, seen], use_tqdm=False)
    for case in ("text only", "1 tile"):
        with pytest.raises(VLLMValidationError, match="images that do not come with it"):
            engine.generate(prompt(case) | NAMED[named], use_tqdm=False)
    check(engine, ["1 tile", "1 tile", "text only"], tokens=5)


def with_prompt(change: Callable[[list[int]], list[int]]) -> Callable[[Any], None]:
    def apply(decoder: Any) -> None:
        decoder["prompt_token_ids"] = change(decoder["prompt_token_ids"])

    return apply


def with_tensor(name: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def apply(decoder: Any) -> None:
        [item] = decoder["mm_kwargs"]["image"]
        item[name].data = change(item[name].data)

    return apply


def shortened(decoder: Any) -> None:
    [place] = decoder["mm_placeholders"]["image"]
    decoder["mm_placeholders"]["image"] = [replace(place, length=place.length - 1)]


def as_from_elsewhere(items: list[Any]) -> Callable[[Any], None]:
    """A prompt that no processor of this engine has made."""

    def apply(decoder: Any) -> None:
        decoder["mm_kwargs"].update(image=items)
        del decoder["encoder_prompt_token_ids"]

    return apply


CRAFTED = {
    "no image token": (with_prompt(lambda ids: ids[2:]), "0 image tokens but 1 images"),
    "two tokens for one image": (with_prompt(lambda ids: [max(ids), *ids]), "2 image tokens"),
    "fewer tiles than it says": (with_tensor("pixel_values", lambda data: data[:1]), "processor"),
    "more tiles than there are": (with_tensor("num_tiles", lambda data: data + 9), "processor"),
    "a ratio that there is not": (
        with_tensor("aspect_ratio_ids", lambda data: data + 99),
        "processor",
    ),
    "another length": (shortened, "processor"),
    "no item": (lambda decoder: decoder["mm_kwargs"].update(image=[]), "1 image tokens but 0"),
    "no item, as from another server": (as_from_elsewhere([]), "do not come with it"),
    "a name alone, as from another server": (as_from_elsewhere([None]), "do not come with it"),
}


@pytest.mark.parametrize("crafted", CRAFTED)
def test_what_a_client_has_prepared_wrongly_is_refused_and_the_next_is_answered(
    engine: Any, prompt: Callable[[str], Any], check: Callable[..., None], crafted: str
) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    change, message = CRAFTED[crafted]
    [rendered] = engine.renderer.render_cmpl([prompt("4 tiles")])
    change(rendered)
    with pytest.raises(VLLMValidationError, match=message):
        engine.llm_engine.add_request("crafted", rendered, SamplingParams(max_tokens=1))
    check(engine, ["4 tiles", "text only"], tokens=5)
