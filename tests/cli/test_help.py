"""Help reads well on a terminal of 80 columns, and a slip of the finger is answered with a name."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from mmrag_batch.cli import help as grouping
from mmrag_batch.cli.app import app
from mmrag_batch.declare import settings_of
from mmrag_batch.settings import PredictSettings


def said(*words: str) -> str:
    return CliRunner().invoke(app, [*words], terminal_width=80).output


ROOT: Any = typer.main.get_command(app)
Words = tuple[str, ...]


def commands(command: Any = ROOT, words: Words = ()) -> Iterator[tuple[Words, Any]]:
    """Each command that there is, and how it is called."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


COMMANDS = dict(commands())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_fits_a_terminal(words: Words) -> None:
    assert max(map(len, said(*words, "--help").splitlines())) <= 80


@pytest.mark.parametrize("words", [(), ("train",), ("export",), ("demo",)], ids=" ".join)
def test_a_command_is_listed_with_the_whole_first_line_of_its_help(words: Words) -> None:
    text = " ".join(said(*words, "--help").split())
    for name, inner in COMMANDS[words].commands.items():
        first = " ".join(inner.help.partition("\n\n")[0].split())
        assert f" {name} {first}" in text


def test_every_command_is_in_a_group() -> None:
    top = set(ROOT.commands)
    assert {name for names in grouping.COMMANDS.values() for name in names.split()} == top
    text = said("--help")
    places = [text.index(f"{title}:\n") for title in grouping.COMMANDS]
    assert places == sorted(places)


def test_the_settings_of_predict_are_in_groups() -> None:
    first = next(iter(settings_of(PredictSettings)))
    assert first in grouping.SETTINGS
    assert grouping.SETTINGS.keys() <= settings_of(PredictSettings).keys()
    text = said("predict", "--help")
    for name, title in grouping.SETTINGS.items():
        flag = f"--{name.replace('_', '-')}"
        assert f"\n{title}:\n  {flag} " in text


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("pedict", "in.csv", "out.csv"), "Did you mean 'predict'?"),
        (("train", "genrator", "x.yaml"), "Did you mean 'generator'?"),
        (("predict", "in.csv", "out.csv", "--retry-error"), "--retry-errors"),
        (("status", "out.csv", "--jsno"), "--json"),
    ],
)
def test_a_slip_is_answered_with_what_may_be_meant(words: tuple[str, ...], meant: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert meant in done.output
