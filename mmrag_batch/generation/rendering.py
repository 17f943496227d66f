"""Chat messages -> token ids, with every text of a table tokenised as plain text.

The chat template is rendered with a placeholder where each text goes. What the template itself
wrote is tokenised with special tokens recognised; the texts are tokenised without, so `<|eot_id|>`
or `<|image|>` typed by a user is just characters.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import Tokenizer

from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.families.family import open_family
from mmrag_batch.generation.template import TEMPLATE, ChatTemplate
from mmrag_batch.prompt import LETTERS

if TYPE_CHECKING:
    from PIL.Image import Image

ANSWERS = 4096
"""Answers whose tokens are remembered."""
LAYOUTS = 1024
"""Ways in which texts and images follow each other that are remembered."""
TEXT = "\ue002"
"""Stands for a text whose surroundings are looked at."""
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

    def added_tokens(self, image: "Image", /) -> int:
        """How many tokens an image takes beyond its placeholder."""
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

    def added_tokens(self, _: "Image", /) -> int:
        """Nobody knows."""
        return 0


class Renderer:
    """The chat template and the tokenizer of a generator directory.

    Raises MissingError for a file that is not there, ConfigError for a template or a tokenizer
    that cannot be used safely.
    """

    def __init__(self, generator_dir: Path) -> None:
        source = _read(generator_dir / "tokenizer.json")
        self._tokenizer = Tokenizer.from_str(source)
        self._text_tokenizer = _text_tokenizer(source)
        self._check_text_tokenizer(generator_dir)
        config = json.loads(_read(generator_dir / "tokenizer_config.json"))
        token_config = {name: config.get(name) for name in ("bos_token", "eos_token")}
        self._special_tokens = {
            name: _content(token) for name, token in token_config.items() if token
        }
        self._template = ChatTemplate(chat_template(generator_dir), self._special_tokens)
        self._family = open_family(generator_dir)
        self._image_id = self._special_id(self._family.placeholder)
        self._template_ids: dict[str, list[list[int]]] = {}
        # A table has few answers, over and over.
        self._answer_ids = lru_cache(ANSWERS)(lambda answer: (*self.encode(answer), self.end_id))
        self.end_id = self._find_end(generator_dir)

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
                f"chat_template.jinja must write one {self._family.placeholder} for each image."
            )
        return token_ids

    @property
    def has_image_tokens(self) -> bool:
        """Whether an image may take more than its placeholder."""
        return self._family.has_image_tokens

    def added_tokens(self, image: "Image") -> int:
        """How many tokens an image takes in the decoder beyond its placeholder."""
        if not self.has_image_tokens:
            return 0
        return len(self._family.image_ids(image.size)) - 1

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

    def show(self, ids: Sequence[int]) -> list[str]:
        """The text of a prompt with its special tokens, cut behind each image's placeholder."""
        pieces: list[list[int]] = [[]]
        for token_id in ids:
            pieces[-1].append(token_id)
            if token_id == self._image_id:
                pieces.append([])
        return [self._tokenizer.decode(piece, skip_special_tokens=False) for piece in pieces]

    def typed(self, ids: Sequence[int]) -> list[str]:
        """What looks like special tokens in the text of a prompt, and is characters."""
        text = "".join(self.show(ids))
        tokens = self._tokenizer.get_added_tokens_decoder().items()
        names = [(number, one.content) for number, one in tokens if not one.content.isspace()]
        return [name for number, name in names if text.count(name) > list(ids).count(number)]

    def _encode_template(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _special_id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ConfigError(f"tokenizer.json has no token {token}.")
        return token_id

    def _find_end(self, generator_dir: Path) -> int:
        """The id of what ends an answer: what the template writes after an assistant's text, if it
        is a special token, else the tokenizer's own end."""
        said = [
            {"role": role, "content": [{"type": "text", "text": TEXT}]}
            for role in ("user", "assistant")
        ]
        ids: list[int] = []
        with suppress(ConfigError):  # one that cannot be applied is told when it matters
            _, answer, after = self._template.apply(said, answer_begins=False).rpartition(TEXT)
            ids = self._encode_template(after) if answer else []
        if ids and ids[0] in self._tokenizer.get_added_tokens_decoder():
            return ids[0]
        if "eos_token" not in self._special_tokens:
            raise ConfigError(
                f"{generator_dir}: no token ends an answer: chat_template.jinja writes none, and "
                "tokenizer_config.json has no eos_token."
            )
        return self._special_id(self._special_tokens["eos_token"])

    def _check_text_tokenizer(self, generator_dir: Path) -> None:
        """Refuse a tokenizer that finds special tokens in plain text, and one that adds to a text
        what depends on where it stands, as a blank before the first word."""
        file = generator_dir / "tokenizer.json"
        for token_id, token in self._tokenizer.get_added_tokens_decoder().items():
            if not token.content.isspace() and token_id in self.encode(token.content):
                raise ConfigError(f"{file} finds {token.content!r} in plain text.")
        whole = self.decode([*self.encode("one"), *self.encode("two")])
        if whole != "onetwo":
            raise ConfigError(
                f"{file} puts something between texts: of 'one' and 'two' it makes {whole!r}. Such "
                "tokenizers (Llama 2 and older) are not supported."
            )


def _text_tokenizer(source: str) -> Tokenizer:
    """A tokenizer of the same vocabulary to which no added token is special in a text: not those
    that are not marked so either, such as `<think>`. Runs of blanks are text."""
    values = json.loads(source)
    for token in values["added_tokens"]:
        token["special"] = not token["content"].isspace()
    tokenizer = Tokenizer.from_str(json.dumps(values))
    tokenizer.encode_special_tokens = True
    return tokenizer


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
