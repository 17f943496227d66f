"""`--json`: every command that finds facts prints them as one object, alone on stdout."""

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from mmrag_batch import doctor
from mmrag_batch.parity import Parity
from mmrag_batch.report.explanation import Explanation
from mmrag_batch.report.metrics import Metrics
from mmrag_batch.report.temperature import Fit
from tests.run.parts import Place, call, questions

PAGE = Path(__file__).parents[2] / "docs" / "terminal.md"
OUT_OF_MEMORY = 4
"""A row that does not fit into memory."""


def documented(start: str) -> set[str]:
    """The words in code of the line, or of the sentences, of the page that begin so."""
    (text,) = [
        part for part in re.split(r"\n(?=\|)|\n\n", PAGE.read_text()) if part.startswith(start)
    ]
    return set(re.findall(r"`(\w+)`", text.removeprefix(start)))


def keys_of(value: Any) -> set[str]:
    """The names in an object and in the objects in it."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    return set(value).union(*map(keys_of, value.values())) if isinstance(value, dict) else set()


def facts(done: Result, code: int = 0) -> dict[str, Any]:
    assert done.exit_code == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.write(questions())
    return place


def test_validate_gives_every_problem_with_its_line(place: Place) -> None:
    place.write(questions(6, broken=[3]))
    found = facts(call("validate", place.table, "--json"), 3)
    (problem,) = found["problems"]
    assert (problem["line"], problem["id"], problem["code"]) == (5, "3", "bad_choices")
    assert problem["fatal"] is True
    assert found["unanswerable"] == 1
    assert found["used"] == {name: name for name in ("question_text", "answer_choices")}
    assert documented("| `validate` |") == keys_of(found) - set(found["used"])


def test_validate_says_what_a_table_calls_our_columns(tmp_path: Path) -> None:
    table = tmp_path / "in.csv"
    table.write_text('q,answer_choices,label\nWho?,"[""a"", ""b""]",b\n')
    found = facts(call("validate", table, "--columns", "question_text=q", "--json"))
    assert found["used"]["question_text"] == "q"
    assert found["labels"] == {"read_as": {"text": 1}, "disputed": 0, "unreadable": 0}
    assert (found["problems"], found["unanswerable"]) == ([], 0)


def test_a_table_that_is_none_prints_no_object(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a,a\n1,2\n")
    done = call("validate", tmp_path / "in.csv", "--json")
    assert (done.exit_code, done.stdout) == (65, "")


def test_status_gives_a_finished_output(place: Place) -> None:
    place.predict(oom=[OUT_OF_MEMORY])
    found = facts(call("status", place.output, "--json"))
    complete = found["complete"]
    assert complete["rows"] == {"ok": 39, "degraded": 0, "error": 1}
    assert (complete["asked"], complete["kept"], complete["changed"]) == (40, 0, False)
    assert complete["codes"] == {"engine_oom": 1}
    assert complete["rows_per_second"] > 0
    assert (found["parts"], found["next"]) == ([], None)


def test_status_gives_an_output_that_was_changed_before_it_fails(place: Place) -> None:
    place.predict()
    with place.output.open("a") as stream:
        stream.write("one more row\n")
    done = call("status", place.output, "--json")
    assert facts(done, 78)["complete"]["changed"] is True
    assert "was changed since it was written" in done.stderr


def test_status_gives_each_shard_and_the_command_that_joins_them(place: Place) -> None:
    place.predict("--shard", "0/2")
    found = facts(call("status", place.output, "--json"))
    (part,) = found["parts"]
    assert (part["shard"], part["done"], part["holder"]) == ("0/2", True, None)
    assert part["start"]["expected"] == part["start"]["asked"] == 20
    assert part["start"]["seconds_left"] is None
    assert (found["complete"], found["next"]) == (None, None)
    place.predict("--shard", "1/2")
    found = facts(call("status", place.output, "--json"))
    assert found["next"] == f"mmrag-batch merge {place.output}"
    assert documented("| `status` |") == set(found)
    place.merge()
    complete = facts(call("status", place.output, "--json"))["complete"]
    said = keys_of(complete) | set(found["parts"][0]) | keys_of(found["parts"][0]["start"])
    assert said == documented("`rows` counts") - {"complete", "status", "abstained"}


def test_status_gives_what_it_wrote(place: Place) -> None:
    place.predict("--limit", 3)
    target = place.folder / "so-far.csv"
    found = facts(call("status", place.output, "--write", target, "--json"))
    assert found["written"] == str(target)
    assert found["rows"] == {"ok": 3, "degraded": 0, "error": 0}
    assert documented("| `status --write` |") == set(found)


def test_predict_and_merge_give_how_they_ended(place: Place) -> None:
    first = facts(place.predict("--json", oom=[OUT_OF_MEMORY]), 3)
    assert documented("| `predict`, `merge` |") == set(first)
    assert first["rows"] == {"ok": 39, "degraded": 0, "error": 1}
    assert (first["asked"], first["kept"], first["shard"]) == (40, 0, None)
    assert first["rows_per_second"] > 0
    assert first["seconds"] > 0
    assert first["next"] == f"mmrag-batch report {place.output}"
    again = facts(place.predict("--json", "--retry-errors"))
    assert (again["asked"], again["kept"]) == (1, 39)
    still = facts(place.predict("--json", "--quiet"))
    assert (still["asked"], still["kept"], still["rows_per_second"]) == (0, 40, None)


def test_a_shard_gives_its_own_rows_and_merge_all(place: Place) -> None:
    for shard in ("0/2", "1/2"):
        part = facts(place.predict("--json", "--shard", shard))
        assert (part["shard"], sum(part["rows"].values()), part["asked"]) == (shard, 20, 20)
        assert part["next"] == f"mmrag-batch merge {place.output}"
    whole = facts(place.merge("--json"))
    assert (whole["shard"], sum(whole["rows"].values())) == (None, 40)
    assert (whole["asked"], whole["kept"]) == (0, 40)


def test_the_next_command_is_one_for_the_table_as_it_is(place: Place) -> None:
    place.table.write_text('q,answer_choices,label\nWho?,"[""a"", ""b""]",b\n')
    done = place.predict("--columns", "question_text=q", "--json")
    command = facts(done)["next"]
    assert command == f"mmrag-batch evaluate {place.output} --columns question_text=q"
    assert call(*shlex.split(command)[1:], "--json").exit_code == 0


def test_a_run_that_was_stopped_prints_no_object(place: Place) -> None:
    done = place.predict("--json", "--max-row-errors", 1, oom=[1, 2, 3])
    assert (done.exit_code, done.stdout) == (4, "")


def test_the_page_has_the_figures_of_what_is_measured() -> None:
    assert documented("| `evaluate` |") == {one.name for one in fields(Metrics)} | {"ablations"}
    assert documented("| `calibrate` |") == {*Fit._fields, "bundle", "refused", "next"}
    assert documented("| `explain` |") <= {one.name for one in fields(Explanation)}


def test_doctor_gives_the_machine_and_what_runs_on_it() -> None:
    found = facts(call("doctor", "--json"))
    assert found["cores"] >= 1
    assert found["memory"] >= found["memory_free"] > 0
    assert found["packages"]["torch"][0].isdigit()
    works = {check["name"]: check["works"] for check in found["checks"]}
    assert works["predict"] is True
    assert documented("| `doctor` |") == set(found) | set(found["checks"][0])


@pytest.mark.parametrize(("same", "code"), [(7, 0), (6, 69)])
def test_doctor_gives_how_far_two_engines_are_apart(
    same: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "compare", lambda _: Parity(7, same, 1e-6))
    found = facts(call("doctor", "--bundle", "b", "--json"), code)
    assert found == {
        "bundle": "b",
        "agree": code == 0,
        "rows": 7,
        "same": same,
        "probability": 1e-6,
    }
    assert documented("| `doctor --bundle` |") == set(found)


def test_secrets_are_masked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "what costs 3?")
    place.write([*questions(3), "What costs 3?,what costs 3?,"])
    done = call("validate", place.table, "--json")
    assert facts(done, 3)["problems"]
    assert "what costs 3?" not in done.stdout
