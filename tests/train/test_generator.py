import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers.models.mllama.modeling_mllama import MllamaVisionModel

from mmrag_batch.errors import ConfigError, InputError, UnavailableError
from mmrag_batch.export.merge import merge_adapter
from mmrag_batch.families.mllama.inputs import load_image_processor
from mmrag_batch.families.mllama.loading import load_model
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.parts import hash_model, read_origin
from mmrag_batch.records import Row
from mmrag_batch.train.answer_trainer import AnswerTrainer
from mmrag_batch.train.examples import labelled_rows
from mmrag_batch.train.generator import (
    build_trainer,
    plan_generator,
    split_rows,
    train_generator,
    trainable,
    with_evidence,
)
from mmrag_batch.train.held_out import Score
from mmrag_batch.train.run import Run
from mmrag_batch.train.settings import GeneratorConfig
from mmrag_batch.train.tuning import save_model
from tests.test_trackers import in_tensorboard

ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def full(tiny_generator_dir: Path, demo_table: Path, tmp_path: Path) -> GeneratorConfig:
    return GeneratorConfig(
        base=tiny_generator_dir,
        table=demo_table,
        out=tmp_path / "run",
        steps=2,
        batch_size=2,
        learning_rate=1e-3,
        top_k=1,
        max_images=1,
        scoring="text",
    )


def metrics_of(config: GeneratorConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def write(config: GeneratorConfig, file: Path) -> Path:
    settings = {key: value for key, value in asdict(config).items() if value is not None}
    file.write_text(yaml.safe_dump(json.loads(json.dumps(settings, default=str))))
    return file


def test_full_training_writes_a_whole_checkpoint(full: GeneratorConfig) -> None:
    out = train_generator(full)
    assert out == full.out / "model"
    assert Renderer(out).answer_ids("12 coins") == Renderer(full.base).answer_ids("12 coins")
    load_image_processor(out)
    before = load_model(full.base, dtype=torch.float32)
    after = load_model(out, dtype=torch.float32)
    assert after.generation_config.eos_token_id == before.generation_config.eos_token_id
    weights = before.state_dict()
    changed = {n for n, tensor in after.state_dict().items() if not torch.equal(tensor, weights[n])}
    assert any("language_model" in name for name in changed)
    assert any("vision_model" in name for name in changed)


def test_weights_that_a_bundle_is_linked_to_are_left_as_they_are(
    full: GeneratorConfig, tmp_path: Path
) -> None:
    model = load_model(full.base, dtype=torch.float32)
    weights = save_model(model, full.base, tmp_path / "model") / "model.safetensors"
    linked = tmp_path / "linked.safetensors"
    linked.hardlink_to(weights)
    before = linked.read_bytes()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_model(model, full.base, tmp_path / "model")
    assert linked.read_bytes() == before != weights.read_bytes()


def test_a_run_leaves_its_record_and_no_checkpoints(full: GeneratorConfig) -> None:
    train_generator(full)
    provenance = json.loads((full.out / "provenance.json").read_text())
    assert provenance["inputs"].keys() > {str(full.table), str(full.base / "model.safetensors")}
    first, *reports = metrics_of(full)
    assert first["rows"] == 40
    assert first["trained_parameters"] > 100_000
    assert [report["step"] for report in reports] == [1, 2]
    names = {"config.yaml", "provenance.json", "metrics.jsonl", "curves.svg", "model"}
    assert {path.name for path in full.out.iterdir()} == names


def test_lora_training_writes_an_adapter_alone(full: GeneratorConfig) -> None:
    out = train_generator(replace(full, lora_rank=2))
    assert out == full.out / "adapter"
    assert not (full.out / "model").exists()
    weights = load_file(out / ADAPTER)
    assert read_origin(out, "base") == {"path": str(full.base), "files": hash_model(full.base)}
    assert weights
    assert all("lora_" in name and "vision" not in name for name in weights)
    assert all("language_model" in name for name in weights)
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)


def test_lora_trains_nothing_but_projections_of_the_text_model(full: GeneratorConfig) -> None:
    model = trainable(replace(full, lora_rank=2))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name and "language_model" in name for name in trained)
    for layer in ("self_attn.q_proj", "cross_attn.k_proj", "mlp.down_proj"):
        assert any(layer in name for name in trained)


