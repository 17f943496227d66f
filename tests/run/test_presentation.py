"""How answers appear, which costs no row: withheld where they are not sure enough."""

import csv
import json
import re
from pathlib import Path

import pytest

from mmrag_batch.records import Answer, TextProbability
from mmrag_batch.run.presentation import Presentation, present
from tests.run.parts import ROWS, Place, call, question, questions

BELOW = 0.55


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.write(questions())
    return place


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_an_answer_is_withheld_below_a_confidence_and_shown_from_it_on() -> None:
    answer = Answer("degraded", "a", 0, (0.6, 0.4), (("7", 1.5),))
    withheld = present(answer, Presentation(abstain_below=0.61))
    assert (withheld.status, withheld.prediction, withheld.index) == ("abstained", None, None)
    assert (withheld.probabilities, withheld.evidence) == (answer.probabilities, answer.evidence)
    assert present(answer, Presentation(abstain_below=0.6)) == answer
    softened = present(answer, Presentation(temperature=2.0, abstain_below=0.6))
    assert softened.status == "abstained"


def test_what_has_no_confidence_is_never_withheld() -> None:
    how = Presentation(abstain_below=1.0)
    for answer in (Answer("ok", "a", 0), Answer("ok", "a text"), Answer("error")):
        assert present(answer, how) == answer
    written = Answer("ok", "a text", text_probability=TextProbability(0.2, 0.7))
    assert present(written, how).status == "abstained"


def test_another_threshold_asks_no_row_and_none_brings_the_answers_back(place: Place) -> None:
    assert place.predict().exit_code == 0
    whole = place.output.read_bytes()
    place.asked()
    done = place.predict("--abstain-below", BELOW)
    assert done.exit_code == 0
    rows = read(place.output)
    withheld = [row for row in rows if float(row["confidence"]) < BELOW]
    assert 0 < len(withheld) < ROWS
    for row in rows:
        is_withheld = row in withheld
        assert row["status"] == ("abstained" if is_withheld else "ok")
        assert (not row["prediction"], not row["prediction_index"]) == (is_withheld, is_withheld)
        assert len(json.loads(row["choice_probabilities"])) == 2
    assert f"0 asked now ({ROWS - len(withheld)} ok, 0 degraded, 0 error, {len(withheld)} " in (
        done.stderr
    )
    assert "there is nothing to do" in place.predict("--abstain-below", BELOW).stderr
    assert place.predict().exit_code == 0
    assert place.output.read_bytes() == whole
    assert not place.asked()


def test_rows_written_so_far_and_a_row_explained_are_withheld_as_well(place: Place) -> None:
    place.predict("--shard", "0/2", "--abstain-below", BELOW)
    so_far = place.folder / "so-far.csv"
    assert call("status", place.output, "--write", so_far).exit_code == 0
    rows = read(so_far)
    withheld = [row["note"].split()[1] for row in rows if row["status"] == "abstained"]
    assert 0 < len(withheld) < len(rows)
    explained = json.loads(call("explain", place.output, withheld[0], "--json").stdout)
    assert explained["answer"]["status"] == "abstained"
    assert explained["answer"]["prediction"] is None
    assert explained["answer"]["confidence"] < BELOW
    told = call("explain", place.output, withheld[0]).stdout
    assert "Answer: abstained\n  confidence  0." in told


def test_shards_are_merged_as_they_were_to_be_shown(place: Place) -> None:
    place.predict("--abstain-below", BELOW)
    whole = place.output.read_bytes()
    for path in (place.output, place.output.with_name("out.csv.store")):
        path.unlink()
    place.predict("--shard", "0/2", "--abstain-below", BELOW)
    place.predict("--shard", "1/2")
    place.asked()
    refused = place.merge("--overwrite")
    assert refused.exit_code == 78
    assert "abstain_below: was 0.55, is 0.0" in refused.stderr
    assert "Run those shards again with the same settings" in refused.stderr
    place.predict("--shard", "1/2", "--abstain-below", BELOW)
    assert place.merge("--overwrite").exit_code == 0
    assert place.output.read_bytes() == whole
    assert not place.asked()


def test_a_withheld_row_that_went_without_a_document_is_asked_again_when_it_is_mended(
    place: Place,
) -> None:
    header = "question_text,answer_choices,documents"
    row = question(1).rpartition(",")[0] + ',"[""lost.png""]"'
    place.table.write_text(f"{header}\n{row}\n")
    place.predict("--abstain-below", 1)
    assert [row["status"] for row in read(place.output)] == ["abstained"]
    assert "image_missing" in read(place.output)[0]["error"]
    place.asked()
    place.predict("--abstain-below", 1, "--retry-degraded")
    assert sum(place.asked().values()) == 1


@pytest.mark.parametrize("value", ["1.1", "-0.1", "nan"])
def test_a_threshold_that_no_confidence_can_be_is_refused(place: Place, value: str) -> None:
    done = place.predict(f"--abstain-below={value}")
    assert done.exit_code == 78
    assert re.search("--abstain-below: expected a number from 0 to 1", done.stderr)
