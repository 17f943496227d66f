"""A bundle of what one has: no towers, no adapter, perhaps no encoders; nothing trained here."""

import contextlib
import csv
import errno
import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from mmrag_batch.bundle import (
    GeneratorSpec,
    open_bundle,
    read_manifest,
    write_prompt_settings,
    write_retriever_spec,
)
from mmrag_batch.cli.app import app
from mmrag_batch.errors import ConfigError, MissingError, OutputError
from mmrag_batch.export.bundle import plan_bundle, write_bundle
from mmrag_batch.export.defaults import describe
from mmrag_batch.export.linking import link_or_copy
from mmrag_batch.export.onnx_retriever import export_towers
from mmrag_batch.export.settings import ExportConfig
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.parts import DEMO, read_spec
from mmrag_batch.prompt import EVIDENCE_FIRST
from mmrag_batch.retrieval.encoder import Encoder
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.table.rows import read_rows
from tests.export.test_clip import make_clip

PAGE = (Path(__file__).parents[2] / "docs" / "your-own-bundle.md").read_text()
COMMANDS = re.findall(r"^    mmrag-batch (.*)$", PAGE, re.M)[:2]
WEIGHTS = Path("generator") / "model.safetensors"


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def read_table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_table(file: Path, **columns: list[str]) -> Path:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *zip(*columns.values(), strict=True)])
    return file


