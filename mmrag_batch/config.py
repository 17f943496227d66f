"""The settings of `predict`: flag > MMRAG_* variable > config file > default.

A config file is TOML: `[predict]`, then the names of this page, as in `top_k = 3`. The variable of
`top_k` is MMRAG_TOP_K, its flag `--top-k`. Every problem is reported at once.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from mmrag_batch.errors import ConfigError, MissingError

EngineName = Literal["auto", "vllm", "transformers", "openai", "scripted"]
DtypeName = Literal["auto", "float32", "bfloat16"]
IfLocked = Literal["fail", "skip", "wait"]
DeviceName = Literal["auto", "cpu", "cuda"]
DEMO_BUNDLE = Path(__file__).parent / "demo_bundle"
PREFIX = "MMRAG_"


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """What `predict` is asked to do; paths are relative to the working directory."""

    input: Path
    output: Path
    bundle: Path = DEMO_BUNDLE
    engine: EngineName = "auto"
    """`auto`: vllm where there is a GPU for it, else transformers."""
    device: DeviceName = "auto"
    dtype: DtypeName = "auto"
    """Of the generator; `auto`: bfloat16 on a GPU, float32 on a CPU."""
    image_root: Path | None = None
    """Where relative image paths start; None: the folder of `input`."""
    allow_media_domain: str = ""
    """Hosts that images may be fetched from, separated by commas; empty: no network at all."""
    top_k: int | None = None
    """Documents kept a question; None: what the bundle was trained with."""
    max_images: int | None = None
    """Images shown to the generator a question; None: what the bundle was trained with."""
    embedding_cache: Path | None = None
    """A folder that keeps embeddings for other runs; None: they are forgotten."""
    batch_size: int = 8
    """Questions at once, for the transformers engine."""
    engine_rows: int | None = None
    """Questions at once, for vllm and openai; None: what fits, or 64 for a server."""
    engine_tokens: int | None = None
    """Most tokens of a step of vllm; None: enough to encode the images of four questions."""
    kv_cache_gib: int | None = None
    """Memory for vllm's KV cache; None: what is free on a GPU, what the rows need on a CPU."""
    endpoint: str | None = None
    """Where the vLLM server of the openai engine is, as in http://host:8000."""
    model: str | None = None
    """What that server calls the model; None: its first."""
    max_new_tokens: int = 32
    """Longest free-form answer."""
    limit: int | None = None
    """Rows to read; None: all."""
    shard: str | None = None
    """Which part of the rows to answer, as in `0/4`; None: what a Slurm array says, else all."""
    overwrite: bool = False
    fresh: bool = False
    """Begin anew, and move what is there of the output aside."""
    extend: bool = False
    """Go on with an input that has got more rows at its end."""
    retry_errors: bool = False
    """Ask the rows of a complete output again that have no answer."""
    repair: bool = False
    """Go on from before the damage in a journal."""
    max_row_errors: str | None = None
    """Rows that may fail, or their share, before a run ends early; None: it never does."""
    max_runtime: int | None = None
    """Seconds after which a run stops as by a signal."""
    row_timeout: int = 3600
    """Seconds without any answer after which an engine in a process of its own is started again."""
    grace: int = 30
    """Seconds that a run which is stopped may take to finish the rows in work."""
    if_locked: IfLocked = "fail"
    metrics_file: Path | None = None
    quiet: bool = False


class _Rule(NamedTuple):
    """What a setting must be: `expected` says it in words."""

    kind: type
    expected: str
    holds: Callable[[Any], object] = lambda _: True


class _Given(NamedTuple):
    """One value as somebody gave it; `origin` says where."""

    name: str
    value: object
    origin: str


def _number(low: int, high: int) -> _Rule:
    return _Rule(int, f"a whole number from {low:,} to {high:,}", range(low, high + 1).__contains__)


def _word(words: tuple[str, ...]) -> _Rule:
    return _Rule(str, f"one of {', '.join(words)}", words.__contains__)