@pytest.mark.parametrize("frozen", [{"lora_rank": 2}, {"freeze_vision": True}])
def test_a_frozen_tower_keeps_nothing_for_a_way_back(
    full: GeneratorConfig, frozen: dict[str, Any]
) -> None:
    """With checkpoints transformers has what every embedding returns ask for gradients."""
    config = replace(full, gradient_checkpointing=True, steps=1, **frozen)
    run = Run(config.out, config, seed=0)
    trainer = build_trainer(config, config.out / "checkpoints", run)
    seen: list[bool] = []
    assert trainer.model is not None
    [tower] = [m for m in trainer.model.modules() if isinstance(m, MllamaVisionModel)]
    tower.register_forward_hook(lambda *call: seen.append(call[2].last_hidden_state.requires_grad))
    trainer.train()
    assert seen
    assert not any(seen)


def test_without_a_rank_everything_is_trained(full: GeneratorConfig) -> None:
    model = trainable(full)
    assert all(p.requires_grad for p in model.parameters())


def test_gradient_checkpointing_changes_no_result(full: GeneratorConfig) -> None:
    plain = train_generator(replace(full, lora_rank=2, steps=3))
    other = replace(full, lora_rank=2, steps=3, out=full.out / "other")
    saving = train_generator(replace(other, gradient_checkpointing=True))
    torch.testing.assert_close(load_file(saving / ADAPTER), load_file(plain / ADAPTER))


def test_a_step_is_the_same_however_its_rows_are_shared_out(full: GeneratorConfig) -> None:
    """Rows whose answers take different numbers of tokens, and no pictures: any may share a
    batch."""
    table = full.table.with_name("plain.csv")
    rows = pd.read_csv(full.table, dtype=str).query("question_image.isna()")
    rows = rows.assign(documents=[f'["{"word " * n}"]' for n in range(len(rows))])
    rows.head(6).to_csv(table, index=False)
    assert rows.head(6).label.str.len().nunique() > 2
    found = []
    for batch_size, accumulate in ((6, 1), (3, 2), (1, 6)):
        config = replace(
            full,
            table=table,
            out=full.out / str(accumulate),
            batch_size=batch_size,
            accumulate=accumulate,
            prompt_loss=0.1,
            lora_rank=2,
            steps=1,
        )
        train_generator(config)
        (report,) = metrics_of(config)[1:]
        found.append((report["loss"], report["grad_norm"]))
    assert found[1:] == [pytest.approx(found[0], rel=1e-3)] * 2


