"""Train small image and text encoders of ImageBind's architecture on the demo world.

    mmrag-batch demo encoders train/configs/demo_encoders.yaml

They take the place of ImageBind's own in the demo bundle: same layers, same preprocessing, same
tensor names, a thousandth of the size. Writes `model/` and the files of `run.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import trange

from mmrag_batch.train.demo_pairs import Pair, captioned, paraphrased, sentences
from mmrag_batch.train.demo_pictures import draw
from mmrag_batch.train.demo_world import THINGS
from mmrag_batch.train.encoders import Feed, encoder_config, save, train_tokenizer
from mmrag_batch.train.imagebind import ImageBind
from mmrag_batch.train.losses import contrastive_loss
from mmrag_batch.train.optimise import optimise
from mmrag_batch.train.run import Run
from mmrag_batch.train.settings import DemoEncodersConfig

NAME = "imagebind-demo"


class Pairs:
    """Batches of pairs as tensors. Pictures are drawn and preprocessed once."""

    def __init__(self, feed: Feed, config: DemoEncodersConfig) -> None:
        self._random = Random(config.seed)
        self._feed = feed
        self._picture_batch, self._text_batch = config.picture_batch, config.text_batch
        self._captioned = [
            self._draw_pair(captioned(self._random))
            for _ in trange(config.pictures, desc="drawing", disable=None)
        ]

    def _draw_pair(self, pair: Pair) -> tuple[Tensor, Pair]:
        assert isinstance(pair.left, Image)
        return self._feed.pixels(pair.left), pair

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Pixels, their captions and which mean the same; then texts, paraphrases and the same."""
        pictures = self._random.sample(self._captioned, self._picture_batch)
        texts = [paraphrased(self._random) for _ in range(self._text_batch)]
        lefts = [pair.left for pair in texts if isinstance(pair.left, str)]
        return (
            torch.stack([pixels for pixels, _ in pictures]),
            self._feed.tokens([pair.right for _, pair in pictures]),
            _same_key_mask([pair for _, pair in pictures]),
            self._feed.tokens(lefts),
            self._feed.tokens([pair.right for pair in texts]),
            _same_key_mask(texts),
        )


def _same_key_mask(pairs: Sequence[Pair]) -> Tensor:
    """(B, B) bool: which pairs have the same key."""
    numbers = {key: number for number, key in enumerate({pair.key for pair in pairs})}
    keys = np.array([numbers[pair.key] for pair in pairs])
    return torch.from_numpy(keys[:, None] == keys[None, :])


def train_encoders(config: DemoEncodersConfig) -> Path:
    """Train as configured; returns the folder of the encoders and their tokenizer."""
    run = Run(config.out, config, seed=config.seed, report_to=config.report_to)
    tokenizer = train_tokenizer(sentences(Random(config.seed), 8000), config.context_length)
    model = ImageBind(encoder_config(config, tokenizer, name=NAME, licence="Apache-2.0"))
    feed = Feed(model.config, tokenizer)
    pairs = Pairs(feed, config)
    run.report(parameters=sum(p.numel() for p in model.parameters()))

    def losses() -> dict[str, Tensor]:
        pixels, captions, same_thing, texts, paraphrases, same_text = pairs.batch()
        scale = model.logit_scale()
        seen, named = model.encode_image(pixels), model.encode_text(captions)
        left, right = model.encode_text(texts), model.encode_text(paraphrases)
        return {
            "picture_loss": contrastive_loss(seen, named, scale, same_thing),
            "text_loss": contrastive_loss(left, right, scale, same_text),
        }

    rate = config.learning_rate
    optimise(model.parameters(), losses, steps=config.steps, learning_rate=rate, report=run.report)
    run.report(zero_shot_accuracy=zero_shot_accuracy(model.eval(), feed))
    out = save(model, tokenizer, config.out / "model")
    run.close()
    return out


@torch.inference_mode()
def zero_shot_accuracy(model: ImageBind, feed: Feed, pictures: int = 960) -> float:
    """How often a new picture is nearest to the caption of what it shows, of 48 captions."""
    random = Random(-1)
    captions = model.encode_text(feed.tokens([f"a {t.colour} {t.shape}" for t in THINGS]))
    things = [THINGS[index % len(THINGS)] for index in range(pictures)]
    pixels = torch.stack([feed.pixels(draw(random, t.colour, t.shape)) for t in things])
    nearest = (model.encode_image(pixels) @ captions.T).argmax(dim=1).tolist()
    correct = sum(bool(THINGS[index] == thing) for index, thing in zip(nearest, things))
    return correct / pictures
