"""The settings of `predict`, each declared once: type, default, rule, help, and whether an answer
depends on it. Flags, variables, config files, checks and the keys of answers follow from that.

Flag > MMRAG_* variable > config file > default. A config file is TOML: `[predict]`, then the names
of this page, as in `top_k = 3`. The variable of `top_k` is MMRAG_TOP_K, its flag `--top-k`. Every
problem is reported at once.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

from mmrag_batch.declare import (
    FOLDER,
    PATH,
    SWITCH,
    TEXT,
    Given,
    Rule,
    between,
    build,
    columns_setting,
    number,
    pattern,
    rules_of,
    setting,
    settings_of,
    word,
)
from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.remote import PLACE

DtypeName = Literal["auto", "float32", "bfloat16"]
IfLocked = Literal["fail", "skip", "wait"]
DeviceName = Literal["auto", "cpu", "cuda"]
DEMO_BUNDLE = Path(__file__).parent / "demo_bundle"
PREFIX = "MMRAG_"
SHORT = {"quiet": ("-q",), "verbose": ("-v",)}
SWITCH_WORDS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}

NAME = pattern("a name in small letters", r"[a-z][\w-]*")
URL = pattern("an address that begins with http:// or https://", r"https?://.*")
HOSTS = pattern(
    "host names with commas between them, as in 'example.org,cdn.example.org'",
    r"[\w.-]+(\s*,\s*[\w.-]+)*",
)
PLACES = pattern(
    "places on object stores with commas between them, as in 's3://bucket/pictures'",
    rf"{PLACE}(\s*,\s*{PLACE})*",
)
SHARE = pattern(
    "20 or another number of rows, or a share of them, as in 0.05", r"\d+|0?\.\d+", int, float
)
CLUSTER = pattern("auto, local, or an address as in 'host:6379'", r"auto|local|ray://\S+|\S+:\d+")
SHARD = pattern("a shard and their number, as in '0/4'", r"\d+/\d+")


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """What `predict` is asked to do; paths are relative to the working directory."""

    input: Path
    output: Path
    bundle: Path = setting(
        FOLDER, DEMO_BUNDLE, "The models.", otherwise="the demo bundle", repeated=True
    )
    engine: str = setting(
        NAME,
        "auto",
        "What generates: auto, vllm, transformers, server, chat or scripted.",
        otherwise="vllm where there is a GPU for it, else transformers",
        changes_answers=True,
    )
    device: DeviceName = setting(word(DeviceName), "auto", "Where models run.", repeated=True)
    dtype: DtypeName = setting(
        word(DtypeName),
        "auto",
        "The generator's precision. Of vllm and transformers.",
        otherwise="bfloat16 on a GPU, float32 on a CPU",
        repeated=True,
    )
    image_root: Path | None = setting(
        PATH, None, "Where image paths start.", otherwise="the folder of INPUT", repeated=True
    )
    allow_media_domain: str = setting(
        HOSTS,
        "",
        "Hosts to fetch images from, with commas.",
        otherwise="no network at all",
        repeated=True,
    )
    allow_remote: str = setting(
        PLACES,
        "",
        "Where images may lie on object stores, with commas: s3://bucket/pictures.",
        otherwise="nowhere",
        repeated=True,
    )
    columns: str = columns_setting()
    candidates: str = setting(
        NAME, "row", "Whose documents: row, or given, in the row's order.", changes_answers=True
    )
    corpus: Path | None = setting(
        PATH,
        None,
        "Documents for all rows: a folder that `index` wrote, or qdrant+http://host:6333/docs.",
        repeated=True,
    )
    top_k: int | None = setting(
        number(0, 100),
        None,
        "Documents kept a question.",
        otherwise="the bundle's",
        changes_answers=True,
    )
    max_images: int | None = setting(
        number(1, 100),
        None,
        "Images shown a question.",
        otherwise="the bundle's",
        changes_answers=True,
    )
    embedding_cache: Path | None = setting(
        PATH, None, "A folder that keeps embeddings for other runs.", repeated=True
    )
    batch_size: int = setting(
        number(1, 4096), 8, "Questions at once. Of transformers.", repeated=True
    )
    gpus: int = setting(number(1, 64), 1, "GPUs of this machine. Of vllm.", repeated=True)
    engine_rows: int | None = setting(
        number(1, 4096),
        None,
        "Questions at once. Of vllm, server and chat.",
        otherwise="what fits; 64",
        repeated=True,
    )
    engine_tokens: int | None = setting(
        number(64, 10**6),
        None,
        "Text tokens a step. Of vllm.",
        otherwise="8,192; 2,048 on a CPU",
        repeated=True,
    )
    kv_cache_gib: int | None = setting(
        number(1, 10_000),
        None,
        "The KV cache. Of vllm.",
        otherwise="what is free, or needed",
        repeated=True,
    )
    endpoint: str | None = setting(
        URL, None, "Where the server is: http://host:8000. Of server and chat.", repeated=True
    )
    model: str | None = setting(
        TEXT,
        None,
        "The model's name; chat needs it. Of server and chat.",
        otherwise="its first",
        changes_answers=True,
    )
    max_new_tokens: int = setting(
        number(1, 4096), 32, "Longest free-form answer.", changes_answers=True
    )
    limit: int | None = setting(
        number(1, 10**12), None, "Answer only the first rows.", repeated=True
    )
    shard: str | None = setting(
        SHARD, None, "Answer one part of the rows, as 0/4.", otherwise="by the Slurm array"
    )
    store: Path | None = setting(
        PATH, None, "A file that keeps answers for several outputs.", otherwise="OUTPUT.store"
    )
    upload: str | None = setting(
        pattern("a place on an object store, as in 's3://bucket/run'", PLACE),
        None,
        "Write OUTPUT there as well when it is whole: s3://bucket/run.",
        repeated=True,
    )
    overwrite: bool = setting(SWITCH, False, "Replace an OUTPUT that is not as it was.")
    fresh: bool = setting(SWITCH, False, "Ask every row again; answers are kept aside.")
    retry_errors: bool = setting(SWITCH, False, "Ask the failed rows again.")
    retry_degraded: bool = setting(SWITCH, False, "Those without a broken document as well.")
    verify_inputs: bool = setting(SWITCH, False, "Ask the rows again whose images have changed.")
    abstain_below: float | None = setting(
        between(0, 1),
        None,
        "Withhold answers that are less sure, as 'abstained'.",
        otherwise="never",
        repeated=True,
    )
    max_row_errors: str | None = setting(
        SHARE, None, "End early when more rows fail, as 20 or 0.05 of them.", otherwise="never"
    )
    max_runtime: int | None = setting(
        number(1, 10**9), None, "Stop after so many seconds, as by a signal."
    )
    row_timeout: int = setting(
        number(1, 10**6), 3600, "Seconds to wait for an answer. Of vllm, server and chat."
    )
    grace: int = setting(number(0, 10**6), 30, "Seconds to finish rows in, when stopped.")
    if_locked: IfLocked = setting(word(IfLocked), "fail", "When another run writes OUTPUT.")
    executor: str = setting(NAME, "local", "Where stages run: local, or ray.", repeated=True)
    ray: str | None = setting(CLUSTER, None, "A Ray cluster: auto or host:6379.", repeated=True)
    metrics_file: Path | None = setting(PATH, None, "Write metrics for Prometheus to this file.")
    quiet: bool = setting(SWITCH, False, "Print nothing on success.")
    verbose: bool = setting(SWITCH, False, "Log each row, and what a run is made with.")


class Flag(NamedTuple):
    """A setting on the command line: None where it is not given."""

    name: str
    kind: Any
    declarations: Sequence[str]
    help: str


def flag_of(name: str, *, on: bool = True) -> str:
    """What a setting is called on the command line; a switch can be turned off as well."""
    return ("--" if on else "--no-") + name.replace("_", "-")


def flags(kind: type[PredictSettings]) -> Iterator[Flag]:
    """The settings as flags, in order."""
    types = get_type_hints(kind)
    defaults = {item.name: item.default for item in fields(kind)}
    for name, declared in settings_of(kind).items():
        declaration = flag_of(name)
        if declared.rule is SWITCH:
            declaration += "/" + flag_of(name, on=False)
        otherwise = declared.otherwise or defaults[name] or ""
        text = f"{declared.help}  [default: {otherwise}]" if otherwise else declared.help
        yield Flag(name, types[name] | None, (declaration, *SHORT.get(name, ())), text)


def load_predict_settings(
    input_path: Path,
    output_path: Path,
    flags: Mapping[str, object],
    *,
    environ: Mapping[str, str],
    config_file: Path | None = None,
    kind: type[PredictSettings] = PredictSettings,
    called: Callable[[str], str] = flag_of,
) -> PredictSettings:
    """Settings from all their sources. A flag, or a variable, that is None or empty is not given;
    `called` is what errors call a flag.

    Raises ConfigError that lists every unknown name, wrong type and value out of range, even one
    that a stronger source overrides; MissingError where there is no such config file.
    """
    rules = rules_of(kind)
    given = [
        *_from_file(config_file),
        *_from_variables(environ, {name: rules[name] for name in settings_of(kind)}),
        *(Given(name, value, called(name)) for name, value in flags.items() if value is not None),
    ]
    return build(kind, given, "predict", {"input": input_path, "output": output_path})


def _from_variables(environ: Mapping[str, str], rules: Mapping[str, Rule]) -> Iterator[Given]:
    """Variables of ours, and those that look like one; other tools may have the prefix as well."""
    for variable, text in environ.items():
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and text:
            if name in rules:
                yield Given(name, _value_of(text, rules[name]), variable)
            elif get_close_matches(name, rules, n=1, cutoff=0.8):
                yield Given(name, text, variable)


def _value_of(text: str, rule: Rule) -> object:
    """What a variable's text stands for; the text itself where it stands for nothing else."""
    if rule.kinds[0] is int and re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    return SWITCH_WORDS.get(text.lower(), text) if rule.kinds[0] is bool else text


def _from_file(file: Path | None) -> Iterator[Given]:
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
            yield Given("", values, f"{file}, {table} (outside [predict])")
            continue
        for name, value in values.items():
            yield Given(name, value, f"{file}, [predict] {name}")