@pytest.fixture(scope="module")
def workplace(
    tiny_generator_dir: Path, demo_table: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with two models, as a hub has them, a table, and what the commands of the page made
    of them."""
    folder = tmp_path_factory.mktemp("workplace")
    make_clip(folder / "models" / "clip-vit-base-patch32")
    llama = folder / "models" / "Llama-3.2-11B-Vision-Instruct"
    shutil.copytree(tiny_generator_dir, llama)
    (llama / "README.md").write_text("---\nlicense: llama3.2\n---\n# A model\n")
    shutil.copytree(demo_table.parent, folder, dirs_exist_ok=True)
    (folder / demo_table.name).rename(folder / "in.csv")
    said = ""
    with contextlib.chdir(folder):
        for command in COMMANDS:
            done = call(*shlex.split(command))
            assert done.exit_code == 0, done.output
            said += done.output
    (folder / "said.txt").write_text(said)
    return folder


def test_two_folders_answer_after_the_two_commands_of_the_page(workplace: Path) -> None:
    rows = read_table(workplace / "out.csv")
    assert len(rows) == 40
    assert {row["status"] for row in rows} == {"ok"}
    assert {len(json.loads(row["evidence"])) for row in rows} == {3}
    said = (workplace / "said.txt").read_text()
    assert f"Next: mmrag-batch {COMMANDS[1]}\n" in said
    assert "By default: scoring letter, top_k 3, max_images 4, max_prompt_tokens 768" in said
    assert "licence llama3.2, trained_on nothing here." in said


def mean(parts: list[Floats]) -> Floats:
    total: Floats = np.sum(parts, axis=0)
    return np.divide(total, np.linalg.norm(total))


def test_untrained_towers_rank_by_the_plain_cosine_of_the_encoders(workplace: Path) -> None:
    bundle = workplace / "my-bundle"
    spec = read_spec(bundle / "retriever")
    assert spec.temperature == 1.0
    encoder = Encoder(bundle / "retriever", spec, device="cpu")
    images = ImageLoader(workplace)

    def embed(text: str | None, image: str | None) -> Floats:
        parts = [] if text is None else [encoder.encode_texts([text])[0]]
        if image is not None:
            parts += list(encoder.encode_images([images.load(image)]))
        return mean(parts)

    mixed = 0
    for row, written in zip(read_rows(workplace / "in.csv"), read_table(workplace / "out.csv")):
        asked = row.question
        assert asked is not None
        question = embed(asked.text, asked.image)
        scores = {one.id: float(question @ embed(one.text, one.image)) for one in asked.documents}
        mixed += len({one.image is None for one in asked.documents})
        evidence = json.loads(written["evidence"])
        assert [item["score"] for item in evidence] == pytest.approx(
            sorted(scores.values(), reverse=True)[:3], abs=1e-4
        )
        for item in evidence:
            assert item["score"] == pytest.approx(scores[item["id"]], abs=1e-4)
    assert mixed > 40  # some rows have pictures and texts


def test_untrained_towers_are_the_same_bytes_each_time(workplace: Path, tmp_path: Path) -> None:
    write_retriever_spec(tmp_path, read_spec(workplace / "my-bundle" / "retriever"))
    export_towers(None, tmp_path)
    for name in ("question_tower.onnx", "document_tower.onnx"):
        written = (workplace / "my-bundle" / "retriever" / name).read_bytes()
        assert (tmp_path / name).read_bytes() == written
        assert len(written) < 100_000


@pytest.fixture
def bare(tiny_generator_dir: Path, tmp_path: Path) -> Path:
    """A bundle without a retriever."""
    write_bundle(ExportConfig(tiny_generator_dir, tmp_path / "bare"))
    return tmp_path / "bare"


def test_a_bundle_without_a_retriever_answers_tables_without_documents(
    bare: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    table = write_table(
        tmp_path / "in.csv",
        question_text=["What is it?", "Who?", "Where?"],
        question_image=["red.png", "", "gone.png"],
        answer_choices=['["a cube", "a ball"]', '["yes", "no"]', '["here", "there"]'],
    )
    assert open_bundle(bare).manifest.retriever is None
    assert not (bare / "retriever").exists()
    command = ("predict", table, tmp_path / "out.csv", "--bundle", bare, "--device", "cpu")
    done = call(*command)
    assert done.exit_code == 3, done.output
    rows = read_table(tmp_path / "out.csv")
    assert [row["status"] for row in rows] == ["ok", "ok", "error"]
    assert [row["evidence"] for row in rows] == ["[]", "[]", "[]"]
    assert "question_image: 'gone.png': no such file" in rows[2]["error"]
    assert call("status", tmp_path / "out.csv").exit_code == 0
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "red.png")
    done = call(*command, "--verify-inputs")
    assert "1 to ask" in done.stderr


def test_documents_need_a_retriever_which_another_export_adds(bare: Path, tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "in.csv",
        question_text=["Who?", "What?"],
        answer_choices=['["a", "b"]'] * 2,
        documents=["", '["A text.", "Another."]'],
    )
    out, options = tmp_path / "out.csv", ("--engine", "scripted", "--bundle")
    done = call("predict", table, out, *options, bare)
    assert done.exit_code == 78
    assert f"in.csv, line 3 has documents, and {bare} has no retriever" in done.stderr
    (command,) = re.findall(r"`mmrag-batch (export .*?)`", done.stderr)
    assert "Loading" not in done.stderr
    assert not out.exists()
    done = call("predict", table, out, *options, bare, "--top-k", 0)
    assert done.exit_code == 0, done.output
    assert [row["evidence"] for row in read_table(out)] == ["[]", "[]"]

    words = {"DIR": "demo", "NEW": str(tmp_path / "new")}
    done = call(*(words.get(word, word) for word in shlex.split(command)))
    assert done.exit_code == 0, done.output
    done = call("predict", table, tmp_path / "found.csv", *options, tmp_path / "new")
    assert done.exit_code == 0, done.output
    found = json.loads(read_table(tmp_path / "found.csv")[1]["evidence"])
    assert {item["id"] for item in found} == {"0", "1"}
    done = call("export", "--encoders", bare, "--generator", bare, "--out", tmp_path / "third")
    assert done.exit_code == 66
    assert f"{bare} is a bundle without a retriever" in done.stderr


def test_a_retriever_is_taken_whole_from_another_bundle(
    tiny_generator_dir: Path, tmp_path: Path
) -> None:
    manifest = write_bundle(ExportConfig(tiny_generator_dir, tmp_path / "bundle", DEMO))
    demo = read_manifest(DEMO_BUNDLE)
    assert manifest.retriever == demo.retriever
    for name in ("image_encoder.onnx", "question_tower.onnx", "document_tower.onnx"):
        copied = (tmp_path / "bundle" / "retriever" / name).read_bytes()
        assert copied == (DEMO_BUNDLE / "retriever" / name).read_bytes()
    known = {name: value for name, value in demo.parity.items() if name != "merged_logits"}
    assert manifest.parity == known
    assert (manifest.trained_on, manifest.notice) == (demo.trained_on, demo.notice)


def test_a_generator_of_another_bundle_is_asked_as_there(tmp_path: Path) -> None:
    demo = read_manifest(DEMO_BUNDLE)
    manifest = write_bundle(ExportConfig(DEMO, tmp_path / "bundle"))
    assert manifest.generator == demo.generator
    changed = write_bundle(ExportConfig(DEMO, tmp_path / "other", top_k=7))
    assert changed.generator == replace(demo.generator, top_k=7)


def test_towers_are_of_no_use_without_their_encoders(
    tiny_generator_dir: Path, tiny_towers_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"of no use without the encoders .*--encoders"):
        plan_bundle(ExportConfig(tiny_generator_dir, tmp_path / "out", towers=tiny_towers_dir))


def test_a_model_that_was_tuned_whole_is_linked(tiny_generator_dir: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_generator_dir, tmp_path / "model")
    spec = GeneratorSpec("x", "text", top_k=2, max_images=1, max_prompt_tokens=300)
    write_prompt_settings(model, spec, EVIDENCE_FIRST)
    out = tmp_path / "bundle"
    options = ("--generator", model, "--encoders", "demo", "--out", out, "--licence", "x")
    done = call("export", *options, "--dry-run")
    assert done.exit_code == 0, done.output
    assert re.search(rf"generator +0\.0 MiB .*{re.escape(str(model))} \(linked\)", done.stdout)
    done = call("export", *options)
    assert done.exit_code == 0, done.output
    assert "Weights: 1 of 1 files are linked" in done.stderr
    manifest = open_bundle(out).manifest
    assert (manifest.generator, manifest.template_version) == (spec, EVIDENCE_FIRST)
    assert (out / WEIGHTS).samefile(model / WEIGHTS.name)
    small = [file for file in out.rglob("*") if file.is_file() and file.name != WEIGHTS.name]
    assert {file.stat().st_nlink for file in small} == {1}
    with (model / WEIGHTS.name).open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\1")
    with pytest.raises(MissingError, match=r"model\.safetensors differs from bundle\.json"):
        open_bundle(out)


def test_links_outlive_the_folder_that_they_come_from(
    tiny_generator_dir: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_generator_dir, tmp_path / "model")
    write_bundle(ExportConfig(model, tmp_path / "bundle"))
    shutil.rmtree(model)
    write_bundle(ExportConfig(tmp_path / "bundle", tmp_path / "bundle"), overwrite=True)
    open_bundle(tmp_path / "bundle")


def test_weights_that_are_symbolic_links_are_linked_as_what_they_name(
    tiny_generator_dir: Path, tmp_path: Path
) -> None:
    """A hub's cache has them: snapshots/REVISION/model.safetensors -> ../../blobs/SHA."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    shutil.copytree(tiny_generator_dir, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    write_bundle(ExportConfig(snapshot, tmp_path / "bundle"))
    weights = tmp_path / "bundle" / WEIGHTS
    assert not weights.is_symlink()
    assert weights.samefile(blobs / WEIGHTS.name)
    assert not any(file.is_symlink() for file in (tmp_path / "bundle").rglob("*"))
    open_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("refusal", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP])
