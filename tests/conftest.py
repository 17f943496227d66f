"""What the tests share: tiny models of the real architectures, built once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_generator_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Mllama of 0.1 M weights with its tokenizer and processor files."""
    from train.mllama import GeneratorSizes, build_generator

    sizes = GeneratorSizes(
        vocabulary=320,
        hidden_size=32,
        heads=2,
        kv_heads=1,
        intermediate_size=64,
        vision_hidden_size=32,
        vision_layers=2,
        vision_heads=2,
        image_size=32,
        context_length=1024,
    )
    directory = tmp_path_factory.mktemp("generator")
    texts = ["Question: What does the red cube cost? Evidence: The red cube costs 12 coins."]
    build_generator(directory, texts, sizes=sizes)
    return directory


@pytest.fixture
def make_adapter(tiny_generator_dir: Path, tmp_path: Path) -> Callable[[float], Path]:
    """Writes an adapter whose B matrices hold noise of the given size."""

    def make(noise: float) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model

        from mmrag_batch.generation.mllama_model import load_model

        torch.manual_seed(0)
        targets = ["q_proj", "v_proj", "gate_proj", "fc1"]  # self, cross and vision layers
        base = load_model(tiny_generator_dir, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=targets))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=noise)
        model.save_pretrained(str(tmp_path / "adapter"))
        return tmp_path / "adapter"

    return make
