"""The `chat` engine: any server with OpenAI's `/v1/chat/completions`, and no file of a generator.

Choices are put with letters, whatever the bundle says, and a letter is asked for as one token with
the probabilities of the 20 likeliest. A server that tells none is asked to write the letter, as
JSON where it takes a schema; nothing is guessed where what it writes is no letter of the row.

The APIs differ in what they take. At the start a small question is asked in each way, and what the
server refuses of it, or passes over, is left out from then on.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmrag_batch.bundle import Bundle
from mmrag_batch.errors import ConfigError
from mmrag_batch.generation.engine import Engine, Request, Result
from mmrag_batch.generation.engines.api import NO_NUMBER, Ask, finite
from mmrag_batch.generation.engines.http import Refused
from mmrag_batch.generation.engines.remote import data_uris, open_remote
from mmrag_batch.prompt import LETTERS, PromptSpec, build_prompt
from mmrag_batch.records import Problem, Question, Usage
from mmrag_batch.settings import PredictSettings

COMPLETIONS = "/v1/chat/completions"
TOP = 20
"""The most log-probabilities that OpenAI's API gives of a token."""
BLANK = " \t\r\n\u2581\u0120"
"""Before a letter: white space, also as tokenizers write it that leave it in."""
LETTER = re.compile(
    r"[\W_]*(?:(?:the\s+)?(?:correct\s+)?answer\b(?:\s+is\b)?[\W_]*)?([A-Z])[\W_]*", re.I
)
"""A reply that is a letter and nothing else but ornament."""
SMALL = build_prompt(
    Question("Which of these is a colour?", None, ("red", "seven"), ()),
    (),
    PromptSpec(0, 0, "letter"),
).messages
NO_ANSWER = "Q"
"""What nobody would answer to that, unless nothing else is allowed."""
MOST_TOKENS = 2**40
"""More than any request has."""
log = logging.getLogger(__name__)
Fields = dict[str, dict[str, object]]
"""Parts of a body that a server may refuse, by the word that its refusal has; the one without which
a request does best comes first."""
Messages = Sequence[Mapping[str, Any]]


def open_engine(settings: PredictSettings, _bundle: Bundle, _spec: PromptSpec) -> Engine:
    """A server at `--endpoint`. Raises ConfigError without a model, and what `open_remote` does."""
    if settings.model is None:
        raise ConfigError(
            "--engine chat needs --model, as in --model gpt-4.1: answers are its own."
        )
    return open_remote(settings, ChatDialect(settings.max_new_tokens))


class ChatDialect:
    """Messages, to a chat server; see `api.Dialect`."""

    path = COMPLETIONS

    def __init__(self, max_new_tokens: int) -> None:
        self._max_new_tokens = max_new_tokens
        self._left_out: set[str] = set()
        self._is_known = False

    async def check(self, model: str, ask: Ask, /) -> None:
        """Ask a small question; the first time, learn what the server takes."""

        async def ask_small(fields: Fields) -> Reply:
            return await ask(self._body(model, SMALL, fields), _read)

        if self._is_known:
            await ask_small(
                self._written("AB") if "logprobs" in self._left_out else self._scored("AB")
            )
            return
        while {"structured_outputs", "logprobs"} - self._left_out:
            fields = self._scored(NO_ANSWER)
            try:
                reply = await ask_small(fields)
            except Refused as error:
                self._learn(fields, error)
                continue
            if reply.text != NO_ANSWER:  # it was passed over
                self._leave_out("structured_outputs")
            if not reply.steps:
                self._leave_out("logprobs")
            break
        while not self._is_known:
            fields = self._written("AB")
            try:
                await ask_small(fields)
                self._is_known = True
            except Refused as error:
                self._learn(fields, error)

    async def answer(self, request: Request, model: str, ask: Ask, /) -> Result:
        """A result."""
        messages = _with_images(request.messages, await data_uris(request.images))
        if not request.score:
            body = self._body(model, messages, self._free())
            return _free_form(request, await ask(body, _read))
        letters = [LETTERS[place] for place in request.score]
        usage = Usage()
        if "logprobs" not in self._left_out:
            reply = await ask(self._body(model, messages, self._scored(letters)), _read)
            usage = reply.usage
            if reply.problem is not None:
                return Result(request.key, error=reply.problem, usage=usage)
            if logits := letter_logits(reply.steps, letters):
                return Result(request.key, logits=logits, usage=usage)
        reply = await ask(self._body(model, messages, self._written(letters)), _read)
        usage = Usage(*map(sum, zip(usage, reply.usage)))
        if reply.problem is not None:
            return Result(request.key, error=reply.problem, usage=usage)
        if (letter := find_letter(reply.text)) not in letters:
            problem = Problem("no_choice", f"The model named no choice: {_short(reply)}")
            return Result(request.key, error=problem, usage=usage)
        return Result(request.key, chosen=request.score[letters.index(letter)], usage=usage)

    def _body(self, model: str, messages: Messages, fields: Fields) -> dict[str, object]:
        body: dict[str, object] = {"model": model, "messages": messages}
        for word, values in fields.items():
            if word not in self._left_out:
                body |= values
            elif word == "max_tokens":
                body["max_completion_tokens"] = values[word]
        return body

    def _scored(self, letters: Sequence[str]) -> Fields:
        told: dict[str, object] = {"logprobs": True, "top_logprobs": TOP}
        return {**_one_of(letters), "logprobs": told, **_always(1)}

    def _written(self, letters: Sequence[str]) -> Fields:
        if "structured_outputs" not in self._left_out:
            return {**_one_of(letters), **_always(self._max_new_tokens)}
        answer = {"type": "string", "enum": list(letters)}
        schema = {
            "type": "object",
            "properties": {"answer": answer},
            "required": ["answer"],
            "additionalProperties": False,
        }
        named = {"name": "answer", "strict": True, "schema": schema}
        form = {"type": "json_schema", "json_schema": named}
        return {"response_format": {"response_format": form}, **_always(self._max_new_tokens)}

    def _free(self) -> Fields:
        return {"logprobs": {"logprobs": True}, **_always(self._max_new_tokens)}

    def _learn(self, fields: Fields, error: Refused) -> None:
        """Leave out what the server names in its refusal or, where it names nothing, what comes
        first. Raises the refusal where nothing is left of it."""
        left = [word for word in fields if word not in self._left_out]
        named = [word for word in left if word in str(error)]
        if not left:
            raise error
        log.debug("A small question was refused: %s", error)
        self._leave_out((named or left)[0])

    def _leave_out(self, word: str) -> None:
        self._left_out.add(word)
        if word == "logprobs":
            log.warning(
                "The server gives no log-probabilities: choices are read from what it writes, and "
                "have no confidence and no choice_probabilities."
            )
        elif word == "temperature":
            log.warning("The model takes no temperature: its answers may change from run to run.")


