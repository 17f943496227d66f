import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.prompt import PromptSpec, build_prompt
from mmrag_batch.records import Document, Evidence, Question

SPECIALS = [
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
    "<|image|>",
]


@pytest.fixture
def renderer(tiny_generator_dir: Path) -> Renderer:
    return Renderer(tiny_generator_dir)


@pytest.fixture
def generator_copy(tiny_generator_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_generator_dir, tmp_path / "generator"))


def user(*parts: dict[str, str]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def special_ids(directory: Path, token_ids: list[int]) -> list[int]:
    added = Tokenizer.from_file(str(directory / "tokenizer.json")).get_added_tokens_decoder()
    return [token_id for token_id in token_ids if token_id in added]


@pytest.mark.parametrize("special", SPECIALS)
def test_f09_a_special_token_in_any_cell_is_plain_text(
    renderer: Renderer, tiny_generator_dir: Path, special: str
) -> None:
    def prompt(typed: str) -> list[int]:
        document = Document(id="0", text=f"{typed} fact {typed}", image=None)
        question = Question(
            text=f"{typed}What{typed}?",
            image="thing.png",
            choices=(typed, f"x {typed}"),
            documents=(document,),
            label=None,
            relevant=None,
        )
        evidence = [Evidence(document, 1.0)]
        return renderer.render(
            build_prompt(question, evidence, PromptSpec(1, 0, "letter")).messages
        )

    attacked, harmless = prompt(special), prompt("-")
    assert len(attacked) > len(harmless)
    assert special_ids(tiny_generator_dir, attacked) == special_ids(tiny_generator_dir, harmless)


def test_a_plain_prompt_is_tokenised_as_transformers_does(
    renderer: Renderer, tiny_generator_dir: Path
) -> None:
    messages = user({"type": "image"}, text("Question: What does it cost?\n\nA. 1\nB. 2"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_generator_dir)
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert renderer.render(messages) == theirs


def test_f09_each_image_becomes_one_image_token(
    renderer: Renderer, tiny_generator_dir: Path
) -> None:
    config = json.loads((tiny_generator_dir / "config.json").read_text())
    image = {"type": "image"}
    token_ids = renderer.render(user(image, image, text("What differs?")))
    assert token_ids.count(config["image_token_index"]) == 2


def test_the_image_token_is_the_first_that_the_head_leaves_out(tiny_generator_dir: Path) -> None:
    config = json.loads((tiny_generator_dir / "config.json").read_text())
    assert config["image_token_index"] == config["text_config"]["vocab_size"]


def test_a_prompt_is_shown_with_its_special_tokens_and_cut_behind_its_images(
    renderer: Renderer,
) -> None:
    image = {"type": "image"}
    token_ids = renderer.render(user(image, image, text("Is <|eot_id|> 42 %\nof <|image|>?")))
    first, second, rest = renderer.show(token_ids)
    assert first.startswith("<|begin_of_text|>") and first.endswith("<|image|>")
    assert second == "<|image|>"
    assert rest.startswith("Is <|eot_id|> 42 %\nof <|image|>?<|eot_id|>")
    assert sorted(renderer.typed(token_ids)) == ["<|eot_id|>", "<|image|>"]
    assert renderer.typed(renderer.render(user(image, text("Is it?")))) == []


def test_text_survives_the_round_trip(renderer: Renderer) -> None:
    words = "größer \ue0001\ue001 {{ bos_token }} 🦙\n"
    rendered = renderer.decode(renderer.render(user(text(words))))
    assert words in rendered


def test_an_answer_is_encoded_as_plain_text(renderer: Renderer, tiny_generator_dir: Path) -> None:
    token_ids = renderer.encode("12 coins<|eot_id|>")
    assert special_ids(tiny_generator_dir, token_ids) == []
    assert renderer.decode(token_ids) == "12 coins<|eot_id|>"


def test_an_answer_ends_with_the_end_token(renderer: Renderer, tiny_generator_dir: Path) -> None:
    letter, end = renderer.answer_ids("A")
    assert renderer.decode([letter]) == "A"
    assert special_ids(tiny_generator_dir, [letter, end]) == [end]


def test_a_token_that_was_added_as_plain_text_is_out_of_reach_as_well(
    generator_copy: Path,
) -> None:
    file = generator_copy / "tokenizer.json"
    values = json.loads(file.read_text())
    values["added_tokens"][0]["special"] = False
    file.write_text(json.dumps(values))
    token = values["added_tokens"][0]
    assert token["id"] not in Renderer(generator_copy).encode(token["content"])


def test_a_tokenizer_with_tokens_that_text_can_reach_is_refused(generator_copy: Path) -> None:
    file = generator_copy / "tokenizer.json"
    values = json.loads(file.read_text())
    letter = {**values["added_tokens"][0], "content": "A", "id": values["model"]["vocab"]["A"]}
    values["added_tokens"].append(letter)
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="finds 'A' in plain text"):
        Renderer(generator_copy)


def test_a_tokenizer_that_puts_blanks_between_texts_is_refused(generator_copy: Path) -> None:
    file = generator_copy / "tokenizer.json"
    values = json.loads(file.read_text())
    values["pre_tokenizer"] = {"type": "Metaspace", "replacement": " ", "prepend_scheme": "always"}
    values["decoder"] = None
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="puts something between texts"):
        Renderer(generator_copy)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ bos_token }}", "every text once"),
        ("{{ messages[0]['content'][1]['text'] }}", "for each image"),
        ("{{ raise_exception('no pictures, please') }}", "no pictures, please"),
        ("{{ messages.clear() }}", "cannot be applied"),
        ("{% for %}", "not a valid template"),
    ],
)
def test_a_template_that_cannot_be_trusted_is_refused(
    generator_copy: Path, template: str, complaint: str
) -> None:
    (generator_copy / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=complaint):
        Renderer(generator_copy).render(user({"type": "image"}, text("What?")))


def test_a_missing_template_is_named(generator_copy: Path) -> None:
    (generator_copy / "chat_template.jinja").unlink()
    with pytest.raises(MissingError, match=r"chat_template\.jinja"):
        Renderer(generator_copy)


@pytest.mark.parametrize("place", ["chat_template.json", "tokenizer_config.json"])
def test_a_template_is_found_where_older_transformers_wrote_it(
    renderer: Renderer, generator_copy: Path, place: str
) -> None:
    file = generator_copy / "chat_template.jinja"
    config = generator_copy / place
    values = json.loads(config.read_text()) if config.exists() else {}
    config.write_text(json.dumps({**values, "chat_template": file.read_text()}))
    file.unlink()
    messages = user({"type": "image"}, text("What is shown?"))
    assert Renderer(generator_copy).render(messages) == renderer.render(messages)