_PATH = _Rule(Path, "a path")
_TEXT = _Rule(str, "a text")
_URL = _Rule(
    str,
    "an address that begins with http:// or https://",
    lambda text: text.startswith(("http://", "https://")),
)
_HOSTS = _Rule(
    str,
    "host names with commas between them, as in 'example.org,cdn.example.org'",
    re.compile(r"[\w.-]+(\s*,\s*[\w.-]+)*").fullmatch,
)
_ERRORS = _Rule(
    str,
    "'20' or another number of rows, or a share of them, as in '0.05'",
    re.compile(r"\d+|0?\.\d+").fullmatch,
)
_SHARD = _Rule(str, "a shard and their number, as in '0/4'", re.compile(r"\d+/\d+").fullmatch)
_SWITCH = _Rule(bool, "true or false")
_RULES = {
    "bundle": _PATH,
    "engine": _word(get_args(EngineName)),
    "device": _word(get_args(DeviceName)),
    "dtype": _word(get_args(DtypeName)),
    "image_root": _PATH,
    "allow_media_domain": _HOSTS,
    "embedding_cache": _PATH,
    "top_k": _number(0, 100),
    "max_images": _number(1, 100),
    "batch_size": _number(1, 4096),
    "engine_rows": _number(1, 4096),
    "engine_tokens": _number(64, 10**6),
    "kv_cache_gib": _number(1, 10_000),
    "endpoint": _URL,
    "model": _TEXT,
    "max_new_tokens": _number(1, 4096),
    "limit": _number(1, 10**12),
    "shard": _SHARD,
    "overwrite": _SWITCH,
    "fresh": _SWITCH,
    "extend": _SWITCH,
    "retry_errors": _SWITCH,
    "repair": _SWITCH,
    "max_row_errors": _ERRORS,
    "max_runtime": _number(1, 10**9),
    "row_timeout": _number(1, 10**6),
    "grace": _number(0, 10**6),
    "if_locked": _word(get_args(IfLocked)),
    "metrics_file": _PATH,
    "quiet": _SWITCH,
}
"""Every setting that has a default, and so may come from a variable or a file."""


def load_predict_settings(
    input_path: Path,
    output_path: Path,
    flags: Mapping[str, object],
    *,
    environ: Mapping[str, str],
    config_file: Path | None = None,
) -> PredictSettings:
    """Settings from all their sources. A flag, or a variable, that is None or empty is not given.

    Raises ConfigError that lists every unknown name, wrong type and value out of range, even one
    that a stronger source overrides; MissingError where there is no such config file.
    """
    given = [*_from_file(config_file), *_from_variables(environ), *_from_flags(flags)]
    problems = [problem for item in given if (problem := _problem(item))]
    if problems:
        raise ConfigError("\n".join(problems))
    values: dict[str, Any] = {}
    for name, value, _ in given:  # weakest first
        values[name] = Path(str(value)) if _RULES[name].kind is Path else value
    return PredictSettings(input=input_path, output=output_path, **values)


def _problem(given: _Given) -> str | None:
    rule = _RULES.get(given.name)
    if rule is None:
        near = get_close_matches(given.name, _RULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_RULES)}."
        return f"{given.origin}: no such setting; {hint}"
    kinds = (str, Path) if rule.kind is Path else (rule.kind,)
    fits = isinstance(given.value, kinds) and isinstance(given.value, bool) == (rule.kind is bool)
    if fits and rule.holds(given.value):
        return None
    return f"{given.origin}: expected {rule.expected}, not {given.value!r}."


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for name, value in flags.items():
        if value is not None:
            yield _Given(name, value, "--" + name.replace("_", "-"))


def _from_variables(environ: Mapping[str, str]) -> Iterator[_Given]:
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and text:
            name = variable.removeprefix(PREFIX).lower()
            yield _Given(name, _value_of(text, _RULES.get(name)), variable)


def _value_of(text: str, rule: _Rule | None) -> object:
    """What a variable's text stands for; the text itself where it stands for nothing else."""
    if rule is not None and rule.kind is int and re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    if rule is not None and rule.kind is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        return words.get(text.lower(), text)
    return text


def _from_file(file: Path | None) -> Iterator[_Given]:
    if file is None:
        return
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"--config: there is no file {file}.") from None
    except (OSError, ValueError) as error:  # bad TOML and bad UTF-8 are ValueErrors
        raise ConfigError(f"--config: {file} cannot be read: {error}.") from None
    for table, values in tables.items():
        if table != "predict" or not isinstance(values, dict):
            yield _Given("", values, f"{file}, {table} (outside [predict])")
            continue
        for name, value in values.items():
            yield _Given(name, value, f"{file}, [predict] {name}")
