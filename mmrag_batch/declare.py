"""How settings are declared, once each, as fields of a dataclass, and how what is given is checked.

    top_k: int | None = setting(number(0, 100), None, "Documents kept a question.")

What a field must be is the rule that it is declared with, or else follows from its type. Whatever
the source, flags, variables, TOML or YAML, values go through `build`, which reports every problem
at once.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from mmrag_batch.errors import ConfigError, MissingError

C = TypeVar("C")
KEY = "setting"
"""What a declaration is called in the metadata of its field."""
NEEDED: Any = MISSING
"""The default of what has none and must be given."""


class Rule(NamedTuple):
    """What a setting must be: `expected` says it in words, `kinds` are its types, the first of them
    the one that it is kept as."""

    kinds: tuple[type, ...]
    expected: str
    holds: Callable[[Any], object] = lambda _: True


def number(low: int, high: int) -> Rule:
    """A whole number from `low` to `high`."""
    expected = f"a whole number from {low:,} to {high:,}"
    return Rule((int,), expected, range(low, high + 1).__contains__)


def between(low: float, high: float) -> Rule:
    """A number from `low` to `high`."""
    expected = f"a number from {low:g} to {high:g}"
    return Rule((float, int, str), expected, lambda value: _is_number(value, low, high))


def word(words: object) -> Rule:
    """One of the words of a Literal."""
    known = get_args(words)
    return Rule((str,), f"one of {', '.join(known)}", known.__contains__)


def pattern(expected: str, regex: str, *others: type) -> Rule:
    """A text that matches as a whole; `others` are types whose texts may as well."""
    return Rule((str, *others), expected, lambda value: re.fullmatch(regex, str(value)))


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    try:
        return math.isfinite(float(value)) and low <= float(value) <= high
    except ValueError:
        return False


HUB = "hf:"
"""What stands before a model's name on the hub, where one may stand in place of a folder."""
PATH = Rule((Path, str), "a path")
FOLDER = Rule(
    (Path, str),
    "a folder here, not on the hub (`mmrag-batch export` or `hf download` makes one)",
    lambda value: not str(value).startswith(HUB),
)
COLUMNS = pattern(
    "our names and the table's, as in 'question_image=image,label=answer'",
    r"([a-z_. ]+=[^,=]+(,[a-z_. ]+=[^,=]+)*)?",
)
TEXT = Rule((str,), "a text")
SWITCH = Rule((bool,), "true or false")
WHOLE = Rule((int,), "a whole number")
NUMBER = Rule((float, int, str), "a number", _is_number)  # YAML reads 1e-3 as a string
BY_TYPE = {Path: PATH, str: TEXT, bool: SWITCH, int: WHOLE, float: NUMBER}


class Setting(NamedTuple):
    """What is declared of a setting beside its type and its default.

    `otherwise` is what the default stands for, `changes_answers` whether answers depend on it,
    `repeated` whether a command that goes on with a run must be given it again.
    """

    rule: Rule
    help: str
    otherwise: str
    changes_answers: bool
    repeated: bool


def setting(
    rule: Rule,
    default: Any,
    text: str,
    *,
    otherwise: str = "",
    changes_answers: bool = False,
    repeated: bool = False,
) -> Any:
    """Declares a field. What changes answers is repeated as well."""
    declared = Setting(rule, text, otherwise, changes_answers, repeated or changes_answers)
    return field(default=default, metadata={KEY: declared})


def columns_setting() -> Any:
    """Declares what a table calls our columns: for all that reads one."""
    return setting(
        COLUMNS,
        "",
        "What the table calls our columns: question_image=image,label=answer",
        otherwise="as we do",
        repeated=True,
    )


def settings_of(kind: type[Any]) -> dict[str, Setting]:
    """What a dataclass declares with `setting`, in order."""
    return {item.name: item.metadata[KEY] for item in fields(kind) if KEY in item.metadata}