def test_where_links_cannot_be_weights_are_copied(
    tiny_generator_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refusal: int,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "link", refuse)
    with caplog.at_level(logging.INFO):
        write_bundle(ExportConfig(tiny_generator_dir, tmp_path / "bundle"))
    assert "Weights: 0 of 1 files are linked" in caplog.text
    weights, source = tmp_path / "bundle" / WEIGHTS, tiny_generator_dir / WEIGHTS.name
    assert not weights.samefile(source)
    assert weights.read_bytes() == source.read_bytes()


def test_copies_that_have_no_room_are_not_begun(
    tiny_generator_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match="make room"):
        link_or_copy([tiny_generator_dir / WEIGHTS.name], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlicense: mit\n---\n", "LICENSE": "terms"}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: qwen\n---\n"}, "qwen"),
        ({"README.md": "# No front matter", "LICENSE.txt": "terms"}, "see LICENSE.txt"),
        ({}, "unknown"),
    ],
)
def test_what_nobody_says_has_a_default(
    tiny_generator_dir: Path, tmp_path: Path, files: dict[str, str], licence: str
) -> None:
    model = shutil.copytree(tiny_generator_dir, tmp_path / "model")
    for name, text in files.items():
        (model / name).write_text(text)
    said = describe(ExportConfig(model, tmp_path / "out"))
    # 1,024 positions, of which an answer takes 256.
    assert said.generator == GeneratorSpec(licence, "letter", 3, 4, 768)
    assert (said.trained_on, said.notice) == ("nothing here", "")
    assert set(said.defaults) == {
        "scoring",
        "top_k",
        "max_images",
        "max_prompt_tokens",
        "licence",
        "trained_on",
    }


@pytest.mark.parametrize(("positions", "tokens"), [(131072, 8192), (8192, 7936), (300, 150)])
def test_the_longest_prompt_leaves_room_for_an_answer(
    tiny_generator_dir: Path, tmp_path: Path, positions: int, tokens: int
) -> None:
    model = shutil.copytree(tiny_generator_dir, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = positions
    (model / "config.json").write_text(json.dumps(config))
    said = describe(ExportConfig(model, tmp_path / "out"))
    assert said.generator.max_prompt_tokens == tokens


def test_of_parts_that_were_trained_it_is_not_said_that_they_were_not(
    tiny_generator_dir: Path,
    make_adapter: Callable[[float], Path],
    tmp_path: Path,
) -> None:
    config = ExportConfig(tiny_generator_dir, tmp_path / "out", adapter=make_adapter(0.05))
    assert describe(config).trained_on == "not said"
    assert describe(replace(config, trained_on="a table")).trained_on == "a table"


def test_a_file_may_say_generator_or_base_but_not_both(
    tiny_generator_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "export.yaml"
    for name in ("generator", "base"):
        values = {name: str(tiny_generator_dir), "out": str(tmp_path / name)}
        file.write_text(yaml.safe_dump(values))
        done = call("export", "--config", file)
        assert done.exit_code == 0, done.output
        open_bundle(tmp_path / name)
    file.write_text("{generator: a, base: b, out: c}")
    done = call("export", "--config", file)
    assert done.exit_code == 78
    assert "'base' and 'generator' are one setting; leave one of them out." in done.stderr
