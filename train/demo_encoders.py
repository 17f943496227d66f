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
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from tqdm import trange

from mmrag_batch.retrieval.preprocess import preprocess_image, tokenize
from mmrag_batch.train.demo_pairs import Pair, captioned, paraphrased, sentences
from mmrag_batch.train.demo_pictures import draw
from mmrag_batch.train.demo_world import THINGS
from mmrag_batch.train.imagebind import ImageBind, ImageBindConfig, save_encoders
from mmrag_batch.train.losses import contrastive_loss
from mmrag_batch.train.run import Run
from mmrag_batch.train.settings import EncodersConfig

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(texts: Sequence[str], context_length: int) -> Tokenizer:
    """A lower-cased BPE; like CLIP's, its start and end tokens have the two highest ids."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=alphabet, special_tokens=["<pad>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([START, END])
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{START} $A {END}", None, ends)
    tokenizer.enable_truncation(context_length)
    return tokenizer


class Pairs:
    """Batches of pairs as tensors. Pictures are drawn and preprocessed once."""

    def __init__(
        self, model: ImageBindConfig, tokenizer: Tokenizer, config: EncodersConfig
    ) -> None:
        self._random = Random(config.seed)
        self._tokenizer = tokenizer
        self._model = model
        self._picture_batch, self._text_batch = config.picture_batch, config.text_batch
        self._captioned = [
            self._draw_pair(captioned(self._random))
            for _ in trange(config.pictures, desc="drawing", disable=None)
        ]

    def _draw_pair(self, pair: Pair) -> tuple[Tensor, Pair]:
        assert isinstance(pair.left, Image)
        return self.pixels(pair.left), pair

    def pixels(self, image: Image) -> Tensor:
        """(3, S, S), as `predict` prepares it."""
        model = self._model
        pixels = preprocess_image(image, model.image_size, model.image_mean, model.image_std)
        return torch.from_numpy(pixels)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(B, L) int64, zero-padded to the longest."""
        return torch.from_numpy(tokenize(self._tokenizer, texts))

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Pixels, their captions and which mean the same; then texts, paraphrases and the same."""
        pictures = self._random.sample(self._captioned, self._picture_batch)
        texts = [paraphrased(self._random) for _ in range(self._text_batch)]
        lefts = [pair.left for pair in texts if isinstance(pair.left, str)]
        return (
            torch.stack([pixels for pixels, _ in pictures]),
            self.tokens([pair.right for _, pair in pictures]),
            _same_key_mask([pair for _, pair in pictures]),
            self.tokens(lefts),
            self.tokens([pair.right for pair in texts]),
            _same_key_mask(texts),
        )


def _same_key_mask(pairs: Sequence[Pair]) -> Tensor:
    """(B, B) bool: which pairs have the same key."""
    numbers = {key: number for number, key in enumerate({pair.key for pair in pairs})}
    keys = np.array([numbers[pair.key] for pair in pairs])
    return torch.from_numpy(keys[:, None] == keys[None, :])


def train_encoders(config: EncodersConfig) -> Path:
    """Train as configured; returns the folder of the encoders and their tokenizer."""
    run = Run(config.out, config, seed=config.seed)
    tokenizer = train_tokenizer(sentences(Random(config.seed), 8000), config.context_length)
    model = ImageBind(encoders(config, tokenizer.get_vocab_size()))
    pairs = Pairs(model.config, tokenizer, config)
    run.report(parameters=sum(p.numel() for p in model.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps, pct_start=0.05
    )
    for step in range(1, config.steps + 1):
        pixels, captions, same_thing, texts, paraphrases, same_text = pairs.batch()
        scale = model.logit_scale()
        by_picture = contrastive_loss(
            model.encode_image(pixels), model.encode_text(captions), scale, same_thing
        )
        by_text = contrastive_loss(
            model.encode_text(texts), model.encode_text(paraphrases), scale, same_text
        )
        optimizer.zero_grad()
        (by_picture + by_text).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == config.steps:
            run.report(step=step, picture_loss=by_picture.item(), text_loss=by_text.item())
    run.report(zero_shot_accuracy=zero_shot_accuracy(model.eval(), pairs))
    out = config.out / "model"
    save_encoders(model, out)
    tokenizer.save(str(out / "tokenizer.json"))
    return out


def encoders(config: EncodersConfig, vocabulary: int) -> ImageBindConfig:
    """Both encoders equally wide; pictures take more layers than these short texts."""
    return ImageBindConfig(
        name="imagebind-demo",
        licence="Apache-2.0",
        image_size=config.image_size,
        patch_size=config.patch_size,
        image_width=config.width,
        image_blocks=config.image_blocks,
        image_heads=config.heads,
        text_width=config.width,
        text_blocks=config.text_blocks,
        text_heads=config.heads,
        context_length=config.context_length,
        vocabulary=vocabulary,
        embedding_size=config.embedding_size,
    )


@torch.inference_mode()
def zero_shot_accuracy(model: ImageBind, pairs: Pairs, pictures: int = 960) -> float:
    """How often a new picture is nearest to the caption of what it shows, of 48 captions."""
    random = Random(-1)
    captions = model.encode_text(pairs.tokens([f"a {t.colour} {t.shape}" for t in THINGS]))
    things = [THINGS[index % len(THINGS)] for index in range(pictures)]
    pixels = torch.stack([pairs.pixels(draw(random, t.colour, t.shape)) for t in things])
    nearest = (model.encode_image(pixels) @ captions.T).argmax(dim=1).tolist()
    correct = sum(bool(THINGS[index] == thing) for index, thing in zip(nearest, things))
    return correct / pictures
