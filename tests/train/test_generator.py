import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrag_batch.generation.mllama_inputs import load_image_processor
from mmrag_batch.generation.mllama_model import load_model
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.io.images import ImageLoader
from train.examples import labelled_rows
from train.generator import GeneratorConfig, train_generator, trainable, with_evidence


@pytest.fixture
def full(tiny_generator_dir: Path, demo_table: Path, tmp_path: Path) -> GeneratorConfig:
    return GeneratorConfig(
        base=tiny_generator_dir,
        table=demo_table,
        out=tmp_path,
        steps=2,
        batch_size=2,
        learning_rate=1e-3,
        top_k=1,
        max_images=1,
        scoring="text",
    )


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


def test_a_run_leaves_its_record(full: GeneratorConfig) -> None:
    train_generator(full)
    provenance = json.loads((full.out / "provenance.json").read_text())
    assert list(provenance["inputs"]) == [str(full.table)]
    first = json.loads((full.out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["rows"] == 40
    assert first["trained_parameters"] > 100_000


def test_lora_training_writes_an_adapter_alone(full: GeneratorConfig) -> None:
    out = train_generator(replace(full, lora_rank=2))
    assert out == full.out / "adapter"
    assert not (full.out / "model").exists()
    weights = load_file(out / "adapter_model.safetensors")
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


def test_without_a_rank_everything_is_trained(full: GeneratorConfig) -> None:
    model = trainable(full)
    assert all(p.requires_grad for p in model.parameters())


def test_evidence_is_what_the_retriever_finds(
    full: GeneratorConfig, tiny_retriever_dir: Path
) -> None:
    rows, images = labelled_rows(full.table), ImageLoader(full.table.parent)
    config = replace(full, retriever=tiny_retriever_dir, top_k=3)
    found = with_evidence(rows, images, config)
    assert len(found) == len(rows)
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
