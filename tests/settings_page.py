"""The tables of docs/settings.md, docs/commands.md and docs/configs.md: what can be set, each from
where it is declared.

python -m tests.settings_page        # writes the tables into the pages
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from typer.main import get_command

from mmrag_batch.cli.app import app
from mmrag_batch.cli.making import CONFIGS, config_of
from mmrag_batch.configs import keys
from mmrag_batch.declare import settings_of
from mmrag_batch.settings import PREFIX, PredictSettings, flag_of

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- made by tests/settings_page.py: begin -->", "<!-- end -->"


def settings_table() -> str:
    """A line for each setting: its flag, its variable, what it may be, what it is without, help."""
    defaults = {item.name: item.default for item in fields(PredictSettings)}
    lines = []
    for name, one in settings_of(PredictSettings).items():
        default = one.otherwise or _shown(defaults[name])
        changes = "yes" if one.changes_answers else ""
        names = f"`{flag_of(name)}`", f"`{PREFIX}{name.upper()}`"
        lines.append((*names, one.rule.expected, default, one.help, changes))
    return table(("flag", "variable", "a value", "default", "what", "changes answers"), lines)


def configs_tables() -> str:
    """For each command that reads a YAML file, a line for each key of it."""
    parts = []
    for command in CONFIGS:
        lines = []
        for key in keys(config_of(command)):
            value, _, default = key.values.rpartition("; ")
            lines.append((f"`{key.name}`", value, default.removeprefix("default: "), key.help))
        titles = ("key", "a value", "default", "what")
        parts += [f"## mmrag-batch {command}", table(titles, lines)]
    return "\n\n".join(parts)


def _shown(default: object) -> str:
    return "" if default is None or default is False else f"{default}"


def commands_sections() -> str:
    """For each command what `--help` says of it, but for those flags of `predict` that are settings
    and have a page of their own."""
    return "\n\n".join(_sections("mmrag-batch", get_command(app)))


def _sections(name: str, command: Any) -> Iterator[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    settings = settings_of(PredictSettings) if name == "mmrag-batch predict" else {}
    records = [one.get_help_record(context) for one in command.params if one.name not in settings]
    lines = [(f"`{left}`", _on_one_line(right)) for left, right in filter(None, records)]
    yield "\n\n".join(
        [
            f"## {name}",
            inspect.cleandoc(command.help or ""),
            *([table(("argument or flag", "what"), lines)] if lines else []),
        ]
    )
    for child in getattr(command, "commands", {}).values():
        yield from _sections(f"{name} {child.name}", child)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (titles, *lines)]
    first, *rest = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([first, f"|{'---|' * len(titles)}", *rest])


PAGES = {"settings": settings_table, "commands": commands_sections, "configs": configs_tables}


def written(page: str) -> str:
    """A page as it should be."""
    before, _, rest = (DOCS / f"{page}.md").read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{PAGES[page]()}\n\n{END}{after}"


if __name__ == "__main__":
    for page in PAGES:
        (DOCS / f"{page}.md").write_text(written(page), encoding="utf-8")
