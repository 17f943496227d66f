from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from mmrag_batch.declare import SWITCH, load_config, number, rules_of, setting, settings_of
from mmrag_batch.errors import ConfigError, MissingError


@dataclass(frozen=True)
class Settings:
    out: Path
    steps: int
    rate: float
    scoring: Literal["letter", "text"] = "text"
    base: Path | None = None
    quiet: bool = False
    name: str = ""
    rank: int | None = setting(number(1, 64), None, "Of LoRA.")
    loud: bool = setting(SWITCH, False, "Shout.", changes_answers=True)


NEEDED = "out: a\nsteps: 3\nrate: 1\n"


def load(directory: Path, text: str) -> Settings:
    file = directory / "settings.yaml"
    file.write_text(text)
    return load_config(file, Settings)


def test_values_take_the_types_of_the_settings(tmp_path: Path) -> None:
    given = "out: runs/a\nsteps: 3\nrate: 1e-3\nscoring: letter\nbase: b\nrank: 8\nloud: true\n"
    found = load(tmp_path, given)
    assert found == Settings(Path("runs/a"), 3, 0.001, "letter", Path("b"), rank=8, loud=True)


def test_what_has_a_default_may_be_left_out_or_be_null_if_it_is_optional(tmp_path: Path) -> None:
    found = load(tmp_path, NEEDED + "base:\nrank: null\n")
    assert found == Settings(Path("a"), 3, 1.0)
    assert isinstance(found.rate, float)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "stepz: 3\nsteps: many\nrate: fast\nscoring: digit\nbase: 3\nrank: 65\n1: 2")
    file = tmp_path / "settings.yaml"
    names = "out, steps, rate, scoring, base, quiet, name, rank, loud"
    assert str(caught.value).splitlines() == [
        f"{file}, stepz: no such setting; did you mean 'steps'?",
        f"{file}, steps: expected a whole number, not 'many'.",
        f"{file}, rate: expected a number, not 'fast'.",
        f"{file}, scoring: expected one of letter, text, not 'digit'.",
        f"{file}, base: expected a path, not 3.",
        f"{file}, rank: expected a whole number from 1 to 64, not 65.",
        f"{file}, 1: no such setting; known: {names}.",
        f"{file}: 'out' is missing; expected a path.",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "steps: true",
        "steps: 3.0",
        "steps: '3'",
        "rate: true",
        "rate: .nan",
        "rate: [1]",
        "quiet: 1",
        "name: 3",
        "name:",
        "out:",
        "scoring: []",
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path: Path, line: str) -> None:
    name = line.partition(":")[0]
    with pytest.raises(ConfigError, match=f"settings.yaml, {name}: expected"):
        load(tmp_path, "\n".join([one for one in NEEDED.split("\n") if name not in one] + [line]))


@pytest.mark.parametrize("text", [b"- out\n- steps\n", b"steps", b"out: [", b"", b"\xff\xfe\xff"])
def test_what_is_no_list_of_settings_is_refused(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=r"settings\.yaml"):
        load_config(file, Settings)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"There is no file .*none\.yaml"):
        load_config(tmp_path / "none.yaml", Settings)


def test_a_default_may_be_made() -> None:
    @dataclass
    class Made:
        names: str = field(default_factory=str)

    assert rules_of(Made)["names"].expected == "a text"
    assert settings_of(Made) == {}


def test_what_changes_answers_is_repeated() -> None:
    declared = settings_of(Settings)
    assert list(declared) == ["rank", "loud"]
    assert (declared["rank"].repeated, declared["loud"].repeated) == (False, True)
