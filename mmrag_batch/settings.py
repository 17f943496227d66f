"""The settings of `predict`, each declared once: type, default, rule, help, and whether an answer
depends on it. Flags, variables, config files, checks and the keys of answers follow from that.

Flag > MMRAG_* variable > config file > default. A config file is TOML: `[predict]`, then the names
of this page, as in `top_k = 3`. The variable of `top_k` is MMRAG_TOP_K, its flag `--top-k`. Every
problem is reported at once.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

from mmrag_batch.errors import ConfigError, MissingError

EngineName = Literal["auto", "vllm", "transformers", "openai", "scripted"]
DtypeName = Literal["auto", "float32", "bfloat16"]
IfLocked = Literal["fail", "skip", "wait"]
DeviceName = Literal["auto", "cpu", "cuda"]
DEMO_BUNDLE = Path(__file__).parent / "demo_bundle"
PREFIX = "MMRAG_"
SWITCH_WORDS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


class Rule(NamedTuple):
    """What a setting must be: `expected` says it in words, `kinds` are its types, the first of them
    the one that it is kept as."""

    kinds: tuple[type, ...]
    expected: str
    holds: Callable[[Any], object] = lambda _: True


class Setting(NamedTuple):
    """What is declared of a setting beside its type and its default.

    `otherwise` is what the default stands for, `changes_answers` whether answers depend on it.
    """

    rule: Rule
    help: str
    otherwise: str
    changes_answers: bool


def _number(low: int, high: int) -> Rule:
    expected = f"a whole number from {low:,} to {high:,}"
    return Rule((int,), expected, range(low, high + 1).__contains__)


def _word(words: object) -> Rule:
    known = get_args(words)
    return Rule((str,), f"one of {', '.join(known)}", known.__contains__)


def _pattern(expected: str, pattern: str, *others: type) -> Rule:
    return Rule((str, *others), expected, lambda value: re.fullmatch(pattern, str(value)))


PATH = Rule((Path, str), "a path")
TEXT = Rule((str,), "a text")
SWITCH = Rule((bool,), "true or false")
URL = _pattern("an address that begins with http:// or https://", r"https?://.*")
HOSTS = _pattern(
    "host names with commas between them, as in 'example.org,cdn.example.org'",
    r"[\w.-]+(\s*,\s*[\w.-]+)*",
)
SHARE = _pattern(
    "20 or another number of rows, or a share of them, as in 0.05", r"\d+|0?\.\d+", int, float
)
SHARD = _pattern("a shard and their number, as in '0/4'", r"\d+/\d+")


def _setting(
    rule: Rule, default: Any, text: str, *, otherwise: str = "", changes_answers: bool = False
) -> Any:
    setting = Setting(rule, text, otherwise, changes_answers)
    return field(default=default, metadata={"setting": setting})


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """What `predict` is asked to do; paths are relative to the working directory."""

    input: Path
    output: Path
    bundle: Path = _setting(PATH, DEMO_BUNDLE, "The models.", otherwise="the demo bundle")
    engine: EngineName = _setting(
        _word(EngineName),
        "auto",
        "What generates.",
        otherwise="vllm where there is a GPU for it, else transformers",
        changes_answers=True,
    )
    device: DeviceName = _setting(_word(DeviceName), "auto", "Where models run.")
    dtype: DtypeName = _setting(
        _word(DtypeName),
        "auto",
        "Of the generator.",
        otherwise="bfloat16 on a GPU, float32 on a CPU",
    )
    image_root: Path | None = _setting(
        PATH, None, "Where image paths start.", otherwise="the folder of INPUT"
    )
    allow_media_domain: str = _setting(
        HOSTS, "", "Hosts to fetch images from, with commas.", otherwise="no network at all"
    )
    top_k: int | None = _setting(
        _number(0, 100),
        None,
        "Documents kept a question.",
        otherwise="the bundle's",
        changes_answers=True,
    )
    max_images: int | None = _setting(
        _number(1, 100),
        None,
        "Images shown a question.",
        otherwise="the bundle's",
        changes_answers=True,
    )
    embedding_cache: Path | None = _setting(
        PATH, None, "A folder that keeps embeddings for other runs."
    )
    batch_size: int = _setting(_number(1, 4096), 8, "Questions at once, for transformers.")
    engine_rows: int | None = _setting(
        _number(1, 4096), None, "The same for vllm and openai.", otherwise="what fits; 64"
    )
    engine_tokens: int | None = _setting(
        _number(64, 10**6), None, "Tokens a step of vllm.", otherwise="for 4 questions' images"
    )
    kv_cache_gib: int | None = _setting(
        _number(1, 10_000), None, "vllm's KV cache.", otherwise="what is free, or needed"
    )
    endpoint: str | None = _setting(URL, None, "The server of the openai engine: http://host:8000")
    model: str | None = _setting(
        TEXT, None, "What it calls the model.", otherwise="its first", changes_answers=True
    )
    max_new_tokens: int = _setting(
        _number(1, 4096), 32, "Longest free-form answer.", changes_answers=True
    )
    limit: int | None = _setting(_number(1, 10**12), None, "Answer only the first rows.")
    shard: str | None = _setting(
        SHARD,
        None,
        "Answer one part of the rows, as 0/4.",
        otherwise="by the Slurm array",
    )
    store: Path | None = _setting(
        PATH, None, "A file that keeps answers for several outputs.", otherwise="OUTPUT.store"
    )
    overwrite: bool = _setting(SWITCH, False, "Replace an OUTPUT that is not as it was.")
    fresh: bool = _setting(SWITCH, False, "Ask every row again; answers are kept aside.")
    retry_errors: bool = _setting(SWITCH, False, "Ask the failed rows again.")
    retry_degraded: bool = _setting(SWITCH, False, "Those without a broken document as well.")
    verify_inputs: bool = _setting(SWITCH, False, "Ask the rows again whose images have changed.")
    max_row_errors: str | None = _setting(
        SHARE, None, "End early when more rows fail, as 20 or 0.05 of them.", otherwise="never"
    )
    max_runtime: int | None = _setting(
        _number(1, 10**9), None, "Stop after so many seconds, as by a signal."
    )
    row_timeout: int = _setting(
        _number(1, 10**6), 3600, "Seconds without any answer after which an engine starts again."
    )
    grace: int = _setting(_number(0, 10**6), 30, "Seconds to finish rows in, when stopped.")
    if_locked: IfLocked = _setting(_word(IfLocked), "fail", "When another run writes OUTPUT.")
    metrics_file: Path | None = _setting(PATH, None, "Write metrics for Prometheus to this file.")
    quiet: bool = _setting(SWITCH, False, "Print nothing on success.")


SETTINGS: Mapping[str, Setting] = {
    item.name: item.metadata["setting"] for item in fields(PredictSettings) if item.metadata
}
"""Every setting that has a default, and so may come from a flag, a variable or a file."""


class Flag(NamedTuple):
    """A setting on the command line: None where it is not given."""

    name: str
    kind: Any
    declaration: str
    help: str


def flags() -> Iterator[Flag]:
    """The settings as flags, in order."""
    kinds = get_type_hints(PredictSettings)
    for item in fields(PredictSettings):
        if item.name in SETTINGS:
            setting = SETTINGS[item.name]
            word = item.name.replace("_", "-")
            declaration = f"--{word}/--no-{word}" if setting.rule is SWITCH else f"--{word}"
            otherwise = setting.otherwise or item.default or ""
            text = f"{setting.help}  [default: {otherwise}]" if otherwise else setting.help
            yield Flag(item.name, kinds[item.name] | None, declaration, text)


class _Given(NamedTuple):
    """One value as somebody gave it; `origin` says where."""

    name: str
    value: object
    origin: str


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
    values = {name: _kept(value, SETTINGS[name].rule) for name, value, _ in given}  # last wins
    return PredictSettings(input=input_path, output=output_path, **values)


def _kept(value: Any, rule: Rule) -> Any:
    return value if isinstance(value, rule.kinds[0]) else rule.kinds[0](value)


def _problem(given: _Given) -> str | None:
    if given.name not in SETTINGS:
        near = get_close_matches(given.name, SETTINGS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(SETTINGS)}."
        return f"{given.origin}: no such setting; {hint}"
    rule = SETTINGS[given.name].rule
    fits = isinstance(given.value, rule.kinds)
    fits = fits and isinstance(given.value, bool) == (rule is SWITCH)
    if fits and rule.holds(given.value):
        return None
    return f"{given.origin}: expected {rule.expected}, not {given.value!r}."


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for name, value in flags.items():
        if value is not None:
            yield _Given(name, value, "--" + name.replace("_", "-"))


def _from_variables(environ: Mapping[str, str]) -> Iterator[_Given]:
    """Variables of ours, and those that look like one; other tools may have the prefix as well."""
    for variable, text in environ.items():
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and text:
            if name in SETTINGS:
                yield _Given(name, _value_of(text, SETTINGS[name].rule), variable)
            elif get_close_matches(name, SETTINGS, n=1, cutoff=0.8):
                yield _Given(name, text, variable)


def _value_of(text: str, rule: Rule) -> object:
    """What a variable's text stands for; the text itself where it stands for nothing else."""
    if rule.kinds == (int,) and re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    return SWITCH_WORDS.get(text.lower(), text) if rule is SWITCH else text


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
