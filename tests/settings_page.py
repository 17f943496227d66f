"""The table of docs/settings.md: every setting of `predict`, from where it is declared.

python -m tests.settings_page        # writes the table into the page
"""

from dataclasses import fields
from pathlib import Path

from mmrag_batch.declare import settings_of
from mmrag_batch.settings import PREFIX, PredictSettings, flag_of

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
BEGIN, END = "<!-- made by tests/settings_page.py: begin -->", "<!-- end -->"


def table() -> str:
    """A line for each setting: its flag, its variable, what it may be, what it is without, help."""
    lines = [
        "| flag | variable | a value | default | what | changes answers |",
        "|---|---|---|---|---|---|",
    ]
    defaults = {item.name: item.default for item in fields(PredictSettings)}
    for name, one in settings_of(PredictSettings).items():
        without = one.otherwise or defaults[name]
        default = "" if without in (None, "", False) else f"{without}"
        changes = "yes" if one.changes_answers else ""
        cells = (
            f"`{flag_of(name)}`",
            f"`{PREFIX}{name.upper()}`",
            one.rule.expected,
            default,
            one.help,
            changes,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def written() -> str:
    """The page as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
