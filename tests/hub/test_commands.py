"""Training and export with models of a hub on this machine, as a user types them."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmrag_batch.bundle import open_bundle
from mmrag_batch.parts import read_origin
from tests.export.test_clip import make_siglip
from tests.hub.client import Client, Done
from tests.hub.server import Hub
from tests.test_docs import named_commands

ASKED = {"scoring": "text", "top_k": 1, "max_images": 1, "max_prompt_tokens": 256}


def outputs(results: list[Done]) -> list[str]:
    """What commands said that all went well."""
    assert [one.code for one in results] == [0] * len(results), [one.err for one in results]
    return [one.out + one.err for one in results]


def write(file: Path, settings: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture
def base(tiny_generator_dir: Path, tmp_path: Path) -> Path:
    """The tiny generator with a model card, and what else lies beside weights on the hub."""
    folder = shutil.copytree(tiny_generator_dir, tmp_path / "base")
    (folder / "README.md").write_text("---\nlicense: llama3.2\n---\n# A base\n")
    (folder / "LICENSE.txt").write_text("You may.")
    (folder / "pytorch_model.bin").write_text("pickle")
    return folder


def test_a_bundle_is_made_of_names_of_the_hub(
    hub: Hub,
    client: Client,
    base: Path,
    tiny_encoders_dir: Path,
    tiny_towers_dir: Path,
    make_adapter: Callable[[float], Path],
    tmp_path: Path,
) -> None:
    folders = {
        "encoders": tiny_encoders_dir,
        "towers": tiny_towers_dir,
        "base": base,
        "adapter": make_adapter(0.05),
    }
    commits = {part: hub.add(f"team/{part}", folder) for part, folder in folders.items()}
    names = {part: f"hf:team/{part}" for part in folders}
    out = tmp_path / "bundle"
    settings = {**names, **ASKED, "out": str(out), "licence": "", "trained_on": "nothing"}
    file = write(tmp_path / "export.yaml", settings)
    dry, done = outputs(
        client.run(
            ["export", "--config", file, "--dry-run"],
            ["export", "--config", file],
            folder=tmp_path,
        )
    )
    for part in folders:
        assert f"hf:team/{part}@main: " in dry
        assert f"would be downloaded; commit {commits[part]}, licence " in dry
    assert "Nothing was downloaded or written" in dry
    assert "image_encoder: " in done
    assert "pytorch_model.bin" not in hub.downloads()
    manifest = open_bundle(out).manifest
    commits["generator"] = commits.pop("base")
    assert manifest.sources == {
        "encoders": f"hf:team/encoders@{commits['encoders']}",
        "towers": f"hf:team/towers@{commits['towers']}",
        "generator": f"hf:team/base@{commits['generator']}",
        "adapter": f"hf:team/adapter@{commits['adapter']}",
    }
    assert manifest.generator.licence == "llama3.2"
    assert not any(file.is_symlink() for file in out.rglob("*"))
    plan = ["export", "--config", file, "--dry-run", "--overwrite"]
    (dry,) = outputs(client.run(plan, folder=tmp_path, HF_HUB_OFFLINE="1"))
    assert "Nothing was written." in dry


def test_what_is_trained_says_which_commit_it_stands_on(
    hub: Hub,
    client: Client,
    base: Path,
    tiny_retriever_dir: Path,
    demo_table: Path,
    tmp_path: Path,
) -> None:
    commit = hub.add("team/base", base)
    graphs = hub.add("team/graphs", tiny_retriever_dir)
    inputs = {"table": str(demo_table), "learning_rate": 1e-3}
    tuning = {**inputs, **ASKED, "steps": 1, "batch_size": 2, "lora_rank": 2}
    generator = write(
        tmp_path / "generator.yaml",
        {**tuning, "base": "hf:team/base", "retriever": "hf:team/graphs", "out": "runs/generator"},
    )
    towers = {"epochs": 1, "batch_size": 8, "hidden_size": 8, "out": "runs/retriever"}
    retriever = write(
        tmp_path / "retriever.yaml", {**inputs, **towers, "encoders": "hf:team/graphs"}
    )
    merge = ["export", "generator", "--adapter", "runs/generator/adapter", "--base"]
    said = outputs(
        client.run(
            ["train", "retriever", retriever, "--dry-run"],
            ["train", "retriever", retriever],
            ["train", "retriever", retriever, "--dry-run"],
            ["train", "generator", generator, "--dry-run"],
            ["train", "generator", generator],
            ["train", "generator", generator, "--dry-run"],
            [*merge, "hf:team/base", "--out", "merged"],
            folder=tmp_path,
        )
    )
    assert f"hf:team/graphs@main: 7 files of 0.4 MB would be downloaded; commit {graphs}" in said[0]
    assert "questions with documents that may be known to help" in said[2]
    assert f"commit {commit}, licence llama3.2." in said[3]
    assert "hf:team/graphs" not in said[3]
    assert "40 rows with a label" in said[5]
    runs = tmp_path / "runs"
    origin = read_origin(runs / "generator" / "adapter", "base")
    assert origin is not None
    assert origin["path"] == f"hf:team/base@{commit}"
    encoders = read_origin(runs / "retriever" / "model", "encoders")
    assert encoders is not None
    assert encoders["path"] == f"hf:team/graphs@{graphs}"
    config = yaml.safe_load((runs / "generator" / "config.yaml").read_text())
    assert (config["base"], config["retriever"]) == (origin["path"], encoders["path"])
    provenance = json.loads((runs / "generator" / "provenance.json").read_text())
    assert f"hf:team/base@{commit}/model.safetensors" in provenance["inputs"]
    assert "base_model: base\n" in (tmp_path / "merged" / "README.md").read_text()
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    hub.add("team/base", base)
    (refused,) = client.run([*merge, "hf:team/base", "--out", "other"], folder=tmp_path)
    assert refused.code == 78
    assert f"which was hf:team/base@{commit} (--base" in refused.err


HUB = [words for words in named_commands() if any(word.startswith("hf:") for word in words)]


def test_the_commands_of_the_docs_that_name_the_hub_run_as_they_are_written(
    hub: Hub, client: Client, base: Path, tmp_path: Path
) -> None:
    """Small models of the same kinds are served under the names that the docs have."""
    make_siglip(tmp_path / "siglip")
    folders = {"--encoders": tmp_path / "siglip", "--base": base, "--generator": base}
    assert HUB
    for words in HUB:
        for flag, value in pairwise(words):
            if value.startswith("hf:"):
                repo, _, revision = value.removeprefix("hf:").partition("@")
                hub.add(repo, folders[flag], revision or "main")
    outputs(client.run(*(words[1:] for words in HUB), folder=tmp_path))
