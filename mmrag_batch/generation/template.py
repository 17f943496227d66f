"""A checkpoint's chat template, which is a program that strangers wrote: it is compiled and applied
in a process of its own, within limits of time and memory."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from mmrag_batch.confined import Confined, EndedError, Message, serve_requests
from mmrag_batch.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "chat_template.jinja"
SECONDS = 4
"""Of a processor, for one conversation; a template takes some thousandths."""
MEMORY = 2**30
"""Bytes of address space; Python and Jinja take 50 MB."""
MAX_WRITTEN = 2**22
"""Characters. A context of 128 Ki tokens has some 500,000, and the texts are not among them."""


_PROCESS = Confined(__name__)
"""For all templates."""


class ChatTemplate:
    """A template, with the variables that every conversation has. Thread-safe."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self._source = source
        self._variables = variables
        _PROCESS.start()  # it is there when it is needed

    def apply(self, messages: Sequence[Mapping[str, Any]], *, answer_begins: bool = True) -> str:
        """What it writes for a conversation, up to where the answer begins. Models that think
        before they answer are asked not to.

        Raises ConfigError where it is no template, fails, or takes or writes too much.
        """
        variables = {
            **self._variables,
            "messages": messages,
            "add_generation_prompt": answer_begins,
            "enable_thinking": False,
        }
        asked = {"source": self._source, "variables": variables}
        try:
            head, text = _PROCESS.ask(asked, seconds=SECONDS, memory=MEMORY)
        except EndedError as error:
            why = f"it takes over {SECONDS} s" if error.by_limit else "it ends its process"
            raise ConfigError(f"{TEMPLATE} cannot be applied: {why}.") from None
        if problem := head.get("problem"):
            raise ConfigError(f"{TEMPLATE} {problem}")
        return text.decode()


def serve() -> None:
    """The process, as `confined` runs it."""
    compile_once = lru_cache(1)(_compile)

    def answer(asked: dict[str, Any], _: bytes) -> Message:
        task = "is not a valid template"
        try:
            template = compile_once(asked["source"])
            task = "cannot be applied"
            text = template.render(asked["variables"])
        except MemoryError:
            problem = "it takes too much memory."
        except Exception as error:  # whatever it does goes wrong in ways of its own
            problem = f"{type(error).__name__}: {str(error)[:500]}"
        else:
            if len(text) <= MAX_WRITTEN:
                return {}, text.encode(errors="replace")
            problem = f"it writes {len(text):,} characters, over {MAX_WRITTEN:,}."
        return {"problem": f"{task}: {problem}"}, b""

    serve_requests(answer)


def _compile(source: str) -> "Template":
    """The template in the sandbox and with the settings that Hugging Face uses.

    `strftime_now` is left out on purpose: an answer must not depend on the day it is given.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(source)


def _raise_exception(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)
