"""The table of docs/cases.md: each case of `cases.txt` with the tests that prove it.

    python tests/faults/table.py        # writes the table into the page

A test proves the case that its name begins with, as in `test_e08_an_unterminated_quote_...`.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cases.md"
BEGIN, END = "<!-- made by tests/faults/table.py: begin -->", "<!-- end -->"
TEST = re.compile(r"test_([a-o])([0-9]{2})_")
UNPROVEN: dict[str, str] = {}
"""Cases without a test, and why."""


def cases() -> dict[str, list[str]]:
    """What happens, what a run does and its exit code, by the number of the case."""
    lines = (Path(__file__).parent / "cases.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ") for line in lines if line and not line.startswith("#")]
    return {number: words for number, *words in rows}


def proofs() -> dict[str, list[str]]:
    """The names of the tests of each case, with the file that they are in, in order."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and (match := TEST.match(node.name)):
                words = node.name[len(match[0]) :].replace("_", " ")
                number = f"{match[1].upper()}{int(match[2])}"
                found.setdefault(number, []).append(f"[{words}](../{file.relative_to(ROOT)})")
    return found


def table() -> str:
    """The table in Markdown, with the count of what is proven above it."""
    proven = proofs()
    lines = [
        f"{len(proven)} of {len(cases())} cases are proven.",
        "",
        "| case | what happens | what a run does | exit | proven by |",
        "|---|---|---|---|---|",
    ]
    for number, (event, promise, code) in cases().items():
        reason = f"not proven: {UNPROVEN.get(number, 'no test has its name')}"
        tests = "; ".join(proven.get(number, [])) or reason
        lines.append(f"| {number} | {event} | {promise} | {code} | {tests} |")
    return "\n".join(lines)


def parts_of(page: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands after it."""
    before, _, rest = page.partition(BEGIN)
    written, _, after = rest.partition(END)
    return before, written.strip(), after


if __name__ == "__main__":
    before, _, after = parts_of(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")
