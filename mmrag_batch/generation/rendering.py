"""Chat messages -> token ids, with every text of a table tokenised as plain text.

The chat template is rendered with a placeholder where each text goes. What the template itself
wrote is tokenised with special tokens recognised; the texts are tokenised without, so `<|eot_id|>`
or `<|image|>` typed by a user is just characters.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.families.family import open_family
from mmrag_batch.generation.template import TEMPLATE, ChatTemplate
from mmrag_batch.prompt import LETTERS

ANSWERS = 4096
"""Answers whose tokens are remembered."""
LAYOUTS = 1024
"""Ways in which texts and images follow each other that are remembered."""
PLACEHOLDER = re.compile("\ue000([0-9]+)\ue001")  # private-use characters: no template holds them


UNKNOWN = -1
"""In place of a token that only a server knows."""
BYTES_A_TOKEN = 4
"""Of UTF-8: what English takes, and most other texts take more."""


class Rendering(Protocol):
    """How prompts and answers become tokens."""

    def render(self, messages: Sequence[Mapping[str, Any]], /) -> Sequence[int]:
        """Those of a conversation up to where the assistant's answer begins."""
        ...

    def encode(self, text: str, /) -> Sequence[int]:
        """Those of a text."""
        ...

    def answer_ids(self, answer: str, /) -> tuple[int, ...]:
        """Those of a whole answer; no answer's are the beginning of another's."""
        ...


class Unrendered:
    """In place of a `Renderer` where a server renders messages: as many unknown tokens as it may
    make of a text. A letter, the only answer that can be scored, is one token: its place among
    LETTERS."""

    def render(self, messages: Sequence[Mapping[str, Any]], /) -> Sequence[int]:
        """Unknown tokens; those of the template and of images are not counted."""
        return self.encode("".join(part.get("text", "") for part in _parts(messages)))

    def encode(self, text: str, /) -> Sequence[int]:
        """Unknown tokens."""
        return [UNKNOWN] * -(-len(text.encode(errors="replace")) // BYTES_A_TOKEN)

    def answer_ids(self, answer: str, /) -> tuple[int, ...]:
        """The place of a letter."""
        return (LETTERS.index(answer),)


class Renderer:
    """The chat template and the tokenizer of a generator directory.

    Raises MissingError for a file that is not there, ConfigError for a template or a tokenizer
    that cannot be used safely.
    """

    def __init__(self, generator_dir: Path) -> None:
        source = _read(generator_dir / "tokenizer.json")
        self._tokenizer = Tokenizer.from_str(source)
        self._text_tokenizer = Tokenizer.from_str(source)
        self._text_tokenizer.encode_special_tokens = True
        self._check_text_tokenizer(generator_dir)
        config = json.loads(_read(generator_dir / "tokenizer_config.json"))
        token_config = {name: config.get(name) for name in ("bos_token", "eos_token")}
        self._special_tokens = {
            name: _content(token) for name, token in token_config.items() if token
        }
        self._template = ChatTemplate(chat_template(generator_dir), self._special_tokens)
        self._placeholder = open_family(generator_dir).placeholder
        self._image_id = self._special_id(self._placeholder)
        self._template_ids: dict[str, list[list[int]]] = {}
        # A table has few answers, over and over.
        self._answer_ids = lru_cache(ANSWERS)(lambda answer: (*self.encode(answer), self._end_id))
        self._end_id = self._special_id(self._special_tokens["eos_token"])

    def render(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation up to where the assistant's answer begins.

        An image part becomes the one token that the template writes for it. Raises ConfigError if
        the template drops or repeats a text or an image.
        """
        texts: list[str] = []
        layout = [_with_placeholders(message, texts) for message in messages]
        # What the template writes depends on the layout alone, and a table has few of them.
        if (name := repr(layout)) not in self._template_ids:
            if len(self._template_ids) >= LAYOUTS:
                self._template_ids.clear()
            self._template_ids[name] = self._write(layout, len(texts))
        first_ids, *following_ids = self._template_ids[name]
        token_ids = list(first_ids)
        for text, template_ids in zip(texts, following_ids):
            token_ids += self.encode(text)
            token_ids += template_ids
        image_count = sum(part.get("type") == "image" for part in _parts(messages))
        if token_ids.count(self._image_id) != image_count:
            raise ConfigError(
                f"chat_template.jinja must write one {self._placeholder} for each image."
            )
        return token_ids

    def _write(self, layout: list[dict[str, Any]], text_count: int) -> list[list[int]]:
        """The token ids of what the template writes before, between and after the texts."""
        pieces = PLACEHOLDER.split(
            self._template.apply(layout)
        )  # template, number, template, ..., template
        if pieces[1::2] != [str(number) for number in range(text_count)]:
            raise ConfigError("chat_template.jinja must write every text once and in order.")
        return [self._encode_template(piece) for piece in pieces[::2]]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: no special token comes out, whatever goes in."""
        return self._text_tokenizer.encode(text, add_special_tokens=False).ids

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """The token ids of a whole answer, its end token included."""
        return self._answer_ids(answer)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of generated token ids, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def _encode_template(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _special_id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ConfigError(f"tokenizer.json has no token {token}.")
        return token_id

    def _check_text_tokenizer(self, generator_dir: Path) -> None:
        """Only added tokens marked `special` can be switched off; refuse any other."""
        for token_id, token in self._tokenizer.get_added_tokens_decoder().items():
            if token_id in self.encode(token.content):
                raise ConfigError(
                    f"{generator_dir / 'tokenizer.json'} finds {token.content!r} in plain text; "
                    'mark the token as "special": true.'
                )


def chat_template(generator_dir: Path) -> str:
    """The chat template, from where transformers of any version wrote it: a file of its own, JSON
    in one, or `tokenizer_config.json`. Raises MissingError where there is none."""
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (generator_dir / TEMPLATE).is_file() or not (generator_dir / name).is_file():
            continue
        if isinstance(source := json.loads(_read(generator_dir / name)).get("chat_template"), str):
            return source
    return _read(generator_dir / TEMPLATE)


def _with_placeholders(message: Mapping[str, Any], texts: list[str]) -> dict[str, Any]:
    """The message with each text replaced by a placeholder; the texts are appended to `texts`."""

    def placeholder(text: str) -> str:
        texts.append(text)
        return f"\ue000{len(texts) - 1}\ue001"

    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": placeholder(content)}
    parts = [
        {**part, "text": placeholder(part["text"])} if "text" in part else part for part in content
    ]
    return {**message, "content": parts}


def _parts(messages: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for message in messages:
        if not isinstance(message["content"], str):
            yield from message["content"]


def _content(token: str | Mapping[str, str]) -> str:
    """A token of tokenizer_config.json, written as a string or as an object."""
    return token if isinstance(token, str) else token["content"]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingError(f"{file} is missing; export the generator again.") from None
