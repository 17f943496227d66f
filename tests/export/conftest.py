"""What the tests of export share: a base whose weights lie in several shards."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sharded_base(tiny_generator_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny generator in bfloat16, in six shards or so."""
    import torch

    from mmrag_batch.generation.mllama_model import load_model

    directory = tmp_path_factory.mktemp("sharded") / "base"
    shutil.copytree(tiny_generator_dir, directory)
    (directory / "model.safetensors").unlink()
    model = load_model(tiny_generator_dir, dtype=torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="50KB")
    (directory / "LICENSE.txt").write_text("A licence.\n")
    (directory / "README.md").write_text("---\nlicense: llama3.2\n---\n# A base\n")
    return directory