def test_a_base_in_4_bits_learns_and_is_merged_as_it_was(
    full: GeneratorConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scoring first: bitsandbytes must not repack weights then, or gradients are lost (a warning
    that the tests turn into an error). The last weights are kept, whatever their scores."""
    monkeypatch.setattr(AnswerTrainer, "_load_best_model", lambda _: None)
    config = replace(full, lora_rank=4, four_bits=True, held_out=6, steps=4, save_every=2)
    model = trainable(config)
    packed = {n for n, p in model.named_parameters() if p.dtype == torch.uint8}
    assert packed
    assert all("language_model" in name for name in packed)
    adapter = train_generator(replace(config, gradient_checkpointing=True))
    weights = load_file(adapter / ADAPTER)
    layers = {name.split(".layers.")[1].split(".")[0] for name in weights}
    learnt = {
        n.split(".layers.")[1].split(".")[0] for n, t in weights.items() if "_B" in n and t.any()
    }
    assert learnt == layers
    report = merge_adapter(config.base, adapter, tmp_path / "merged")
    assert report.merged == len(weights) // 2


def test_4_bits_need_lora(full: GeneratorConfig) -> None:
    with pytest.raises(ConfigError, match="set lora_rank"):
        train_generator(replace(full, four_bits=True))
    assert not full.out.exists()


def test_what_is_not_installed_is_said_before_anything_is_loaded(
    full: GeneratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrag_batch.train.generator.find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match=r"bitsandbytes is not installed\. Run `.* install"):
        train_generator(replace(full, lora_rank=2, four_bits=True))


def test_rows_that_are_held_out_are_scored_at_each_checkpoint(
    full: GeneratorConfig, steps: dict[str, tuple[int, int | None]]
) -> None:
    config = replace(full, held_out=10, steps=5, save_every=2)
    train_generator(config)
    assert (steps["Training"], steps["Scoring"]) == ((5, 5), (10, 10))
    assert steps["Fitting prompts"] == steps["Reading pictures"] == (40, 40)
    assert f"Loading {full.base}" in steps
    first, *reports = metrics_of(config)
    assert (first["rows"], first["held_out"]) == (30, 10)
    scores = {report["step"]: report for report in reports if "eval_loss" in report}
    assert list(scores) == [0, 2, 4, 5]
    assert {score["eval_rows"] for score in scores.values()} == {10}
    assert all(0 <= score["eval_accuracy"] <= 1 < 10 for score in scores.values())


def test_a_tracker_gets_the_figures_that_the_folder_has(full: GeneratorConfig) -> None:
    pytest.importorskip("tensorboard")
    config = replace(full, held_out=9, save_every=1, lora_rank=2, report_to="tensorboard")
    train_generator(config)
    curves = in_tensorboard(config.out)
    reports = metrics_of(config)
    for name in ("loss", "eval_loss", "eval_accuracy"):
        kept = {report["step"]: report[name] for report in reports if name in report}
        assert dict(curves[name]) == pytest.approx(kept, abs=1e-4)
        assert len(curves[name]) == len(kept)
        assert f">{name}: " in (config.out / "curves.svg").read_text()
    assert curves["rows"] == [(0, reports[0]["rows"])]


def test_rows_without_choices_are_learnt_and_scored_beside_others(
    full: GeneratorConfig, tmp_path: Path
) -> None:
    """Learnt by heart: what is held out, of rows that are also trained on, becomes likelier."""
    free = pd.read_csv(full.table, dtype=str)
    free.loc[free.index[::2], "answer_choices"] = None
    table = full.table.with_name("free.csv")
    free.to_csv(table, index=False)
    config = replace(full, table=table, batch_size=4, held_out=10, steps=12, save_every=12)
    train_generator(config)
    first, *reports = metrics_of(config)
    assert first["rows"] + first["held_out"] == 40
    before, after = (r["eval_loss"] for r in reports if "eval_loss" in r)
    assert after < before
    assert plan_generator(config).startswith(f"{table}: 40 rows with a label")


def test_rows_that_share_anything_are_held_out_together(
    full: GeneratorConfig, tmp_path: Path
) -> None:
    """Each row of the table comes twice, its pictures under other names."""
    table = pd.read_csv(full.table, dtype=str)
    copies = table.assign(id=table.id + "b")
    for column in ("question_image", "documents"):
        copies[column] = copies[column].str.replace("images/", "images/../images/")
    both = full.table.with_name("both.csv")
    pd.concat([table, copies]).to_csv(both, index=False)
    images = ImageLoader(full.table.parent)
    config = replace(full, table=both, held_out=20)
    trained, held_out = split_rows(labelled_rows(both), images, config)
    assert len(held_out) == 20
    assert not {row.id.rstrip("b") for row in trained} & {row.id.rstrip("b") for row in held_out}
    again = split_rows(labelled_rows(both), images, config)[1]
    assert [row.id for row in again] == [row.id for row in held_out]

    by_kind = replace(config, held_out_by="kind")
    trained, held_out = split_rows(labelled_rows(both), images, by_kind)
    assert len({row.cells["kind"] for row in held_out}) == 1
    assert not {row.cells["kind"] for row in trained} & {row.cells["kind"] for row in held_out}


def test_what_is_held_out_is_checked_before_anything_is_loaded(full: GeneratorConfig) -> None:
    with pytest.raises(ConfigError, match="say how many rows in `held_out`"):
        train_generator(replace(full, held_out_by="kind"))
    with pytest.raises(ConfigError, match=r"no column 'kin'\. Did you mean 'kind'"):
        train_generator(replace(full, held_out=9, held_out_by="kin"))
    assert not full.out.exists()
    with pytest.raises(InputError, match="held_out is 40, and 40 rows can be used"):
        train_generator(replace(full, held_out=40))


def test_the_checkpoint_that_is_best_at_held_out_rows_is_the_result(full: GeneratorConfig) -> None:
    """A learning rate that ruins the model soon: an early checkpoint is better than the last."""
    config = replace(full, lora_rank=2, held_out=10, steps=8, save_every=2, learning_rate=0.3)
    trainer = build_trainer(
        config, config.out / "checkpoints", Run(config.out, config, seed=config.seed)
    )
    trainer.train()
    losses = {r["step"]: r["eval_loss"] for r in metrics_of(config) if "eval_loss" in r}
    best = min(losses.values())
    assert losses[8] > best + 0.001
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, abs=1e-4)
    (chosen,) = [report["best_step"] for report in metrics_of(config) if "best_step" in report]
    assert losses[chosen] == best


@pytest.mark.parametrize(
    ("rank", "losses", "best"),
    [(rank, losses, best) for rank in (2, 0) for losses, best in (("4323", 2), ("2324", 0))],
)
def test_the_base_is_a_candidate_like_any_checkpoint(
    full: GeneratorConfig,
    rank: int,
    losses: str,
    best: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of equals the first is kept: the base."""
    config = replace(full, lora_rank=rank, held_out=10, steps=3, save_every=1)
    run = Run(config.out, config, seed=config.seed)
    trainer = build_trainer(config, config.out / "checkpoints", run)
    remaining, seen = iter(losses), []

    def judged(model: Any, rows: Sequence[Row]) -> Score:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return Score(len(rows), 0, len(rows) * float(next(remaining)))

    trainer._score = judged
    trainer.train()
    assert trainer.model is not None
    result = trainer.model.state_dict()
    learnt = [name for name in result if not rank or ".lora_B." in name]
    assert all(torch.equal(result[name], seen[best][name]) for name in learnt)
    assert any(not torch.equal(result[name], seen[3][name]) for name in learnt)
    assert metrics_of(config)[-1] == {"best_step": best}
    assert ("The result is the base as it was" in caplog.text) == (not best)


@pytest.mark.parametrize("rank", [2, 0])
def test_a_run_that_is_killed_goes_on_to_the_same_result(full: GeneratorConfig, rank: int) -> None:
    config = replace(full, lora_rank=rank, steps=60, save_every=4)
    whole = train_generator(replace(config, out=full.out / "whole"))
    file = write(config, full.out / "killed.yaml")
    command = [sys.executable, "-m", "mmrag_batch", "train", "generator", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = monotonic() + 120
    while not list((config.out / "checkpoints").glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        assert monotonic() < deadline
        sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    with pytest.raises(
        ConfigError, match=r"other settings or inputs \(learning_rate: 0\.001 -> 0\.002\)"
    ):
        train_generator(replace(config, learning_rate=2e-3))
    moved = config.base.rename(config.base.with_name("moved"))
    shutil.copytree(moved, config.base)
    (config.base / "config.json").write_text((moved / "config.json").read_text() + "\n")
    with pytest.raises(ConfigError, match=r"inputs \(\S+config\.json: changed\)"):
        train_generator(config)  # L5: of its base
    shutil.rmtree(config.base)
    moved.rename(config.base)
    torn = config.out / "checkpoints" / "checkpoint-59"
    torn.mkdir()
    (torn / ADAPTER).write_bytes(b"half")
    resumed = train_generator(config)
    [weights] = resumed.glob("*.safetensors")
    assert weights.read_bytes() == (whole / weights.name).read_bytes()
    steps = [report["step"] for report in metrics_of(config) if "loss" in report]
    assert steps[-1] == 60
    assert len(steps) >= 18


def test_two_processes_share_a_step_and_the_rows_that_are_scored(full: GeneratorConfig) -> None:
    config = replace(full, lora_rank=2, steps=4, held_out=9, save_every=2)
    full.out.mkdir()
    file = write(config, full.out / "two.yaml")
    command = [sys.executable, "-W", "error::UserWarning", "-m", "torch.distributed.run"]
    command += ["--nproc-per-node", "2", "-m", "mmrag_batch", "train", "generator", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *reports = metrics_of(config)
    assert first["processes"] == 2
    shared = {report["step"]: report for report in reports if "eval_loss" in report}
    assert list(shared) == [0, 2, 4]
    assert {score["eval_rows"] for score in shared.values()} == {9}

    alone = replace(config, out=full.out / "alone")
    train_generator(alone)
    (before,) = [r for r in metrics_of(alone) if "eval_loss" in r and not r["step"]]
    assert shared[0] == before
    assert load_file(config.out / "adapter" / ADAPTER)


def test_evidence_is_what_the_retriever_finds(
    full: GeneratorConfig, tiny_retriever_dir: Path, steps: dict[str, tuple[int, int | None]]
) -> None:
    rows, images = labelled_rows(full.table), ImageLoader(full.table.parent)
    config = replace(full, retriever=tiny_retriever_dir, top_k=3)
    found = with_evidence(rows, images, config)
    assert len(found) == len(rows)
    assert steps["Finding evidence"] == (40, 40)
    assert max(len(row.evidence) for row in found) == 3
    for row in found:
        scores = [item.score for item in row.evidence]
        assert scores == sorted(scores, reverse=True)
    assert any(item.score != 0 for row in found for item in row.evidence)


def test_without_a_retriever_the_relevant_documents_are_the_evidence(full: GeneratorConfig) -> None:
    rows, images = labelled_rows(full.table), ImageLoader(full.table.parent)
    for row in with_evidence(rows, images, full):
        assert row.question is not None
        if row.question.relevant:
            assert {item.document.id for item in row.evidence} == row.question.relevant
