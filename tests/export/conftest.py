"""What the tests of export share: a base in several shards, ImageBind's published code."""

import importlib
import importlib.util
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn


@pytest.fixture(scope="session")
def sharded_base(tiny_generator_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny generator in bfloat16, in six shards or so."""
    import torch

    from mmrag_batch.families.mllama.loading import load_model

    directory = tmp_path_factory.mktemp("sharded") / "base"
    shutil.copytree(tiny_generator_dir, directory)
    (directory / "model.safetensors").unlink()
    model = load_model(tiny_generator_dir, dtype=torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="50KB")
    (directory / "LICENSE.txt").write_text("A licence.\n")
    (directory / "README.md").write_text("---\nlicense: llama3.2\n---\n# A base\n")
    return directory


UNUSED: dict[str, dict[str, Any]] = {
    "iopath.common.file_io": {"g_pathmgr": SimpleNamespace(open=open)},
    "timm.layers": {"DropPath": nn.Identity, "trunc_normal_": nn.init.trunc_normal_},
}
"""What the published code imports beside its data loading, with all that we call of it."""


def import_published() -> ModuleType:
    """The published package's `imagebind_model` and `multimodal_preprocessors`, as they are.

    `imagebind/__init__.py` is passed over: it imports the loading of videos and sounds.
    """
    stubs: dict[str, ModuleType] = {}
    for name, content in UNUSED.items():
        for parent in ("timm", "iopath", "iopath.common", name):
            stubs.setdefault(parent, ModuleType(parent))
        vars(stubs[name]).update(content)
    spec = importlib.util.find_spec("imagebind")
    assert spec is not None
    package = importlib.util.module_from_spec(spec)
    absent = {name: stub for name, stub in stubs.items() if name not in sys.modules}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.modules.update(absent, imagebind=package)
        try:
            return importlib.import_module("imagebind.models.imagebind_model")
        finally:  # others must not take a stub for the package
            for name in absent:
                del sys.modules[name]


@pytest.fixture(scope="session")
def published() -> ModuleType:
    """The published package's own model code."""
    return import_published()
