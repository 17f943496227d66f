import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from export.bundle import write_bundle
from mmrag_batch.bundle import RETRIEVER_SPEC, GeneratorSpec, open_bundle
from mmrag_batch.errors import ConfigError, OutputError
from train.imagebind import ImageBind, ImageBindConfig, save_encoders
from train.towers import Towers, TowersConfig, save_towers

SPEC = GeneratorSpec(
    licence="Apache-2.0", scoring="letter", top_k=3, max_images=2, max_prompt_tokens=256
)


@pytest.fixture(scope="module")
def encoders_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoders")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        initial_alphabet=alphabet, special_tokens=["<pad>"], show_progress=False
    )
    tokenizer.train_from_iterator(["a red cube"], trainer)
    tokenizer.add_special_tokens(["<start>", "<end>"])
    ends = [(token, tokenizer.get_vocab()[token]) for token in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing("<start> $A <end>", None, ends)
    tokenizer.enable_truncation(16)
    sizes = ImageBindConfig(
        image_size=16,
        patch_size=8,
        image_width=16,
        image_blocks=1,
        image_heads=2,
        text_width=16,
        text_blocks=1,
        text_heads=2,
        context_length=16,
        vocabulary=tokenizer.get_vocab_size(),
        embedding_size=8,
    )
    torch.manual_seed(0)
    save_encoders(ImageBind(sizes), directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def towers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("towers")
    save_towers(Towers(TowersConfig(embedding_size=8, hidden_size=16)), directory)
    return directory


@pytest.fixture
def write(
    encoders_dir: Path,
    towers_dir: Path,
    tiny_generator_dir: Path,
    make_adapter: Callable[[float], Path],
) -> Callable[..., Any]:
    """Writes a bundle of tiny parts; the adapter holds noise of the given size."""

    def write(out: Path, *, noise: float = 0.05, overwrite: bool = False) -> None:
        write_bundle(
            encoders_dir,
            towers_dir,
            tiny_generator_dir,
            make_adapter(noise),
            out,
            generator=SPEC,
            trained_on="nothing",
            notice="Knows nothing.",
            overwrite=overwrite,
        )

    return write


def test_a_written_bundle_opens(write: Callable[..., None], tmp_path: Path) -> None:
    out = tmp_path / "bundles" / "tiny"
    write(out)
    manifest = open_bundle(out).manifest
    assert manifest.generator == SPEC
    assert manifest.retriever.embedding_size == 8
    assert manifest.notice == "Knows nothing."
    assert {"retriever/question_tower.onnx", "generator/model.safetensors"} <= set(manifest.files)
    assert f"retriever/{RETRIEVER_SPEC}" not in manifest.files
    assert manifest.parity["merged_logits"] <= 1e-4
    assert len(manifest.parity) > 1
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]


def test_an_existing_directory_is_kept(write: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="--overwrite"):
        write(tmp_path)
    with pytest.raises(OutputError, match="no bundle"):
        write(tmp_path, overwrite=True)


def test_an_old_bundle_is_replaced_when_asked(write: Callable[..., None], tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    out.mkdir()
    (out / "bundle.json").write_text("{}")
    write(out, overwrite=True)
    assert json.loads((out / "bundle.json").read_text())["trained_on"] == "nothing"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "tiny"]


def test_a_failed_export_leaves_nothing_behind(write: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="changes nothing"):
        write(tmp_path / "tiny", noise=0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
