"""The benchmarks as one command: none is forgotten, and its table is the page."""

import re
import shutil
import subprocess
from itertools import count
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import __main__ as suite
from benchmarks.ratios import Ratio, interleave, run_python
from benchmarks.table import (
    COMPARISONS,
    GPU,
    KEYS,
    OTHERS,
    PAGE,
    PROGRAMS,
    Line,
    Program,
    line_of,
    read_table,
    update_page,
)

ROOT = Path(__file__).parent.parent
SHARED = {"__main__", "ratios", "table"}


def test_every_module_of_benchmarks_is_known_to_the_command() -> None:
    modules = {file.stem for file in (ROOT / "benchmarks").glob("*.py")} | {GPU}
    assert modules - SHARED == {*PROGRAMS, *OTHERS}
    assert {line.module for line in COMPARISONS} == {*PROGRAMS, GPU}


def test_each_benchmark_that_has_a_line_offers_its_ratios() -> None:
    for module in PROGRAMS:
        source = (ROOT / "benchmarks" / f"{module}.py").read_text(encoding="utf-8")
        assert re.search(r"^def ratios\(", source, re.M), module


def test_the_page_has_a_line_for_each_of_the_19_ratios() -> None:
    assert sorted({int(key.rstrip("abc")) for key in KEYS}) == list(range(1, 20))
    lines = read_table(PAGE.read_text(encoding="utf-8"))
    assert list(lines) == list(KEYS)
    for key, line in lines.items():
        assert re.match(r"met|missed|not run: .", line.verdict), key
        if not line.verdict.startswith("not run"):
            value = float(re.sub(r"[^\d.]", "", line.ratio))
            assert KEYS[key].is_met(value) == line.verdict.startswith("met"), key
            assert line.repetitions and line.load, key


def test_a_line_says_whether_its_goal_is_met() -> None:
    assert line_of(Ratio("3", [2.4, 2.6, 2.7]), 0.25) == Line(
        "2.6x", "2.4 to 2.7", "3", "0.2 cores", "met"
    )
    assert line_of(Ratio("4", [1.1], "a note"), 0).verdict == "missed: a note"
    assert KEYS["15a"].is_met(5000) and not KEYS["15a"].is_met(4999)


def test_lines_that_were_not_measured_again_stay_on_the_page(tmp_path: Path) -> None:
    page = Path(shutil.copy(PAGE, tmp_path))
    before = read_table(PAGE.read_text(encoding="utf-8"))
    update_page({"3": Line("9x", "8 to 10", "7", "0.0 cores", "met")}, "A laptop.", page)
    after = read_table(page.read_text(encoding="utf-8"))
    assert after.pop("3").ratio == "9x"
    del before["3"]
    assert after == before
    texts = (one.read_text(encoding="utf-8").partition("<!--")[0] for one in (page, PAGE))
    assert len(set(texts)) == 1
    assert "\nA laptop.\n" in page.read_text(encoding="utf-8")


def test_sides_take_turns_and_the_first_repetition_is_left_out() -> None:
    ticks, ran = count(), list[str]()
    seconds = interleave(
        {"ours": lambda n: ran.append(f"ours {n}"), "theirs": lambda n: ran.append(f"theirs {n}")},
        3,
        clock=lambda: next(ticks),
    )
    assert ran == ["ours 0", "theirs 0", "theirs 1", "ours 1", "ours 2", "theirs 2"]
    assert seconds == {"ours": [1, 1], "theirs": [1, 1]}


def test_no_time_is_quoted_where_outputs_differ() -> None:
    with pytest.raises(ValueError, match="ours and theirs differ"):
        interleave({"ours": lambda _: 1, "theirs": lambda n: n}, 3, agree=lambda a, b: a == b)


def test_what_a_command_takes_is_its_own() -> None:
    used = run_python("-c", "print(len(bytearray(2**27)))")
    assert used.output == f"{2**27}\n"
    assert 128 < used.peak < 512
    with pytest.raises(subprocess.CalledProcessError):
        run_python("-c", "raise SystemExit(3)")


def test_the_command_lists_what_there_is() -> None:
    listed = CliRunner().invoke(suite.app, ["--list"]).output
    assert all(name in listed for name in (*PROGRAMS, *OTHERS))
    assert "--only" in CliRunner().invoke(suite.app, ["--help"]).output


def test_a_number_that_no_ratio_has_is_refused() -> None:
    refused = CliRunner().invoke(suite.app, ["--only", "3,20"])
    assert refused.exit_code == 2
    assert "20" in refused.output


def test_a_ratio_is_measured_and_one_that_cannot_be_says_why() -> None:
    page = PAGE.read_bytes()
    done = CliRunner().invoke(suite.app, ["--quick", "--only", "14,5b"])
    lines = read_table(done.output)
    assert list(lines) == ["5b", "14"]
    assert lines["5b"].verdict.startswith("not run: ")
    assert lines["14"].repetitions == "2", done.output
    assert 0.5 < float(lines["14"].ratio.rstrip("x")) < 50
    assert PAGE.read_bytes() == page


def test_a_benchmark_that_fails_or_hangs_says_so_in_its_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PROGRAMS, "start", Program(0))
    monkeypatch.setitem(PROGRAMS, "images", Program(60))
    lines = dict(suite.measure("start", [KEYS["14"]], 2))
    assert lines["14"].verdict.startswith("failed: it took more than 0 s")
    lines = dict(suite.measure("images", [KEYS["12"]], 1))  # of which --repetitions 1 is no number
    assert lines["12"].verdict.startswith("failed: it ended with 2")
