"""Help in groups, for terminals of 80 columns; rich would double the time that it takes."""

from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "Answer questions": "predict merge status",
    "Look closer": "validate evaluate explain report doctor",
    "Make tables and models": "init import index train calibrate export demo",
}
"""The commands by what they are for; others are in a group of their own."""
SETTINGS: Mapping[str, str] = {
    "bundle": "Models",
    "image_root": "Table and evidence",
    "batch_size": "Engine",
    "limit": "Which rows",
    "max_row_errors": "When to stop",
    "executor": "Run",
}
"""The settings of `predict` that begin a group, and what it is called."""


class Group(TyperGroup):
    """A command with commands: each with the whole first line of its help."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in (*COMMANDS, "Commands")}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is None or command.hidden:
                continue
            fitting = (title for title, names in COMMANDS.items() if name in names.split())
            text = " ".join((command.help or "").partition("\n\n")[0].split())
            groups[next(fitting, "Commands")].append((name, text))
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Grouped(TyperCommand):
    """A command whose options are in groups, by the `rich_help_panel` of each."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for one in self.get_params(ctx):
            if (record := one.get_help_record(ctx)) is not None:
                other = "Arguments" if one.param_type_name == "argument" else "Options"
                title = getattr(one, "rich_help_panel", None) or other
                groups.setdefault(title, []).append(record)
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)
