"""The families that are run by their own processors, on small checkpoints of each architecture."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from typer.testing import CliRunner

from mmrag_batch.bundle import read_manifest
from mmrag_batch.cli.app import app
from mmrag_batch.errors import UnavailableError
from mmrag_batch.export.merge import write_generator
from mmrag_batch.families.family import FAMILIES, MLLAMA, check_tested, open_family
from mmrag_batch.families.general.processor import MAX_PIXELS, load_processor
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.parts import DEMO
from mmrag_batch.prompt import EVIDENCE_FIRST
from mmrag_batch.train.retriever import train_retriever
from mmrag_batch.train.settings import RetrieverConfig
from tests.families.test_parity import PROMISED
from tests.families.tiny import FAMILIES as TINY
from tests.families.tiny import UNTESTED, build, write

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # GLM's processor
DOCS = Path(__file__).parents[2] / "docs"
WITHOUT_TORCHVISION = [*sorted(TINY.keys() - {"mistral3"}), *UNTESTED]
SIZES = [(50, 40), (20, 60), (64, 64), (9, 100)]
PICTURES = [Image.effect_noise(size, 90).convert("RGB") for size in SIZES]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = build(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make


def ask(images: int, text: str = "What is shown?") -> list[dict[str, Any]]:
    parts = [{"type": "image"}] * images
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@torch.inference_mode()
def last_logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    logits: torch.Tensor = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
    return logits


def test_every_family_has_a_checkpoint_here_and_a_line_in_the_docs() -> None:
    """And of those that docs/models.md calls tested, both engines are asked."""
    classes = dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    named = {name: str(classes[name]) for name in TINY}
    assert set(named.values()) == FAMILIES.keys() - {MLLAMA}
    rows = [line.split("|") for line in (DOCS / "models.md").read_text().splitlines()]
    lines = {row[2].strip(" `"): row[3] for row in rows if len(row) == 6}
    assert lines.keys() >= FAMILIES.keys()
    tested = {one for one, said in lines.items() if said.strip().startswith("tested")}
    assert tested == {MLLAMA, *(named[name] for name in PROMISED)}


@pytest.mark.parametrize("name", WITHOUT_TORCHVISION)
def test_inputs_are_those_of_the_models_own_processor(
    checkpoint: Callable[[str], Path], name: str
) -> None:
    """Of a prompt with one image; of several, some processors prepare each in another way than
    alone, and vLLM does not."""
    directory = checkpoint(name)
    family, renderer = open_family(directory), Renderer(directory)
    processor, model = load_processor(directory), family.load(dtype=torch.float32)
    for picture in PICTURES:
        ids = renderer.render(ask(1))
        ours = family.collate([ids], [[picture]], pad_id=0)
        text = renderer._template.apply(ask(1))
        theirs = processor(text=[text], images=[[picture]], return_tensors="pt")
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
        assert ours.keys() == theirs.keys()
        assert torch.equal(last_logits(model, ours), last_logits(model, theirs))


@pytest.mark.parametrize("name", WITHOUT_TORCHVISION)
def test_an_answer_does_not_depend_on_the_rows_beside_it(
    checkpoint: Callable[[str], Path], name: str
) -> None:
    directory = checkpoint(name)
    family, renderer = open_family(directory), Renderer(directory)
    model = family.load(dtype=torch.float32)
    rows = [
        (renderer.render(ask(2, "Which of the two is larger, and why?")), PICTURES[:2]),
        (renderer.render(ask(2, "Why?")), PICTURES[2:]),
    ]
    together = family.collate([ids for ids, _ in rows], [images for _, images in rows], pad_id=0)
    alone = [last_logits(model, family.collate([ids], [images], pad_id=0)) for ids, images in rows]
    torch.testing.assert_close(last_logits(model, together), torch.cat(alone), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", sorted(TINY))
def test_no_text_becomes_a_special_token(checkpoint: Callable[[str], Path], name: str) -> None:
    """Whatever of the added tokens stands in a cell, whole, torn or repeated."""
    renderer = Renderer(checkpoint(name))
    added = renderer._tokenizer.get_added_tokens_decoder()
    tokens, random = [token.content for token in added.values()], Random(name)
    for _ in range(500):
        pieces = random.choices([*tokens, "a", " ", "\n", "<", "|>", "é", "\u200b"], k=8)
        text = "".join(piece[: random.randint(1, len(piece))] for piece in pieces)
        text += random.choice(tokens) + random.choice(tokens)
        ids = renderer.encode(text)
        assert not added.keys() & set(ids)
        assert renderer.decode(ids) == text


@pytest.mark.parametrize("name", sorted(TINY))
def test_an_answer_ends_as_the_template_ends_one(
    checkpoint: Callable[[str], Path], name: str
) -> None:
    directory = checkpoint(name)
    renderer = Renderer(directory)
    assert renderer.decode(renderer.answer_ids("B")) == "B"
    assert renderer._tokenizer.id_to_token(renderer.end_id) == TINY[name].eos


def test_an_image_has_no_more_pixels_than_ours_allow(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = build("qwen2_5_vl", tmp_path)
    settings = json.loads((directory / "preprocessor_config.json").read_text())
    write(directory / "preprocessor_config.json", settings | {"max_pixels": 12_845_056})
    family = open_family(directory)
    count = len(family.image_ids((4000, 3000)))
    assert 0.9 < count * (4 * 2) ** 2 / MAX_PIXELS <= 1.01
    arguments = family.vllm_arguments(3)
    assert arguments["mm_processor_kwargs"]["size"]["longest_edge"] == MAX_PIXELS
    small = open_family(checkpoint("qwen2_5_vl")).vllm_arguments(3)
    assert small["mm_processor_kwargs"]["size"]["longest_edge"] == 2**14


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("Gemma3ForConditionalGeneration", "attends causally"),
        ("LlavaForConditionalGeneration", "images first"),
    ],
)
def test_what_is_refused_says_why(tmp_path: Path, architecture: str, why: str) -> None:
    write(tmp_path / "config.json", {"architectures": [architecture]})
    for untested in (False, True):
        with pytest.raises(UnavailableError, match=why):
            check_tested(tmp_path, untested=untested)


def test_what_nobody_has_tested_is_taken_when_it_is_asked_for(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    generator, out = str(checkpoint("idefics2")), tmp_path / "bundle"
    parts = ["export", "--generator", generator, "--out", str(out)]
    done = CliRunner().invoke(app, parts)
    assert done.exit_code == 69
    assert "Idefics2ForConditionalGeneration, which nobody has tested" in done.stderr
    assert "run Mllama, Qwen2_5_VL" in done.stderr
    done = CliRunner().invoke(app, [*parts, "--untested", "--notice", "Ours."])
    assert done.exit_code == 0, done.output
    manifest = read_manifest(out)
    assert re.fullmatch(r"Ours\. Nobody has tested .* compares the engines\.", manifest.notice)
    assert manifest.template_version == EVIDENCE_FIRST


def test_no_other_door_takes_what_nobody_has_tested(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UnavailableError, match="nobody has tested"):
        write_generator(checkpoint("idefics2"), tmp_path / "adapter", tmp_path / "out")
    config = RetrieverConfig(
        table=tmp_path / "in.csv",
        encoders=DEMO,
        out=tmp_path / "run",
        epochs=1,
        batch_size=8,
        learning_rate=1e-3,
        hidden_size=8,
        supervision="likelihood",
        generator=checkpoint("idefics2"),
    )
    with pytest.raises(UnavailableError, match="nobody has tested"):
        train_retriever(config)


def test_what_is_no_model_for_images_and_texts_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(UnavailableError, match="no such one for images and texts"):
        check_tested(tmp_path, untested=True)


def test_code_of_its_own_is_not_run(tmp_path: Path) -> None:
    (name,) = [one for one in FAMILIES if one.startswith("InternVL")]
    write(tmp_path / "config.json", {"architectures": [name], "auto_map": {"AutoModel": "a.b"}})
    with pytest.raises(UnavailableError, match="-hf"):
        open_family(tmp_path)