def _one_of(letters: Sequence[str]) -> Fields:
    # vLLM's own, which then counts the letters alone, as the other engines do.
    return {"structured_outputs": {"structured_outputs": {"choice": list(letters)}}}


def _always(tokens: int) -> Fields:
    # Every server has known max_tokens from the start, and some pass over the newer name without a
    # word; OpenAI's newer models refuse it for max_completion_tokens.
    return {"temperature": {"temperature": 0}, "max_tokens": {"max_tokens": tokens}}


class Step(NamedTuple):
    """The log-probability of a token that was written, and the likeliest in its place."""

    logprob: float
    top: tuple[tuple[str, float], ...]


class Reply(NamedTuple):
    """What a server answers: a text or a problem, and what it tells of each token of the text."""

    text: str
    steps: tuple[Step, ...]
    is_cut: bool
    problem: Problem | None
    usage: Usage


def _read(answer: Any) -> Reply:
    [choice] = answer["choices"]
    message, ending = choice["message"], choice.get("finish_reason")
    text, refusal = _clean(message.get("content")), _clean(message.get("refusal"))
    problem = None
    if refusal or ending == "content_filter":
        words = f": {(refusal or text)[:500]}" if refusal or text else ""
        who = "The model refused" if refusal else "The server's content filter ended the answer"
        problem = Problem("refused", f"{who}{words}")
    told = answer.get("usage") or {}
    usage = Usage(*(int(told.get(f"{kind}_tokens") or 0) for kind in Usage._fields))
    if not all(0 <= tokens < MOST_TOKENS for tokens in usage):
        raise ValueError(f"{usage}")
    steps = (choice.get("logprobs") or {}).get("content") or ()
    return Reply(text, tuple(map(_read_step, steps)), ending == "length", problem, usage)


def _read_step(step: Any) -> Step:
    top = step.get("top_logprobs") or ()
    listed = ((str(item["token"]), float(item["logprob"])) for item in top)
    return Step(float(step["logprob"]), tuple(listed))


def _clean(text: str | None) -> str:
    """A text that can be written down: JSON may have half a surrogate pair."""
    return (text or "").encode(errors="replace").decode().strip()


def _free_form(request: Request, reply: Reply) -> Result:
    problem = reply.problem
    if problem is None and not reply.text and reply.is_cut:
        problem = Problem("no_answer", f"The model wrote nothing: {_short(reply)}")
    if problem is not None:
        return Result(request.key, error=problem, usage=reply.usage)
    logprobs = finite([step.logprob for step in reply.steps])
    return Result(request.key, reply.text, logprobs=logprobs, usage=reply.usage)


def _short(reply: Reply) -> str:
    words = repr(reply.text[:200])
    return f"{words}, cut off at its longest (--max-new-tokens)." if reply.is_cut else f"{words}."


def letter_logits(steps: Sequence[Step], letters: Sequence[str]) -> tuple[float, ...]:
    """The log-probability of each letter as the first token, with and without a space before it;
    empty where none of them is listed.

    One that is not listed counts as the least of the list, than which it is not likelier: so no
    other is thought likelier than it is. Raises Refused for what is no number.
    """
    listed = [pair for step in steps[:1] for pair in step.top]
    known = [(token.strip(BLANK), value) for token, value in listed if value != NO_NUMBER]
    finite([value for _, value in known])
    by_letter = {letter: [value for token, value in known if token == letter] for letter in letters}
    if not any(by_letter.values()):
        return ()
    least = min(value for _, value in known)
    return tuple(_log_sum(values) if values else least for values in by_letter.values())


def _log_sum(values: Sequence[float]) -> float:
    highest = max(values)
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))


def find_letter(text: str) -> str | None:
    """The letter that a reply names, and nothing else with it: `B`, `**b.**`, `Answer: B`,
    `{"answer": "B"}`."""
    match = LETTER.fullmatch(text)
    return match[1].upper() if match else None


def _with_images(messages: Messages, uris: Sequence[str]) -> list[dict[str, Any]]:
    """The messages with each image part as OpenAI has it."""
    images = iter(uris)
    return [
        {
            **message,
            "content": [
                {"type": "image_url", "image_url": {"url": next(images)}}
                if part["type"] == "image"
                else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]
