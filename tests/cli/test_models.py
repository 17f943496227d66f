"""The commands that make models, as a user types them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from mmrag_batch.cli.app import app
from mmrag_batch.run import lock

ROOT = Path(__file__).parents[2]


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def adapter(make_adapter: Callable[[float], Path]) -> Path:
    return make_adapter(0.05)


def test_a_generator_is_exported_alone(
    tiny_generator_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    options = ("--base", tiny_generator_dir, "--adapter", adapter, "--out", out)
    done = call("export", "generator", *options)
    assert done.exit_code == 0, done.stderr
    assert "weights merged" in done.stdout
    assert "merged_logits: differs by at most" in done.stdout
    assert (out / "README.md").is_file()
    again = call("export", "generator", *options)
    assert again.exit_code == 73
    assert "--overwrite" in again.stderr


def test_an_adapter_that_changes_nothing_exits_with_78(
    tiny_generator_dir: Path, make_adapter: Callable[[float], Path], tmp_path: Path
) -> None:
    options = ("--base", tiny_generator_dir, "--adapter", make_adapter(0.0))
    done = call("export", "generator", *options, "--out", tmp_path / "merged")
    assert done.exit_code == 78
    assert "changes nothing. Train it longer" in done.stderr


def test_a_dry_run_says_what_an_export_would_do(
    tiny_encoders_dir: Path,
    tiny_towers_dir: Path,
    tiny_generator_dir: Path,
    adapter: Path,
    tmp_path: Path,
) -> None:
    parts = {
        "encoders": tiny_encoders_dir,
        "towers": tiny_towers_dir,
        "base": tiny_generator_dir,
        "adapter": adapter,
        "out": tmp_path / "bundle",
    }
    asked = {"scoring": "text", "top_k": 3, "max_images": 1, "max_prompt_tokens": 64}
    config = {**{name: str(path) for name, path in parts.items()}, **asked}
    file = tmp_path / "export.yaml"
    file.write_text(yaml.safe_dump({**config, "licence": "MIT", "trained_on": "nothing"}))
    done = call("export", "--config", file, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:5]] == [
        "encoders",
        "towers",
        "generator",
        "manifest",
    ]
    assert "Nothing was written." in done.stdout
    assert not (tmp_path / "bundle").exists()


@pytest.fixture
def tuning(tiny_generator_dir: Path, demo_table: Path, tmp_path: Path) -> dict[str, object]:
    """The settings of a run that tunes a generator."""
    paths = {"base": tiny_generator_dir, "table": demo_table, "out": tmp_path / "out"}
    sizes = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "top_k": 1, "max_images": 1}
    others = {"scoring": "text", "max_prompt_tokens": 256, "lora_rank": 2, "held_out": 10}
    return {**{name: str(path) for name, path in paths.items()}, **sizes, **others}


def test_a_dry_run_says_what_training_would_learn_from(
    tuning: dict[str, object], tmp_path: Path
) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(tuning))
    done = call("train", "generator", file, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "40 rows with a label, of which about 10 are held out; 2 steps of 4 rows." in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "quantised"}, "is quantised (bitsandbytes)"),
        ({"base": "none", "lora_rank": 0}, "none/config.json is missing"),
        ({"held_out": 40}, "held_out is 40, and 40 rows"),
        ({"held_out_by": "kin"}, "Did you mean 'kind'?"),
        ({"retriever": "none"}, "holds no retriever"),
        ({"table": "none.csv"}, "none.csv"),
    ],
)
def test_a_dry_run_of_training_refuses_what_would_be_refused_later(
    tuning: dict[str, object],
    tiny_generator_dir: Path,
    tmp_path: Path,
    changes: dict[str, object],
    message: str,
) -> None:
    """Also by the export: what was trained would be of no use."""
    base = shutil.copytree(tiny_generator_dir, tmp_path / "quantised")
    settings = json.loads((base / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes"}
    (base / "config.json").write_text(json.dumps(settings))
    file = tmp_path / "train.yaml"
    if changes.get("base") == "quantised":
        changes = {"base": str(base)}
    file.write_text(yaml.safe_dump({**tuning, **changes}))
    done = call("train", "generator", file, "--dry-run")
    assert done.exit_code in (65, 66, 78), done.stdout
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_towers_looks_at_encoders_and_rows(
    tiny_retriever_dir: Path, demo_table: Path, tmp_path: Path
) -> None:
    paths = {"encoders": tiny_retriever_dir, "table": demo_table, "out": tmp_path / "out"}
    settings: dict[str, object] = {name: str(path) for name, path in paths.items()}
    settings |= {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "hidden_size": 8}
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(settings))
    done = call("train", "retriever", file, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "questions with documents that may be known to help" in done.stdout
    for changes, message in (
        ({"batch_size": 64}, "fill no batch of 64"),
        ({"encoders": str(tmp_path)}, "holds no retriever"),
        ({"supervision": "likelihood"}, "needs a `generator`"),
        ({"held_out": 0.001}, "too few to train on"),
    ):
        file.write_text(yaml.safe_dump({**settings, **changes}))
        done = call("train", "retriever", file, "--dry-run")
        assert done.exit_code in (65, 66, 78), done.stdout
        assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_merge_needs_little_more_memory_than_what_it_imports(tmp_path: Path) -> None:
    """The benchmark on a small checkpoint, too large for its logits to be compared: 0.38 to
    0.57 GiB, as the allocator goes. Held in whole, it would be 0.57 more."""
    command = [sys.executable, "-m", "benchmarks.merge", "--gigabytes", "0.7", "--shards", "3"]
    command += ["--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")[1:-1]]
    assert cells[1] == "3"
    imports, peak = (float(cell.removesuffix(" GiB")) for cell in cells[3:5])
    assert peak - imports <= 0.7, done.stdout


@pytest.mark.parametrize("model", ["generator"])
def test_a_bad_training_config_exits_with_78_and_lists_every_problem(
    tmp_path: Path, model: str
) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("{stepz: 3, batch_size: many}")
    done = call("train", model, config)
    assert done.exit_code == 78
    assert f"{config}, stepz: no such setting; did you mean 'steps'?" in done.stderr
    assert f"{config}, batch_size: expected a whole number, not 'many'." in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("train", "retriever", "CONFIG"),
        ("train", "generator", "CONFIG"),
        ("train", "encoders", "CONFIG"),
        ("train", "vision", "CONFIG"),
        ("export", "--config", "CONFIG"),
        ("export", "encoders", "--encoders", "none", "--out", "OUT"),
        ("export", "towers", "--towers", "none", "--out", "OUT"),
        ("export", "generator", "--base", "none", "--adapter", "none", "--out", "OUT"),
        ("demo", "world", "OUT"),
        ("demo", "encoders", "CONFIG"),
        ("demo", "generator", "OUT", "--table", "none"),
        ("demo", "vision", "CONFIG"),
    ],
    ids=" ".join,
)
def test_two_commands_never_write_into_one_folder(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LOOKED_AT", 0.01)
    monkeypatch.chdir(tmp_path)
    out, link, config = tmp_path / "out", tmp_path / "link", tmp_path / "config.yaml"
    link.symlink_to(out)  # one folder by two names
    preset: dict[tuple[str, ...], str] = {
        ("train", "retriever"): "train/configs/demo_retriever.yaml",
        ("train", "generator"): "train/configs/demo_generator.yaml",
        ("train", "encoders"): "train/configs/small_encoders.yaml",
        ("train", "vision"): "train/configs/small_vision.yaml",
        ("export", "--config"): "export/configs/demo.yaml",
        ("demo", "encoders"): "train/configs/demo_encoders.yaml",
        ("demo", "vision"): "train/configs/demo_vision.yaml",
    }
    if command[:2] in preset:
        values = yaml.safe_load((ROOT / preset[command[:2]]).read_text())
        config.write_text(yaml.safe_dump({**values, "out": str(link)}))
    names = {"CONFIG": config, "OUT": link}
    with lock.hold_lock(tmp_path / ".out.lock", wait=False):
        done = call(*(names.get(word, word) for word in command))
        assert done.exit_code == 11, done.stderr
        assert f"pid {os.getpid()}" in done.stderr
        assert not out.exists()


def test_the_processes_of_one_training_share_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with lock.hold_lock(tmp_path / ".world.lock", wait=False):
        assert call("demo", "world", tmp_path / "world", "--rows", 1).exit_code == 0
