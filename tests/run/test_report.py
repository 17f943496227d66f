"""The page of a run: finished or not, beside another one, and never over a stranger's file."""

import re
from pathlib import Path

import pytest
from typer.testing import Result

from mmrag_batch.run.files import Paths
from tests.report.outputs import make_row, make_rows, write_output
from tests.run.parts import call, questions

HEADER = "question_text,answer_choices,label,kind"


def report(output: Path, *options: object) -> tuple[Result, str]:
    """What the command says, and the page that it wrote."""
    page = output.with_name("report.html")
    done = call("report", output, "--out", page, *options)
    return done, page.read_text(encoding="utf-8") if page.exists() else ""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of twelve rows, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("run")
    lines = questions(12, broken=[3])
    rows = [f"{line.rpartition(',')[0]},a,k{number % 2}" for number, line in enumerate(lines)]
    (folder / "in.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    assert predict(folder).exit_code == 3
    return folder


def predict(folder: Path, *options: object, output: str = "out.csv") -> Result:
    words = ("predict", folder / "in.csv", folder / output, "--engine", "scripted", *options)
    return call(*words)


def test_a_finished_run_is_told_with_its_settings_and_its_commands(run: Path) -> None:
    done, page = report(run / "out.csv")
    assert done.exit_code == 0
    assert re.fullmatch(r".*report\.html: 0\.\d MiB\n", done.stdout)
    assert page.count("<article") == 12
    for text in ("max_new_tokens", "seconds of answering", "trained on", "onnxruntime"):
        assert f'<tr><th scope="row">{text}' in page, text
    assert f"in.csv {run}/out.csv --engine scripted</code>" in page
    assert f"<code>mmrag-batch explain {run}/out.csv 11</code>" in page
    assert "bad_choices" in page
    assert 'data-outcome="no answer"' in page


def test_a_run_that_is_not_finished_shows_what_is_answered(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text((run / "in.csv").read_text())
    predict(tmp_path, "--shard", "1/2")
    done, page = report(tmp_path / "out.csv")
    assert done.exit_code == 0
    numbers = [int(number) for number in re.findall(r'<article class="row" id="row-(\d+)"', page)]
    assert numbers[-1] == 11
    assert len(numbers) < 12
    assert f"{len(numbers)} rows are answered so far; the others are not here." in page
    assert f"{tmp_path}/out.csv is not there yet" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.csv",
        "out.csv.shards",
        "report.html",
    ]


def test_an_output_without_a_run_and_a_table_that_is_no_output_are_refused(
    tmp_path: Path,
) -> None:
    done, _ = report(tmp_path / "out.csv")
    assert done.exit_code == 66
    assert "Nothing is answered yet" in done.stderr
    (tmp_path / "out.csv").write_text("question_text\nWhat?\n")
    done, page = report(tmp_path / "out.csv")
    assert (done.exit_code, page) == (65, "")
    assert "has no column prediction_index" in done.stderr


def test_an_unknown_column_and_an_absent_folder_are_named(tmp_path: Path) -> None:
    output = write_output(tmp_path / "out.csv", [make_row(0)])
    done, _ = report(output, "--by", "colour")
    assert done.exit_code == 78
    assert "no column colour" in done.stderr
    done = call("report", output, "--out", tmp_path / "none" / "report.html")
    assert done.exit_code == 73
    assert f"mkdir -p {tmp_path}/none" in done.stderr


def test_a_page_replaces_itself_and_nothing_else(tmp_path: Path) -> None:
    output, page = write_output(tmp_path / "out.csv", [make_row(0)]), tmp_path / "report.html"
    assert report(output)[0].exit_code == report(output)[0].exit_code == 0
    for text in ("<html>mine</html>", page.read_text().replace("thing 0", "thing 1")):
        page.write_text(text)
        done, left = report(output)
        assert (done.exit_code, left) == (73, text)
        assert "--overwrite" in done.stderr
    assert report(output, "--overwrite")[0].exit_code == 0
    page.unlink()
    page.symlink_to(output)
    assert report(output, "--overwrite")[0].exit_code == 73
    assert page.is_symlink()


def test_an_output_is_never_the_page(tmp_path: Path) -> None:
    output = write_output(tmp_path / "out.csv", [make_row(0)])
    before = output.read_bytes()
    assert call("report", output, "--out", output).exit_code == 73
    assert output.read_bytes() == before


def test_an_output_that_was_changed_or_is_nobodys_is_told(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    for its in (Paths.of(run / "out.csv").manifest, run / "out.csv"):
        (tmp_path / its.name).write_bytes(its.read_bytes())
    output.write_text(output.read_text().replace("What costs 5?", "What costs 6?"))
    assert "was changed since it was written" in report(output)[1]
    Paths.of(output).manifest.unlink()
    assert "No manifest says what" in report(output)[1]


def test_two_runs_are_compared_with_what_differs(tmp_path: Path) -> None:
    """Of 24 rows, 22 have a label in both; row 3 becomes right, rows 0 and 4 become wrong."""
    rows = make_rows()
    before = write_output(tmp_path / "before.csv", rows)
    after = [dict(row) for row in rows]
    right = {"prediction": "red", "prediction_index": 0}
    wrong = {"prediction": "blue", "prediction_index": 2}
    for number, cells in ((3, right), (0, wrong), (4, wrong)):
        after[number] |= cells
    after[6]["question_text"] = "Something else?"
    output = write_output(tmp_path / "out.csv", after[:23])
    _, page = report(output, "--compare", before)
    assert 'id="became-right">1<' in page
    assert 'id="became-wrong">2<' in page
    assert 'id="mcnemar">p = 1<' in page
    assert "Shares of the 21 rows that both runs were asked" in page
    assert (
        "Left out: in both 1 without a valid label or withheld, and 1 with another question or "
        "label; 0 only here; 1 only there."
    ) in page
    assert page.count('data-flip="became wrong"') == 2
    row = page.partition('id="row-3"')[2].partition("</article>")[0]
    assert "the other run: green (wrong, 0.96)" in row
    assert "Nothing that is known of the two runs differs." in page
    assert "before.csv is, nor what differs between the runs." in page


def test_flipped_rows_come_first_in_a_sample(tmp_path: Path) -> None:
    rows = [make_row(number) for number in range(60)]
    before = write_output(tmp_path / "before.csv", rows)
    rows[40] |= {"prediction": "blue", "prediction_index": 2}
    _, page = report(write_output(tmp_path / "out.csv", rows), "--compare", before, "--rows", 20)
    assert re.findall(r'<article class="row" id="row-(\d+)"', page)[0] == "40"
    assert "1 that the other run answers otherwise" in page


def test_settings_and_tables_that_differ_are_named(run: Path, tmp_path: Path) -> None:
    text = (run / "in.csv").read_text()
    (tmp_path / "in.csv").write_text(text.replace("costs 7", "weighs 7"))
    predict(tmp_path, "--max-new-tokens", 7, output="other.csv")
    _, page = report(run / "out.csv", "--compare", tmp_path / "other.csv")
    part = page.partition('<section id="comparison"')[2].partition("</section>")[0]
    assert '<tr><th scope="row">max_new_tokens</th><td>32</td><td>7</td></tr>' in part
    assert '<th scope="row">table</th>' in part
    assert "trained on" not in part
    assert "and 1 with another question or label" in part


def test_a_run_to_compare_with_must_be_finished(run: Path, tmp_path: Path) -> None:
    done, _ = report(run / "out.csv", "--overwrite", "--compare", tmp_path / "none.csv")
    assert done.exit_code == 66
    (tmp_path / "in.csv").write_text((run / "in.csv").read_text())
    predict(tmp_path, "--shard", "1/2")
    done, _ = report(run / "out.csv", "--compare", tmp_path / "out.csv")
    assert done.exit_code == 66
    assert "there is nothing to compare with" in done.stderr
