"""The commands as a user types them: what they print, write and exit with."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from mmrag_batch import __version__
from mmrag_batch.bundle import (
    RETRIEVER_SPEC,
    BundleManifest,
    GeneratorSpec,
    hash_files,
    read_manifest,
    read_retriever_spec,
    write_manifest,
)
from mmrag_batch.cli.app import app
from mmrag_batch.export.settings import ExportConfig
from mmrag_batch.machine import install
from mmrag_batch.table.output import OUTPUT_COLUMNS

COLUMNS = ("question_text", "question_image", "answer_choices", "documents", "label", "kind")
ROWS = [
    ("What is red?", "red.png", '["a cube", "a ball"]', '["A cube.", "red.png"]', "a cube", "x"),
    ("What is blue?", "", "['yes', 'no']", '["gone.png", "A ball is blue."]', "no", "y"),
    ("Who?", "", "", "[]", "", "y"),
]
UNUSABLE = ("Where?", "gone.png", '["here", "there"]', "", "there", "x")


@pytest.fixture(scope="module")
def bundle(
    tiny_retriever_dir: Path, tiny_generator_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("bundle")
    shutil.copytree(tiny_retriever_dir, directory / "retriever")
    shutil.copytree(tiny_generator_dir, directory / "generator")
    spec = read_retriever_spec(directory / "retriever")
    (directory / "retriever" / RETRIEVER_SPEC).unlink()
    manifest = BundleManifest(
        retriever=spec,
        generator=GeneratorSpec(
            licence="Apache-2.0", scoring="letter", top_k=2, max_images=2, max_prompt_tokens=512
        ),
        files=hash_files(directory),
        parity={"graph": 1e-7},
        trained_on="nothing",
        notice="This bundle knows nothing.",
    )
    write_manifest(directory, manifest)
    return directory


def write_table(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    Image.new("RGB", (40, 40), "red").save(path.parent / "red.png")
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    return path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "in.csv", ROWS)


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def predict(table: Path, bundle: Path, *options: object) -> Result:
    output = table.with_name("out.csv")
    return call("predict", table, output, "--bundle", bundle, "--engine", "scripted", *options)


def test_predict_answers_every_row_in_order(table: Path, bundle: Path) -> None:
    done = predict(table, bundle)
    assert done.exit_code == 0, done.stderr
    rows = read_table(table.with_name("out.csv"))
    assert list(rows[0]) == [*COLUMNS, *OUTPUT_COLUMNS]
    assert [tuple(row[name] for name in COLUMNS) for row in rows] == ROWS
    assert [row["status"] for row in rows] == ["ok", "degraded", "ok"]
    assert rows[0]["prediction"] in ("a cube", "a ball")
    assert rows[2]["prediction"].startswith("answer ")
    assert {item["id"] for item in json.loads(rows[0]["evidence"])} == {"0", "1"}


def test_predict_says_what_it_did_and_what_to_type_next(table: Path, bundle: Path) -> None:
    done = predict(table, bundle)
    assert done.stdout == ""
    assert "This bundle knows nothing." in done.stderr
    assert "3 rows, 3 asked now (" in done.stderr
    assert "(2 ok, 1 degraded, 0 error)" in done.stderr
    assert f"Next: mmrag-batch evaluate {table.with_name('out.csv')}" in done.stderr


@pytest.mark.parametrize("command", [(), ("predict",), ("train", "generator")])
def test_every_command_has_help_under_its_short_name(command: tuple[str, ...]) -> None:
    done = call(*command, "-h")
    assert done.exit_code == 0
    assert done.stdout == call(*command, "--help").stdout


def test_a_shell_completes_commands_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, found in {"pred": "predict", "predict --quie": "--quiet"}.items():
        line = f"mmrag-batch {words}"
        monkeypatch.setenv("_MMRAG_BATCH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
        done = CliRunner().invoke(app, [], prog_name="mmrag-batch")
        assert done.stdout.split() == [found]


def test_the_first_line_comes_before_anything_that_takes_a_while_is_imported(table: Path) -> None:
    words = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "mmrag_batch",
        "predict",
        str(table),
        "out.csv",
    ]
    done = subprocess.run([*words, "--bundle", str(table.parent)], capture_output=True, text=True)
    before, told, after = done.stderr.partition(f"{__version__} answers {table} into out.csv.")
    assert told, done.stderr
    slow = {"numpy", "PIL", "tqdm", "sqlite3", "mmrag_batch.run.predict"}
    assert not slow & {line.rsplit("|", 1)[-1].strip() for line in before.splitlines()}
    assert slow <= {line.rsplit("|", 1)[-1].strip() for line in after.splitlines()}


def test_a_command_leaves_the_interpreter_nothing_to_look_through() -> None:
    words = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count()))"
    words += "; sys.argv[1:] = ['--version']; from mmrag_batch.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) > 1000


@pytest.mark.parametrize("flag", ["--quiet", "-q"])
def test_quiet_prints_nothing_on_success(table: Path, bundle: Path, flag: str) -> None:
    done = predict(table, bundle, flag)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


def test_a_run_with_an_unanswerable_row_is_complete_and_exits_with_3(
    tmp_path: Path, bundle: Path
) -> None:
    table = write_table(tmp_path / "in.csv", [ROWS[0], UNUSABLE, ROWS[2]])
    assert predict(table, bundle).exit_code == 3
    rows = read_table(tmp_path / "out.csv")
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert rows[1]["error"].startswith("image_missing: ")
    assert rows[1]["prediction"] == ""


def test_the_transformers_engine_gives_probabilities(table: Path, bundle: Path) -> None:
    output = table.with_name("out.csv")
    arguments = ("--bundle", bundle, "--device", "cpu", "--max-new-tokens", 2, "--limit", 2)
    assert call("predict", table, output, *arguments).exit_code == 0
    rows = read_table(output)
    assert len(rows) == 2
    for row in rows:
        probabilities = json.loads(row["choice_probabilities"])
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert float(row["confidence"]) == max(probabilities)


def test_settings_come_from_flags_variables_and_the_config_file(
    table: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = table.with_name("run.toml")
    config.write_text("[predict]\ntop_k = 2\nlimit = 1\n")
    monkeypatch.setenv("MMRAG_TOP_K", "1")
    assert predict(table, bundle, "--config", config).exit_code == 0
    rows = read_table(table.with_name("out.csv"))
    assert len(rows) == 1
    assert len(json.loads(rows[0]["evidence"])) == 1


def test_a_bad_setting_exits_with_78_and_touches_nothing(table: Path, bundle: Path) -> None:
    done = predict(table, bundle, "--top-k", -1, "--batch-size", 0)
    assert done.exit_code == 78
    assert "--top-k: expected" in done.stderr
    assert "--batch-size: expected" in done.stderr
    assert not table.with_name("out.csv").exists()


def test_the_chat_engine_needs_a_model(table: Path, bundle: Path) -> None:
    done = predict(table, bundle, "--engine", "chat", "--endpoint", "http://host:8000")
    assert done.exit_code == 78
    assert "--engine chat needs --model" in done.stderr


def test_the_server_engine_needs_an_endpoint(table: Path, bundle: Path) -> None:
    done = predict(table, bundle, "--engine", "server")
    assert done.exit_code == 78
    assert "--endpoint http://host:8000" in done.stderr


def test_an_existing_output_is_kept_unless_overwrite_is_given(table: Path, bundle: Path) -> None:
    output = table.with_name("out.csv")
    output.write_text("precious")
    done = predict(table, bundle)
    assert (done.exit_code, output.read_text()) == (73, "precious")
    assert "--overwrite" in done.stderr
    assert predict(table, bundle, "--overwrite").exit_code == 0
    assert len(read_table(output)) == 3


@pytest.mark.parametrize(
    ("content", "code"), [("question\nWho?\n", 65), ('question_text\n"Who?\n', 65), (None, 66)]
)
def test_a_broken_or_missing_input_ends_before_models_are_loaded(
    tmp_path: Path, bundle: Path, content: str | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("mmrag_batch.run.predict.find_stages")
    table = tmp_path / "in.csv"
    if content is not None:
        table.write_text(content)
    done = predict(table, bundle)
    assert done.exit_code == code
    assert "in.csv" in done.stderr


def test_a_missing_bundle_exits_with_66(table: Path) -> None:
    done = predict(table, table.parent)
    assert done.exit_code == 66
    assert done.stderr.splitlines()[1:] == [
        f"mmrag-batch: {table.parent} is no bundle: it has no bundle.json. "
        "Make one with `mmrag-batch export`."
    ]


def test_h06_a_missing_package_names_the_line_that_installs_it(
    table: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = predict(table, bundle)
    assert done.exit_code == 69
    assert f"onnxruntime is not installed. Run `{install('cpu')}`.\n" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 74),
        (OSError(errno.EIO, "Input/output error"), 74),
        (KeyboardInterrupt(), 130),
    ],
)
def test_failures_in_the_middle_have_exit_codes_and_publish_nothing(
    table: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("mmrag_batch.table.output.RowFormat.row", fail)
    done = predict(table, bundle)
    assert done.exit_code == code
    assert done.stderr.splitlines()[-1].startswith("mmrag-batch: ")
    assert not table.with_name("out.csv").exists()


def test_an_error_of_ours_is_not_swallowed(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("mmrag_batch.run.validate.check_table", fail)
    result = CliRunner().invoke(app, ["validate", str(table)])
    assert isinstance(result.exception, PermissionError)


def test_validate_names_file_line_row_and_problem(tmp_path: Path) -> None:
    table = write_table(tmp_path / "in.csv", [*ROWS, UNUSABLE])
    done = call("validate", table)
    assert done.exit_code == 3
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{table}:3: 1: image_missing: ")
    assert lines[1].startswith(f"{table}:5: 3: image_missing: ")
    assert lines[2].startswith(f"{table}: CSV with commas, 6 columns, ")
    assert lines[3].startswith(f"{table}: label: 3 read, ")
    assert lines[4] == f"{table}: 2 problems; 1 rows would get no answer."


def test_validate_is_content_with_rows_that_can_be_answered(table: Path) -> None:
    assert call("validate", table).exit_code == 0


def test_validate_looks_for_images_where_predict_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    write_table(pictures / "in.csv", ROWS[:1])
    table = (pictures / "in.csv").rename(tmp_path / "in.csv")
    assert call("validate", table).exit_code == 3
    monkeypatch.setenv("MMRAG_IMAGE_ROOT", str(pictures))
    assert call("validate", table).exit_code == 0


def test_validate_refuses_a_file_that_is_no_table(tmp_path: Path) -> None:
    table = tmp_path / "in.csv"
    table.write_text("a,a\n1,2\n")
    assert call("validate", table).exit_code == 65


def test_evaluate_prints_a_table_or_json(table: Path, bundle: Path) -> None:
    predict(table, bundle)
    output = table.with_name("out.csv")
    text = call("evaluate", output, "--by", "kind")
    assert text.exit_code == 0
    names = [line.split()[0] for line in text.stdout.splitlines()[1:] if line]
    assert names[:3] == ["all", "kind=x", "kind=y"]
    figures = json.loads(call("evaluate", output, "--json").stdout)
    assert figures["overall"]["rows"] == 3
    assert figures["overall"]["accuracy"]["rows"] == 2


def test_evaluate_refuses_a_file_that_predict_did_not_write(table: Path) -> None:
    done = call("evaluate", table)
    assert done.exit_code == 65
    assert "no column prediction_index" in done.stderr


def test_towers_are_exported_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(source: Path, out: Path) -> dict[str, float]:
        assert (source, out) == (tmp_path, tmp_path / "out")
        return {"graph": 3e-6}

    monkeypatch.setattr("mmrag_batch.export.onnx_retriever.export_towers", export)
    done = call("export", "towers", "--towers", tmp_path, "--out", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (0, "graph: differs by at most 3.0e-06\n")


@pytest.mark.parametrize("flag", ["--encoders", "--imagebind", "--clip"])
def test_encoders_are_exported_alone_whatever_they_are(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(source: Path, out: Path, **settings: object) -> dict[str, float]:
        assert (source, out) == (tmp_path, tmp_path / "out")
        assert settings == {"precision": "int8", "sample": tmp_path / "in", "vocabulary": None}
        return {"image_cosine": 0.99987, "image_encoder_attentions": 32}

    monkeypatch.setattr("mmrag_batch.export.onnx_retriever.export_encoders", export)
    options = ["--out", tmp_path / "out", "--precision", "int8", "--sample", tmp_path / "in"]
    done = call("export", "encoders", flag, tmp_path, *options)
    assert (done.exit_code, done.stdout) == (
        0,
        "image_cosine: 0.99987\nimage_encoder_attentions: 32\n",
    )


def test_embeddings_are_kept_for_the_next_run(table: Path, bundle: Path, tmp_path: Path) -> None:
    option = ("--embedding-cache", tmp_path / "cache")
    first = predict(table, bundle, *option)
    written = sorted(file.stat().st_size for file in (tmp_path / "cache").rglob("*.*"))
    assert written[0] > 0
    out = table.with_name("out.csv")
    expected = out.read_bytes()
    again = predict(table, bundle, *option, "--overwrite")
    assert first.exit_code == again.exit_code
    assert out.read_bytes() == expected
    assert sorted(file.stat().st_size for file in (tmp_path / "cache").rglob("*.*")) == written


def test_export_takes_a_config_file(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def write_bundle(config: ExportConfig, *, overwrite: bool) -> BundleManifest:
        given.append((config, overwrite))
        return read_manifest(bundle)

    config = tmp_path / "export.yaml"
    config.write_text(
        "{encoders: e, towers: t, base: b, adapter: a, out: o, licence: MIT, scoring: text, "
        "top_k: 3, max_images: 1, max_prompt_tokens: 64, trained_on: a world}"
    )
    monkeypatch.setattr("mmrag_batch.export.bundle.write_bundle", write_bundle)
    done = call("export", "--config", config, "--overwrite")
    assert done.exit_code == 0, done.stderr
    assert "graph: 1e-07" in done.stdout
    assert "Next: mmrag-batch predict in.csv out.csv --bundle o\n" in done.stdout
    encoders, towers, base, adapter, out = map(Path, "etbao")
    expected = ExportConfig(
        base, out, encoders, towers, adapter, "MIT", "a world", "text", 3, 1, 64
    )
    assert given == [(expected, True)]
    flags = ("--towers", "u", "--max-images", 2, "--generator", "g", "--trained-on", "two")
    done = call("export", "--config", config, *flags)
    assert done.exit_code == 0, done.stderr
    changed = replace(
        expected, towers=Path("u"), generator=Path("g"), max_images=2, trained_on="two"
    )
    assert given[1:] == [(changed, False)]


@pytest.mark.parametrize("content", ["{top-k: 3}", "{"])
def test_a_bad_export_config_exits_with_78(tmp_path: Path, content: str) -> None:
    config = tmp_path / "export.yaml"
    config.write_text(content)
    done = call("export", "--config", config)
    assert done.exit_code == 78
    assert "export.yaml" in done.stderr


def test_export_without_parts_says_that_it_needs_some() -> None:
    done = call("export")
    assert done.exit_code == 2
    assert "parts are needed" in done.stderr
    done = call("export", "--encoders", "e", "--max-images", 2)
    assert done.exit_code == 78
    assert "the command line: 'generator' is missing; expected a path." in done.stderr
    assert "the command line: 'out' is missing; expected a path." in done.stderr


def test_the_version_is_that_of_the_package() -> None:
    assert call("--version").stdout == f"mmrag-batch {__version__}\n"


def test_a_wrong_flag_is_a_usage_error() -> None:
    assert call("predict", "in.csv", "out.csv", "--device", "magic").exit_code == 2


def test_a_reader_that_leaves_early_is_no_crash(tmp_path: Path) -> None:
    table = write_table(tmp_path / "in.csv", [UNUSABLE] * 3000)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mmrag_batch", "validate", str(table)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
