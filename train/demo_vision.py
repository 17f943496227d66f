"""Teach the vision tower of a small untrained generator to see the things of the demo world.

    mmrag-batch demo vision train/configs/demo_vision.yaml

Llama 3.2's vision tower was trained on images before it was joined to the language model; so is
this one, to name the colour and the shape of what a picture shows. Writes `model/`, the generator
with its new tower, and the files of `run.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from mmrag_batch.families.mllama.inputs import load_image_processor
from mmrag_batch.families.mllama.loading import load_model
from mmrag_batch.train.demo_pictures import COLOURS, SHAPES, draw
from mmrag_batch.train.demo_world import THINGS
from mmrag_batch.train.looking import Inputs
from mmrag_batch.train.optimise import optimise
from mmrag_batch.train.run import Run
from mmrag_batch.train.settings import DemoVisionConfig
from mmrag_batch.train.tuning import save_model
from mmrag_batch.train.vision import mean_of_patches, process


class Recogniser(nn.Module):
    """The vision tower and, on the mean of its patches, a linear head for what is shown."""

    def __init__(self, generator: MllamaForConditionalGeneration) -> None:
        super().__init__()
        self.tower = generator.model.vision_model
        size = generator.model.multi_modal_projector.in_features
        self.head = nn.Linear(size, len(COLOURS) + len(SHAPES))

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Inputs of B images -> logits of their colour (B, 8) and of their shape (B, 6)."""
        mean = mean_of_patches(self.tower, inputs)
        colours, shapes = self.head(mean).split([len(COLOURS), len(SHAPES)], dim=1)
        return colours, shapes


class Pictures:
    """Pictures of the demo world with what they show, as the vision tower reads them."""

    def __init__(self, processor: MllamaImageProcessorPil, count: int, seed: int) -> None:
        rng = Random(seed)
        things = [THINGS[index % len(THINGS)] for index in range(count)]
        pictures = [
            draw(rng, thing.colour, thing.shape)
            for thing in tqdm(things, desc="drawing", disable=None)
        ]
        colours = tuple(COLOURS)
        self._inputs = process(processor, pictures)
        self._targets = torch.tensor(
            [(colours.index(thing.colour), SHAPES.index(thing.shape)) for thing in things]
        )

    def __len__(self) -> int:
        return len(self._targets)

    def batches(self, size: int) -> Iterator[tuple[Inputs, Tensor]]:
        """Inputs and (B, 2) indices of colour and shape, without end; each round in a new order."""
        while True:
            order = torch.randperm(len(self))
            for indices in order.split(size):  # type: ignore[no-untyped-call]
                inputs = {name: tensor[indices] for name, tensor in self._inputs.items()}
                yield inputs, self._targets[indices]


def train_vision(config: DemoVisionConfig) -> Path:
    """Train as configured; returns the folder of the generator."""
    run = Run(config.out, config, seed=config.seed, report_to=config.report_to)
    processor = load_image_processor(config.base)
    generator = load_model(config.base, dtype=torch.float32)
    recogniser = Recogniser(generator).train()
    pictures = Pictures(processor, config.pictures, config.seed)
    batches = pictures.batches(config.batch_size)

    def losses() -> dict[str, Tensor]:
        inputs, targets = next(batches)
        colours, shapes = recogniser(inputs)
        return {
            "colour_loss": nn.functional.cross_entropy(colours, targets[:, 0]),
            "shape_loss": nn.functional.cross_entropy(shapes, targets[:, 1]),
        }

    optimise(
        recogniser.parameters(),
        losses,
        steps=config.steps,
        learning_rate=config.learning_rate,
        report=run.report,
    )
    run.report(**accuracy(recogniser.eval(), Pictures(processor, 960, seed=-1)))
    out = save_model(generator, config.base, config.out / "model")
    run.close()
    return out


@torch.inference_mode()
def accuracy(recogniser: Recogniser, pictures: Pictures) -> dict[str, float]:
    """The share of pictures whose colour, and whose shape, is named rightly."""
    inputs, targets = next(pictures.batches(len(pictures)))
    predictions = torch.stack([logits.argmax(dim=1) for logits in recogniser(inputs)], dim=1)
    colours, shapes = (predictions == targets).float().mean(dim=0).tolist()
    return {"colour_accuracy": colours, "shape_accuracy": shapes}