def rules_of(kind: type[Any]) -> dict[str, Rule]:
    """What each field of a dataclass must be; None will do where its type says so."""
    hints, declared = get_type_hints(kind), settings_of(kind)
    rules = {}
    for item in fields(kind):
        types = get_args(hints[item.name])
        optional = NoneType in types
        hint = next(one for one in types if one is not NoneType) if optional else hints[item.name]
        rule = declared[item.name].rule if item.name in declared else _rule_of(hint)
        rules[item.name] = rule._replace(kinds=(*rule.kinds, NoneType)) if optional else rule
    return rules


def _rule_of(hint: Any) -> Rule:
    return word(hint) if get_origin(hint) is Literal else BY_TYPE[hint]


class Given(NamedTuple):
    """One value as somebody gave it; `origin` says where."""

    name: str
    value: object
    origin: str


def build(
    kind: type[C], given: Sequence[Given], place: object, own: Mapping[str, object] | None = None
) -> C:
    """A `kind` made of what is given; the last value of a name wins. `own` are values that come
    from elsewhere, `place` is where a value that is missing could be.

    Raises ConfigError that lists every unknown name, wrong value and missing name, even a value
    that a later one overrides.
    """
    own = own or {}
    rules = {name: rule for name, rule in rules_of(kind).items() if name not in own}
    problems = [problem for item in given if (problem := _problem(item, rules))]
    for item in fields(kind):  # type: ignore[arg-type]  # a TypeVar cannot ask for a dataclass
        is_needed = item.default is MISSING and item.default_factory is MISSING
        if is_needed and item.name not in own and all(item.name != one.name for one in given):
            expected = rules[item.name].expected
            problems.append(f"{place}: {item.name!r} is missing; expected {expected}.")
    if problems:
        raise ConfigError("\n".join(problems))
    values = {name: _kept(value, rules[name]) for name, value, _ in given}
    return kind(**own, **values)


def _kept(value: Any, rule: Rule) -> Any:
    keeps = value is None or isinstance(value, rule.kinds[0])
    return value if keeps else rule.kinds[0](value)


def _problem(given: Given, rules: Mapping[str, Rule]) -> str | None:
    if given.name not in rules:
        near = get_close_matches(given.name, rules, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(rules)}."
        return f"{given.origin}: no such setting; {hint}"
    rule, value = rules[given.name], given.value
    fits = isinstance(value, rule.kinds)
    if isinstance(value, bool):  # it is an int, to Python
        fits = bool in rule.kinds
    if fits and (value is None or rule.holds(value)):
        return None
    return f"{given.origin}: expected {rule.expected}, not {value!r}."


def load_config(file: Path | None, kind: type[C], flags: Mapping[str, object] | None = None) -> C:
    """Read a YAML file into the dataclass `kind`; `flags` that are not None stand in for lines of
    it, or for all of it. Paths are relative to the working directory. What `kind.ALIASES` maps to a
    setting is another name of it.

    Raises what `build` does, ConfigError for a file that is no YAML or has a setting by both of its
    names, MissingError for none.
    """
    values = {} if file is None else _read_yaml(file)
    aliases: Mapping[object, str] = getattr(kind, "ALIASES", {})
    if both := [alias for alias in aliases if {alias, aliases[alias]} <= values.keys()]:
        raise ConfigError(
            f"{file}: {both[0]!r} and {aliases[both[0]]!r} are one setting; leave one of them out."
        )
    given = [
        Given(aliases.get(name, str(name)), value, f"{file}, {name}")
        for name, value in values.items()
    ]
    flags = {name: value for name, value in (flags or {}).items() if value is not None}
    given += [Given(name, value, "--" + name.replace("_", "-")) for name, value in flags.items()]
    return build(kind, given, file or "the command line")


def _read_yaml(file: Path) -> dict[object, object]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise MissingError(f"There is no file {file}.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # bad UTF-8 is a ValueError
        raise ConfigError(f"{file} cannot be read: {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} should hold lines of `key: value`, not {values!r}.")
    return values
