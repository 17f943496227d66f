"""Train small image and text encoders of ImageBind's architecture on a table of your own.

    mmrag-batch train encoders train/configs/small_encoders.yaml --table my-data/train.csv

They take the place of ImageBind's own: same layers, same preprocessing, same tensor names, at the
size that the config says. They learn which texts are true of a picture and which document a
question means; see table_pairs.py. Writes `model/` and the files of `run.py`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
from PIL.Image import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from mmrag_batch.errors import InputError
from mmrag_batch.retrieval.preprocess import preprocess_image, tokenize
from mmrag_batch.table.names import parse_names
from mmrag_batch.train.imagebind import ImageBind, ImageBindConfig, save_encoders
from mmrag_batch.train.inputs import hash_table
from mmrag_batch.train.losses import contrastive_loss
from mmrag_batch.train.optimise import optimise
from mmrag_batch.train.run import Run
from mmrag_batch.train.settings import EncodersConfig, EncoderSizes
from mmrag_batch.train.table_pairs import (
    Sampler,
    Truths,
    hold_out,
    load_pictures,
    picture_truths,
    text_truths,
)

START, END = "<|startoftext|>", "<|endoftext|>"
LICENCE = "that of the table"
SCORED = 256
"""Most held-out pictures that accuracy is measured on."""


def train_encoders(config: EncodersConfig) -> Path:
    """Train as configured; returns the folder of the encoders and their tokenizer.

    Raises InputError for a table without a picture of which something is known.
    """
    names = parse_names(config.columns)
    run = Run(
        config.out,
        config,
        seed=config.seed,
        inputs=hash_table(config.table, names),
        report_to=config.report_to,
    )
    kinds, texts = picture_truths(config.table, names), text_truths(config.table, names)
    known = (*kinds.values(), texts)
    words = [text for truths in known for left in truths for text in truths[left]]
    tokenizer = train_tokenizer([*words, *texts], config.context_length, config.vocabulary)
    sizes = encoder_config(config, tokenizer, name=config.name, licence=LICENCE)
    model, random = ImageBind(sizes), Random(config.seed)
    feed = Feed(sizes, tokenizer)
    pixels = {  # in half the bytes
        source: feed.pixels(image).half()
        for source, image in load_pictures(config.table, sorted(set().union(*kinds.values())))
    }
    held_out = hold_out(pixels, config.held_out, config.seed)
    pictures = sorted(pixels.keys() - held_out)
    if len(pictures) < 2:
        raise InputError(
            f"{config.table}: of no two pictures is anything known. A question needs a picture and "
            "a `label`, or a document a picture with a text."
        )
    run.report(
        parameters=sum(p.numel() for p in model.parameters()),
        pictures=len(pictures),
        held_out=len(held_out),
        questions=len(texts),
    )
    samplers = {kind: Sampler(truths, random) for kind, truths in kinds.items()}
    paired = Sampler(texts, random)

    def loss(sampler: Sampler, lefts: Sequence[str], vectors: Tensor) -> Tensor:
        rights, same = sampler.draw(lefts)
        return contrastive_loss(vectors, read(rights), model.logit_scale(), torch.tensor(same))

    def losses() -> dict[str, Tensor]:
        found = {}
        sources = random.sample(pictures, min(config.picture_batch, len(pictures)))
        seen = see(sources)
        for kind, truths in kinds.items():
            at = [index for index, source in enumerate(sources) if source in truths]
            if len(at) > 1:
                its = [sources[index] for index in at]
                found[f"{kind}_loss"] = loss(samplers[kind], its, seen[at])
        if len(texts) > 1:
            questions = random.sample(list(texts), min(config.text_batch, len(texts)))
            found["text_loss"] = loss(paired, questions, read(questions))
        return found

    def see(sources: Sequence[str]) -> Tensor:
        return model.encode_image(torch.stack([pixels[source] for source in sources]).float())

    def read(texts: Sequence[str]) -> Tensor:
        return model.encode_text(feed.tokens(texts))

    rate = config.learning_rate
    optimise(model.parameters(), losses, steps=config.steps, learning_rate=rate, report=run.report)
    if held_out:
        model.eval()
        run.report(picture_accuracy=accuracy(see, read, sorted(held_out)[:SCORED], known))
    out = save(model, tokenizer, config.out / "model")
    run.close()
    return out


def train_tokenizer(texts: Sequence[str], context_length: int, vocabulary: int = 800) -> Tokenizer:
    """A lower-cased BPE; like CLIP's, its start and end tokens have the two highest ids."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=alphabet,
        special_tokens=["<pad>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([START, END])
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{START} $A {END}", None, ends)
    tokenizer.enable_truncation(context_length)
    return tokenizer


def encoder_config(
    sizes: EncoderSizes, tokenizer: Tokenizer, *, name: str, licence: str
) -> ImageBindConfig:
    """Both encoders equally wide; pictures take more layers than short texts."""
    return ImageBindConfig(
        name=name,
        licence=licence,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        image_width=sizes.width,
        image_blocks=sizes.image_blocks,
        image_heads=sizes.heads,
        text_width=sizes.width,
        text_blocks=sizes.text_blocks,
        text_heads=sizes.heads,
        context_length=sizes.context_length,
        vocabulary=tokenizer.get_vocab_size(),
        embedding_size=sizes.embedding_size,
    )


class Feed:
    """Pictures and texts as the encoders read them, prepared as `predict` does."""

    def __init__(self, model: ImageBindConfig, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer

    def pixels(self, image: Image) -> Tensor:
        """(3, S, S)."""
        model = self._model
        pixels = preprocess_image(image, model.image_size, model.image_mean, model.image_std)
        return torch.from_numpy(pixels)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(B, L) int64, zero-padded to the longest."""
        return torch.from_numpy(tokenize(self._tokenizer, texts))


@torch.inference_mode()
def accuracy(
    see: Callable[[Sequence[str]], Tensor],
    read: Callable[[Sequence[str]], Tensor],
    sources: Sequence[str],
    kinds: Sequence[Truths],
) -> float:
    """How often what is nearest to a picture, of all texts known of these, is true of it."""
    known = [{text for truths in kinds for text in truths.get(one, ())} for one in sources]
    texts = sorted(set().union(*known))
    nearest = (see(sources) @ read(texts).T).argmax(dim=1).tolist()
    return sum(texts[index] in one for index, one in zip(nearest, known)) / len(sources)


def save(model: ImageBind, tokenizer: Tokenizer, out: Path) -> Path:
    """Write the encoders with their tokenizer."""
    save_encoders(model, out)
    tokenizer.save(str(out / "tokenizer.json"))
    return out
