"""A generator of the 11B's shape with random weights, and a table whose prompts fill its limits.

    python -m benchmarks.gpu.world DIR [--device cuda] [--small]

writes `DIR/generator` (21.3 GB, for instance in /dev/shm), `DIR/questions.csv` and its images.
"""

import csv
import json
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from tokenizers import Tokenizer

from mmrag_batch.bundle import Bundle, BundleManifest, GeneratorSpec, open_bundle
from mmrag_batch.settings import DEMO_BUNDLE

ROWS = 96
WORDS = "the red crane lifts ten tons beside a blue gate near old harbour walls".split()
TILE = 560


def write_generator(directory: Path, *, device: str, small: bool) -> None:
    """Transformers' defaults are the published model's, but for the size of a tile."""
    import torch
    from transformers import GenerationConfig, MllamaConfig
    from transformers.models.mllama.configuration_mllama import MllamaVisionConfig

    from mmrag_batch.train.mllama import GeneratorSizes, build_generator, initial_model

    sizes = GeneratorSizes(image_size=TILE, patch_size=14, context_length=131_072)
    build_generator(directory, [" ".join(WORDS)], sizes=sizes)
    if small:
        return
    file = directory / "tokenizer.json"
    tokenizer = widened(Tokenizer.from_file(str(file)), 128_257)
    tokenizer.save(str(file))
    vision = MllamaVisionConfig(image_size=TILE)
    config = MllamaConfig(vision_config=vision, dtype=torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = initial_model(config, gate=0.5, seed=0)
    torch.set_default_dtype(torch.float32)
    ids = {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in SPECIAL.items()}
    model.generation_config = GenerationConfig(**ids)  # type: ignore[no-untyped-call]
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="5GB")


SPECIAL = {
    "bos": "<|begin_of_text|>",
    "eos": "<|eot_id|>",
    "pad": "<|finetune_right_pad_id|>",
}


def widened(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """The same with tokens that no text has, before the special ones."""
    values = json.loads(tokenizer.to_str())
    vocabulary, special = values["model"]["vocab"], values["added_tokens"]
    unused = range(len(vocabulary), size - len(special))
    vocabulary |= {f"<unused {number}>": number for number in unused}
    for number, token in enumerate(special, start=size - len(special)):
        token["id"] = number
    return Tokenizer.from_str(json.dumps(values))


def picture(random: np.random.Generator, tiles: int) -> Image.Image:
    """Blurred noise of one or four tiles."""
    side = TILE if tiles == 1 else 2 * TILE
    noise = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side))


def write_table(directory: Path, rows: int = ROWS) -> Path:
    """Two pictures of four tiles a row, and texts of about 1,500 tokens."""
    (directory / "images").mkdir(parents=True, exist_ok=True)
    random, noise = Random(0), np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(random.choices(WORDS, k=count))

    table = directory / "questions.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        names = "question_text question_image answer_choices documents label relevant"
        writer.writerow(names.split())
        for row in range(rows):
            for kind in "qd":
                picture(noise, 4).save(directory / f"images/{row}{kind}.jpg")
            texts = [{"id": str(number), "text": words(300)} for number in range(4)]
            documents = [{"id": "p", "image": f"images/{row}d.jpg", "text": words(20)}, *texts]
            choices = random.sample(WORDS, 4)
            writer.writerow(
                [
                    f"{words(12)}?",
                    f"images/{row}q.jpg",
                    json.dumps(choices),
                    json.dumps(documents),
                    random.choice(choices),
                    json.dumps(["p"]),
                ]
            )
    return table


def bundle(directory: Path, max_images: int, max_prompt_tokens: int) -> Bundle:
    """A bundle of this generator as `open_bundle` would give it, without hashing 21 GB."""
    demo = open_bundle(DEMO_BUNDLE).manifest
    spec = GeneratorSpec("none", "letter", 4, max_images, max_prompt_tokens)
    manifest = BundleManifest(demo.retriever, spec, {}, {}, "nothing")
    return Bundle(directory, manifest)


def main(
    directory: Path,
    device: Annotated[str, typer.Option(help="Where the weights are made.")] = "cuda",
    small: Annotated[bool, typer.Option(help="The demo's size, to try the scripts.")] = False,
) -> None:
    """Write generator and table."""
    write_table(directory)
    write_generator(directory / "generator", device=device, small=small)


if __name__ == "__main__":
    typer.run(main)
