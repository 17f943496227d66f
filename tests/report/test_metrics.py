import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pytest
import pytrec_eval
from pytest import approx

from mmrag_batch.errors import ConfigError, InputError
from mmrag_batch.report.calibration import calibration_error
from mmrag_batch.report.interval import wilson
from mmrag_batch.report.metrics import MAX_DEPTH, evaluate
from mmrag_batch.report.ranking import ndcg, retrieval
from mmrag_batch.report.text import as_text
from mmrag_batch.table.output import OUTPUT_COLUMNS

COLUMNS = ("kind", "question_text", "answer_choices", "documents", "label", "relevant")


def answered(
    kind: str,
    label: object,
    relevant: object,
    prediction: int | None,
    confidence: float | None,
    evidence: Sequence[str],
    status: str = "ok",
) -> dict[str, Any]:
    """A row of an output: a question with the choices x and y and three documents."""
    return {
        "kind": kind,
        "question_text": "x or y?",
        "answer_choices": ["x", "y"],
        "documents": ["zero", "one", "two"],
        "label": label,
        "relevant": relevant,
        "prediction": None if prediction is None else "xy"[prediction],
        "prediction_index": prediction,
        "confidence": confidence,
        "choice_probabilities": None,
        "evidence": [{"id": name, "score": 1.0} for name in evidence],
        "status": status,
        "error": None,
    }


ROWS = [
    answered("a", "y", [1], 1, 0.9, "102"),  # right; relevant document first
    answered("a", "y", [2], 0, 0.9, "021"),  # wrong; second
    answered("b", 0, [0, 1], 0, 0.5, "201", "degraded"),  # right; second and third
    answered("b", "x", [0], None, None, "", "error"),  # no answer; not kept
    answered("b", None, [], 1, 0.7, "012"),  # no label; no relevant document
    answered("a", "z", None, 1, 0.6, "012"),  # a label that is no choice; nothing known
    answered("b", "x", [0], None, None, "", "error") | {"documents": "{"},
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, (*COLUMNS, *OUTPUT_COLUMNS))
        table.writeheader()
        for row in rows:
            cells = {name: json.dumps(v) if isinstance(v, list) else v for name, v in row.items()}
            table.writerow(cells)
    return path


