"""The page of a run: its figures are those of `evaluate`, and nothing of a table is markup."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrag_batch import evaluate
from mmrag_batch.cli.app import app
from mmrag_batch.report.page import MARK, MOST_BYTES, is_ours
from tests.report.outputs import make_row, make_rows, write_output

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></script></title><b onclick='alert(1)'>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "' onmouseover='alert(1)",
    "<!-- <![CDATA[ ]]> -->&lt;i&gt;",
    "red\x1b[2J\u202e",
]


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the texts of those with an id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def call(*words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.stdout


def make_page(output: Path, *options: object) -> str:
    page = output.with_name("report.html")
    call("report", output, "--out", page, *options)
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_output(tmp_path_factory.mktemp("output") / "out.csv", make_rows())


@pytest.fixture(scope="module")
def page(output: Path) -> str:
    return make_page(output)


def text_of(page: str, name: str) -> str:
    """What stands in the element with an id."""
    match = re.search(rf'id="{name}"[^>]*>([^<]*)<', page)
    assert match is not None
    return match[1]


def lines_of(page: str) -> dict[str, list[str]]:
    """The lines of the table of figures, those of groups under `column=value`."""
    table = page.partition('<table id="groups">')[2].partition("</table>")[0]
    lines, column = {"": re.findall(r'<th scope="col">([^<]*)', table)}, ""
    for row in re.findall(r"<tr>(.*?)</tr>", table, re.S):
        if group := re.search(r'scope="rowgroup"[^>]*>([^<]*)', row):
            column = f"{group[1]}="
        elif name := re.search(r'<th scope="row">([^<]*)', row):
            lines[column + name[1]] = re.findall(r"<td>([^<]*)", row)
    return lines


def test_every_figure_is_that_of_evaluate(output: Path, page: str) -> None:
    figures = json.loads(call("evaluate", output, "--by", "kind", "--by", "status", "--json"))
    overall, accuracy = figures["overall"], figures["overall"]["accuracy"]
    assert text_of(page, "accuracy") == f"{accuracy['value']:.3f}"
    assert f"{accuracy['low']:.3f} to {accuracy['high']:.3f}" in page
    assert f"{accuracy['correct']} of {accuracy['rows']} rows" in page
    assert text_of(page, "ece") == f"{overall['calibration_error']:.3f}"
    assert text_of(page, "success") == f"{overall['retrieval']['success']['2']:.3f}"
    assert text_of(page, "count") == str(overall["rows"])
    lines = lines_of(page)
    groups = {"all rows": overall}
    for column in ("kind", "status"):
        groups |= {f"{column}={value}": one for value, one in figures["by"][column].items()}
    assert len(groups) == 6
    for name, scores in groups.items():
        cells = dict(zip(lines[""], lines[name], strict=True))
        share, found = scores["accuracy"], scores["retrieval"]
        expected = {
            "rows": str(scores["rows"]),
            "degraded": str(scores["degraded"]),
            "error": str(scores["error"]),
            "labelled": str(share["rows"]),
            "accuracy": f"{share['value']:.3f}",
            "95% interval": f"{share['low']:.3f}-{share['high']:.3f}",
            "with relevant": str(found["rows"]),
            "recall@1": f"{found['recall']['1']:.3f}",
            "success@2": f"{found['success']['2']:.3f}",
            "MRR@2": f"{found['mrr']:.3f}",
            "nDCG@2": f"{found['ndcg']:.3f}",
        }
        assert {title: cells[title] for title in expected} == expected
        for title, field in (("confidence", "mean_confidence"), ("ECE", "calibration_error")):
            assert cells[title] == ("-" if scores[field] is None else f"{scores[field]:.3f}")


def test_accuracy_is_given_with_and_without_the_evidence(page: str) -> None:
    """Of 24 rows, 8 and the failed one have no relevant document; two more say nothing of it."""
    lines = lines_of(page)
    rows = {
        name.partition("=")[2]: (cells[0], cells[3])
        for name, cells in lines.items()
        if name.startswith("whether the evidence was found=")
    }
    assert rows == {
        "a relevant document was kept": ("15", "15"),
        "none of the relevant documents was kept": ("8", "7"),
        "no relevant document is known": ("1", "1"),
    }


def test_problems_are_counted_by_kind_and_lead_to_their_first_row(page: str) -> None:
    problems = page.partition('<section id="problems"')[2].partition("</section>")[0]
    found = re.findall(r'<code>(\w+)</code></th><td>(\d+)</td><td><a href="(#row-\d+)"', problems)
    assert found == [("image_missing", "2", "#row-5"), ("page_missing", "1", "#row-10")]


def test_a_row_shows_what_became_of_it(page: str) -> None:
    row = page.partition('id="row-11"')[2].partition("</article>")[0]
    for text in (
        "Which colour has thing 11?",
        'alt="Picture of the question: red.png"',
        "relevant, not kept",
        "Thing 11 is red.",
        'data-outcome="wrong"',
        'data-evidence="not kept"',
        "mmrag-batch explain",
        " q11</code>",
        "0.8800",
    ):
        assert text in row, text
    assert row.count("data:image/jpeg;base64,") == 2
    assert 'width="88.00"' in row


def test_a_page_loads_nothing_and_allows_no_script_but_its_own(page: str) -> None:
    elements = Elements(page).elements
    (policy,) = [
        attributes["content"]
        for tag, attributes in elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    hashes = [b64encode(sha256(text.encode()).digest()).decode() for text in (style, script)]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; "
        f"script-src 'sha256-{hashes[1]}'; base-uri 'none'; form-action 'none'"
    )
    for tag, attributes in elements:
        assert tag not in {"link", "iframe", "object", "base"}
        assert attributes.keys().isdisjoint({"style", "srcset"})
        assert (attributes.get("src") or "data:image/jpeg;base64,").startswith("data:image/jpeg")
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert "http" not in re.sub(r"http-equiv", "", page)


def test_a_notebook_shows_the_figures_and_plots_of_the_page_alone(output: Path, page: str) -> None:
    metrics = evaluate(output, by=["kind", "label", "status"])
    assert repr(metrics).startswith("Evaluation(overall=Scores(rows=24")
    ((tag, frame),) = Elements(metrics._repr_html_()).elements
    assert (tag, frame["title"], frame["sandbox"]) == ("iframe", "Figures of out.csv", None)
    head = frame["srcdoc"] or ""
    for part in ("figures", "confidence"):
        start, end = f'<section id="{part}"', "</section>"
        assert page.count(start) == 1
        assert page.partition(start)[2].partition(end)[0] in head
    tags = {tag for tag, _ in Elements(head).elements}
    assert tags >= {"svg", "table", "style"}
    assert tags.isdisjoint({"script", "article", "nav", "a", "img"})


def test_a_hostile_table_is_text_in_a_notebook(tmp_path: Path) -> None:
    rows = [
        make_row(number, kind=text, error=f"bad_{text}: {text}", status="degraded")
        for number, text in enumerate(HOSTILE)
    ]
    output = write_output(tmp_path / "<b>'\".csv", rows)
    ((_, frame),) = Elements(evaluate(output, by=["kind"])._repr_html_()).elements
    assert frame.keys() == {"title", "srcdoc", "sandbox", "style"}
    head = Elements(frame["srcdoc"] or "")
    assert {tag for tag, _ in head.elements}.isdisjoint({"script", "img", "b", "i"})
    assert not [name for _, some in head.elements for name in some if name.startswith("on")]
    assert {text.strip() for text in head.texts} >= set(HOSTILE[:-1])


def test_a_hostile_table_is_text(tmp_path: Path, page: str) -> None:
    rows = []
    for number, text in enumerate(HOSTILE):
        cells = dict.fromkeys(("id", "kind", "question_text", "question_image"), text)
        documents = [text, {"id": f"{text}x", "text": text, "image": f"{text}.png"}]
        rows.append(
            make_row(number, **cells, documents=documents, answer_choices=[text, "red", "none"])
        )
        rows[-1] |= {"prediction": text, "error": f"bad_{text}: {text}", "status": text}
        rows[-1]["evidence"] = [{"id": f"{text}x", "score": 1}, {"id": text, "score": 0}]
    hostile = make_page(write_output(tmp_path / "<b>out'.csv", rows))
    found = Elements(hostile)
    usual = {(tag, *sorted(attributes)) for tag, attributes in Elements(page).elements}
    tags = {tag for tag, *_ in usual}
    names = {name for _, *some in usual for name in some}
    for tag, attributes in found.elements:
        assert tag in tags
        assert attributes.keys() <= names
        assert not (attributes.get("href") or "").startswith("javascript")
    assert hostile.count("<script>") == hostile.count("</script>") == 1
    texts = "".join(found.texts)
    for text in HOSTILE[:-1]:
        assert texts.count(text) >= 5
    assert not set(hostile) & set("\x1b\u202e")
    assert "red\\x1b[2J\\u202e" in texts


def test_secrets_are_masked(tmp_path: Path) -> None:
    secret = "hf_" + "a" * 24
    rows = [make_row(0, question_text=f"Is {secret} red?", kind=secret), make_row(1)]
    assert secret[:12] not in make_page(write_output(tmp_path / "out.csv", rows))


def test_an_output_without_labels_says_so_and_shows_its_rows(tmp_path: Path) -> None:
    rows = [make_row(number, label=None, relevant=None) for number in range(3)]
    page = make_page(write_output(tmp_path / "out.csv", rows))
    assert "No row has a label that can be read" in page
    assert "No row names a relevant document" in page
    assert 'id="accuracy"' not in page
    assert page.count("<article") == 3
    assert page.count('data-outcome="no label"') == 3


def test_answers_in_free_form_have_their_own_figure(tmp_path: Path) -> None:
    free = {"answer_choices": None, "prediction_index": None, "choice_probabilities": None}
    rows = [make_row(number, **free, confidence_per_token=0.9) for number in range(4)]
    page = make_page(write_output(tmp_path / "out.csv", rows))
    assert text_of(page, "exact-match") == "0.750"
    assert "<dt>right</dt><dd>red</dd>" in page
    assert "a token" in page


def test_rows_are_a_sample_of_a_large_output_and_the_page_says_which(tmp_path: Path) -> None:
    rows = [make_row(number) for number in range(60)]
    page = make_page(write_output(tmp_path / "out.csv", rows), "--rows", 20)
    assert page.count("<article") == 20
    rule = text_of(page, "rule")
    assert rule.startswith("20 of 60 rows, for these reasons: 7 that are wrong, the most confident")
    first = re.findall(r'id="row-(\d+)"', page)[:3]
    assert first == ["51", "3", "55"]  # at 0.98, 0.96 and 0.94


def test_a_page_has_the_same_bytes_each_time_and_knows_itself(output: Path, page: str) -> None:
    assert make_page(output) == page
    data = page.encode()
    assert is_ours(data)
    assert not is_ours(data.replace(b"thing 11", b"thing 12"))
    assert not is_ours(b"<html></html>")
    assert MARK in page


def test_a_page_has_room_for_so_many_bytes(
    output: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_BYTES < 25 * 2**20
    monkeypatch.setattr("mmrag_batch.report.page.MOST_BYTES", 20_000)
    small = make_page(output)
    shown = small.count("<article")
    assert 0 < shown < 24
    expected = f"The first {shown} of 24 rows. There is no room on the page for more."
    assert text_of(small, "rule") == expected


def test_no_cell_makes_a_page_large(tmp_path: Path) -> None:
    """Megabytes of text, many choices, documents and problems take some kilobytes."""
    long = "<&> " * 25_000
    documents = [{"id": str(number), "text": long[:4000]} for number in range(300)]
    rows = [
        make_row(
            number,
            id=f"{number} {long[:10_000]}",
            kind=long,
            question_text=long,
            answer_choices=["red", *(f"{number} {long[:2000]}" for number in range(25))],
            documents=documents,
            relevant=list(range(100)),
            evidence=[{"id": str(number), "score": 1.0} for number in range(50, 300)],
            label=f"none {long}",
            error="".join(f"; code_{letter}: {long}" for letter in "abcdefghij"),
        )
        for number in range(3)
    ]
    page = make_page(write_output(tmp_path / "out.csv", rows), "--by", "kind")
    assert len(page) < 300_000
    assert page.count('<svg class="probability"') == 3 * 3
    assert "and 291 other documents" in page
    assert page.count("relevant, not kept") == 3 * 3
    assert "(100,000 characters)" in page


def test_a_column_of_very_many_values_shows_the_largest(tmp_path: Path) -> None:
    rows = [make_row(number, kind=f"k{max(10, number)}") for number in range(120)]
    page = make_page(write_output(tmp_path / "out.csv", rows), "--by", "kind", "--rows", 0)
    lines = [name for name in lines_of(page) if name.startswith("kind=")]
    assert lines[0] == "kind=k10"
    assert len(lines) == 100
    assert "kind has 110 values: the 100 with most rows are shown." in page