@pytest.fixture(params=["out.csv", "out.jsonl"])
def output(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write(tmp_path / request.param, ROWS)


def test_rows_are_counted_by_status(output: Path) -> None:
    scores = evaluate(output).overall
    assert (scores.rows, scores.ok, scores.degraded, scores.error) == (7, 4, 1, 2)


def test_f04_accuracy_counts_rows_with_a_valid_label_and_errors_as_wrong(output: Path) -> None:
    accuracy = evaluate(output).overall.accuracy
    assert accuracy is not None
    assert (accuracy.correct, accuracy.rows, accuracy.value) == (2, 5, 0.4)


def test_retrieval_counts_rows_with_a_relevant_document(output: Path) -> None:
    found = evaluate(output).overall.retrieval
    assert found is not None
    assert (found.rows, found.depth) == (4, 3)
    assert found.recall == {1: 1 / 4, 3: 3 / 4}
    assert found.success == {1: 1 / 4, 3: 3 / 4}
    assert found.mrr == (1 + 1 / 2 + 1 / 2 + 0) / 4
    assert found.ndcg == approx((1 + 0.63093 + (0.63093 + 0.5) / 1.63093 + 0) / 4, abs=1e-5)


def test_calibration_compares_confidence_with_what_was_right(output: Path) -> None:
    scores = evaluate(output).overall
    assert scores.mean_confidence == approx((0.9 + 0.9 + 0.5 + 0.7 + 0.6) / 5)
    assert scores.calibration_error == approx((abs(1 - 1.8) + abs(1 - 0.5)) / 3)


def test_any_column_makes_groups(output: Path) -> None:
    metrics = evaluate(output, by=["kind", "status"])
    kinds = metrics.by["kind"]
    assert {kind: scores.rows for kind, scores in kinds.items()} == {"a": 3, "b": 4}
    accuracies = {kind: scores.accuracy for kind, scores in kinds.items()}
    assert [a and (a.correct, a.rows) for a in accuracies.values()] == [(1, 2), (1, 3)]
    errors = metrics.by["status"]["error"]
    assert (errors.rows, errors.mean_confidence, errors.calibration_error) == (2, None, None)
    assert errors.retrieval is not None
    assert errors.retrieval.depth == 3


def test_a_file_of_one_document_a_row_knows_ranks_up_to_one(tmp_path: Path) -> None:
    rows = [answered("a", "y", [1], 1, 0.9, "1"), answered("a", "y", [1], 1, 0.9, "0")]
    found = evaluate(write(tmp_path / "out.csv", rows)).overall.retrieval
    assert found is not None
    assert (found.depth, found.recall) == (1, {1: 0.5})


def test_f05_a_file_without_truth_or_rows_has_no_figures(tmp_path: Path) -> None:
    rows = [answered("a", None, None, 1, 0.9, "1")]
    for name, some in [("one.csv", rows), ("none.csv", [])]:
        scores = evaluate(write(tmp_path / name, some)).overall
        assert scores.rows == len(some)
        figures = (scores.accuracy, scores.retrieval, scores.calibration_error)
        assert figures == (None, None, None)


@pytest.mark.parametrize(
    ("correct", "rows", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_the_interval_is_wilsons(correct: int, rows: int, low: float, high: float) -> None:
    accuracy = wilson(correct, rows)
    assert [accuracy.low, accuracy.high] == approx([low, high], abs=1e-4)
    assert accuracy.low <= accuracy.value <= accuracy.high


def test_calibration_is_perfect_where_shares_match_and_weighs_bins_by_rows() -> None:
    assert calibration_error([0.75] * 4, [True, True, True, False]) == 0
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    # Two bins: a gap of 0.4 on two rows, of 0.2 on one.
    assert calibration_error([0.9, 0.9, 0.2], [True, False, False]) == approx((0.8 + 0.2) / 3)


def test_ranks_beyond_the_depth_do_not_count() -> None:
    found = retrieval([[2, 6], [6]], [2, 1], 5)
    assert found.recall == {1: 0.0, 5: 0.25}
    assert found.success == {1: 0.0, 5: 0.5}
    assert found.mrr == 0.25
    assert found.ndcg == approx((0.63093 / 1.63093) / 2, abs=1e-5)


def test_more_relevant_documents_than_are_kept_can_still_be_perfect() -> None:
    assert ndcg([1, 2, 3], relevant=7, depth=3) == 1


def test_a_table_that_is_no_output_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("question_text,status\nx?,ok\n")
    with pytest.raises(InputError, match="no column prediction_index, confidence, evidence"):
        evaluate(path)


def test_an_unknown_column_to_group_by_is_named(output: Path) -> None:
    with pytest.raises(ConfigError, match="no column colour; it has kind"):
        evaluate(output, by=["kind", "colour"])


@pytest.mark.parametrize(
    ("column", "cell"), [("evidence", "[1]"), ("evidence", "{"), ("confidence", "high")]
)
def test_a_damaged_cell_is_named(tmp_path: Path, column: str, cell: str) -> None:
    path = write(tmp_path / "out.csv", [ROWS[0], ROWS[1] | {column: cell}])
    with pytest.raises(InputError, match=f"Line 3, {column}"):
        evaluate(path)


def test_json_has_every_figure(output: Path) -> None:
    values = json.loads(json.dumps(asdict(evaluate(output, by=["kind"]))))
    assert values["overall"]["accuracy"]["value"] == 0.4
    assert values["overall"]["retrieval"]["recall"] == {"1": 0.25, "3": 0.75}
    assert values["by"]["kind"]["b"]["error"] == 2


def test_the_table_has_a_line_a_group_and_names_its_depth(output: Path) -> None:
    table, labels = as_text(evaluate(output, by=["kind"])).split("\n\n")
    header, everything, first, second = table.splitlines()
    figures = ["recall@1", "success@1", "recall@3", "success@3", "MRR@3", "nDCG@3"]
    assert header.split()[-7:] == ["relevant", *figures]
    assert everything.split()[:7] == ["all", "7", "1", "2", "5", "1", "0.400"]
    assert first.split()[:7] == ["kind=a", "3", "0", "0", "2", "1", "0.500"]
    assert second.split()[0] == "kind=b"
    assert len({len(line) for line in table.splitlines()}) == 1
    line = 6 if output.suffix == ".jsonl" else 7
    told = f"label: 1 name no choice of their row (line {line}: 'z')."
    assert labels.splitlines()[-1] == told


def test_a_figure_without_rows_is_a_dash(tmp_path: Path) -> None:
    rows = [answered("a", None, None, 1, 0.9, "1")]
    header, line = as_text(evaluate(write(tmp_path / "out.csv", rows))).splitlines()
    assert header.split() == ["rows", "degraded", "error", "accuracy", "confidence"]
    assert line.split() == ["all", "1", "0", "0", "-", "0.900"]


def test_field_03_a_row_whose_choices_cannot_be_read_was_not_answered(tmp_path: Path) -> None:
    rows = [answered("a", "y", None, 1, 0.9, "")] * 3
    rows += [answered("a", "y", None, None, None, "", "error") | {"answer_choices": '["x", ""]'}]
    accuracy = evaluate(write(tmp_path / "out.csv", rows)).overall.accuracy
    assert accuracy is not None
    assert (accuracy.correct, accuracy.rows) == (3, 4)


def test_field_17_recall_and_hit_rate_are_those_of_trec_eval(tmp_path: Path) -> None:
    rows = [answered("a", "y", [0, 1, 2], 1, 0.9, "10"), answered("a", "y", [2], 1, 0.9, "01")]
    found = evaluate(write(tmp_path / "out.csv", rows)).overall.retrieval
    assert found is not None
    # trec_eval -m recall.1,2 -m success.1,2 -m recip_rank -m ndcg_cut.2
    assert found.recall == {1: approx(1 / 6, abs=1e-9), 2: approx(1 / 3, abs=1e-9)}
    assert found.success == {1: 0.5, 2: 0.5}
    assert found.mrr == 0.5
    assert found.ndcg == approx(0.5, abs=1e-9)


def test_field_18_answers_in_free_form_have_figures_of_their_own(tmp_path: Path) -> None:
    def written(label: object, prediction: str | None, **cells: object) -> dict[str, Any]:
        row = answered("a", label, None, None, None, "", "ok" if prediction else "error")
        return row | {"answer_choices": None, "prediction": prediction} | cells

    rows = [written("10 t", "10 t"), written(["10 t", "ten t"], "5 t"), written("10 t", None)]
    rows += [written(None, "yes", answers=["yes"] * 2 + ["no"] * 8)]
    overall = evaluate(write(tmp_path / "out.jsonl", rows)).overall
    assert overall.free_form is not None
    assert (overall.free_form_rows, overall.accuracy) == (4, None)
    assert overall.free_form.exact_match == 0.5
    assert overall.free_form.f1 == approx((1 + 0.5 + 0 + 1) / 4)
    assert overall.free_form.vqa == approx((2 * (1 / 3) + 8 * (2 / 3)) / 10)
    header, line = as_text(evaluate(tmp_path / "out.jsonl")).splitlines()
    assert "exact match" in header
    assert "0.500" in line


def test_a_text_is_right_for_calibration_where_it_matches_exactly(tmp_path: Path) -> None:
    """A right one at 0.95, a wrong one at 0.94, one without a label; and a choice at 0.55."""
    free = {"answer_choices": None, "prediction_index": None}
    rows = [
        answered("a", "10 t", None, None, 0.95, "") | free | {"prediction": "The 10 t."},
        answered("a", ["5 t", "five"], None, None, 0.94, "") | free | {"prediction": "50 t"},
        answered("a", None, None, None, 0.1, "") | free | {"prediction": "6 t"},
        answered("a", "10 t", None, None, None, "", "error") | free,
        answered("b", "y", None, 1, 0.55, ""),
    ]
    metrics = evaluate(write(tmp_path / "out.jsonl", rows), by=["kind"])
    assert metrics.overall.calibration_error == approx((abs(1 - 1.89) + abs(1 - 0.55)) / 3)
    assert metrics.overall.mean_confidence == approx((0.95 + 0.94 + 0.1 + 0.55) / 4)
    assert metrics.by["kind"]["a"].calibration_error == approx(0.89 / 2)
    assert metrics.by["kind"]["a"].accuracy is None
    assert metrics.overall.accuracy is not None
    assert metrics.overall.accuracy.rows == 1


def test_retrieval_figures_are_those_of_trec_eval() -> None:
    random = Random(0)
    ranks, relevant, qrels, run = [], [], {}, {}
    for question in map(str, range(200)):
        documents = [f"d{number}" for number in range(12)]
        right = random.sample(documents, random.randint(1, 8))
        kept = random.sample(documents, random.randint(1, MAX_DEPTH))
        ranks.append([rank for rank, name in enumerate(kept, start=1) if name in right])
        relevant.append(len(right))
        qrels[question] = dict.fromkeys(right, 1)
        run[question] = {name: 1.0 - rank / 10 for rank, name in enumerate(kept)}
    measures = {"recall.1,5", "success.1,5", "ndcg_cut.5", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run).values()
    means = {name: fmean(one[name] for one in theirs) for name in next(iter(theirs))}
    ours = retrieval(ranks, relevant, MAX_DEPTH)
    assert means == {
        "recall_1": approx(ours.recall[1], abs=1e-9),
        "recall_5": approx(ours.recall[5], abs=1e-9),
        "success_1": approx(ours.success[1], abs=1e-9),
        "success_5": approx(ours.success[5], abs=1e-9),
        "ndcg_cut_5": approx(ours.ndcg, abs=1e-9),
        "recip_rank": approx(ours.mrr, abs=1e-9),
    }
