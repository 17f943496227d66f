"""Teach a small generator to see what a table asks about.

    mmrag-batch train vision train/configs/small_vision.yaml --table my-data/train.csv

Llama 3.2's vision tower was trained on images before it was joined to the language model. So is
this one: from its patches and the words of a question, a head that is thrown away afterwards has to
give the right answer. Then the language model may learn to do so (`looking.py`). Without a `base`,
a new generator is made first, of the sizes that the config says, with a tokenizer for the table's
prompts. Writes `model/`, the generator with what it has learnt, and the files of `run.py`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random

import torch
from PIL.Image import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from mmrag_batch.errors import ConfigError, InputError
from mmrag_batch.families.mllama.inputs import load_image_processor
from mmrag_batch.families.mllama.loading import load_model
from mmrag_batch.parts import find_part, hash_model
from mmrag_batch.progress import Progress
from mmrag_batch.table.names import AS_THEY_ARE, Names, parse_names
from mmrag_batch.table.truth import read_labelled_rows, right_answer
from mmrag_batch.train.inputs import hash_table, inside
from mmrag_batch.train.looking import Inputs, Looking, Pair
from mmrag_batch.train.mllama import (
    EOS,
    GeneratorSizes,
    build_generator,
    prompt_texts,
    token_id,
)
from mmrag_batch.train.optimise import optimise
from mmrag_batch.train.run import Run
from mmrag_batch.train.settings import VisionConfig
from mmrag_batch.train.table_pairs import Truths, asked_picture, hold_out, load_pictures
from mmrag_batch.train.tuning import save_model

LEAST_ROWS = 2
"""How often something must be the answer to be one of those that are learnt."""
QUESTIONS = 16
"""Most questions on a picture, a step: the picture is looked at once for all of them."""
SIZES = frozenset(GeneratorSizes.__dataclass_fields__)


class Recogniser(nn.Module):
    """The vision tower and, on the mean of its patches and of a question's words, a head that
    chooses among all answers."""

    def __init__(
        self, generator: MllamaForConditionalGeneration, vocabulary: int, answers: int
    ) -> None:
        super().__init__()
        self.tower = generator.model.vision_model
        size = generator.model.multi_modal_projector.in_features
        self.words = nn.EmbeddingBag(vocabulary, size)
        self.seen, self.asked = nn.LayerNorm(size), nn.LayerNorm(size)
        self.head = nn.Sequential(nn.Linear(3 * size, size), nn.GELU(), nn.Linear(size, answers))

    def forward(self, inputs: Inputs, asked_of: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        """Inputs of B images and the token ids of questions on each, Q in all -> logits
        (Q, answers), image by image."""
        questions = [question for own in asked_of for question in own]
        counts = torch.tensor([len(own) for own in asked_of])
        seen = self.seen(mean_of_patches(self.tower, inputs)).repeat_interleave(counts, dim=0)
        flat = torch.tensor([token for question in questions for token in question])
        starts = torch.tensor([0, *map(len, questions[:-1])]).cumsum(0)
        asked = self.asked(self.words(flat, starts))
        logits: Tensor = self.head(torch.cat([seen, asked, seen * asked], dim=1))
        return logits


def mean_of_patches(tower: nn.Module, inputs: Inputs) -> Tensor:
    """(B, D): the mean output of the patches of B images, those of empty tiles left out."""
    patches: Tensor = tower(**inputs).last_hidden_state  # (B, 1, tiles, patches, D)
    tile_mask = inputs["aspect_ratio_mask"][..., None, None]  # (B, 1, tiles, 1, 1)
    total = (patches * tile_mask).sum(dim=(1, 2, 3))
    return total / (tile_mask.sum(dim=(1, 2, 3)) * patches.shape[3])


def process(processor: MllamaImageProcessorPil, pictures: Sequence[Image]) -> Inputs:
    """Pictures as the tower reads them, one each."""
    one_each = [[picture] for picture in pictures]
    processed = processor(one_each, return_tensors="pt")  # type: ignore[arg-type]  # nested lists
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    return {name: processed[name] for name in names}


class Asked:
    """The pictures of a table with the questions on each and their right answers."""

    def __init__(self, table: Path, tokenizer: Tokenizer, names: Names = AS_THEY_ARE) -> None:
        self.by_picture: dict[str, list[tuple[str, str]]] = {}
        for row in read_labelled_rows(table, names=names):
            question = row.question
            if question is None or (answer := right_answer(question)) is None:
                continue
            if (source := asked_picture(question)) is not None:
                self.by_picture.setdefault(source, []).append((question.text, answer))
        pairs = [pair for asked in self.by_picture.values() for pair in asked]
        counts = Counter(answer for _, answer in pairs)
        known = sorted(answer for answer, count in counts.items() if count >= LEAST_ROWS)
        self.answers = {answer: index for index, answer in enumerate(known)}
        if len(self.answers) < 2:
            raise InputError(
                f"{table}: no two answers to questions about pictures come up {LEAST_ROWS} times; "
                "a vision tower learns from rows with a picture and a `label`."
            )
        texts = {text for pair in pairs for text in pair}
        self.ids = {text: tokenizer.encode(text, add_special_tokens=False).ids for text in texts}
        self.ids = {text: ids for text, ids in self.ids.items() if ids}

    def truths(self) -> Truths:
        """The questions with an answer that is learnt, by picture."""
        learnable = {
            source: [text for text, answer in asked if answer in self.answers and text in self.ids]
            for source, asked in self.by_picture.items()
        }
        return {source: texts for source, texts in learnable.items() if texts}

    def answer(self, source: str, text: str) -> int:
        """The index of the right answer."""
        return self.answers[dict(self.by_picture[source])[text]]

    def pairs(self, source: str, texts: Sequence[str], end: int) -> list[Pair]:
        """Those questions on a picture with their right answers, as tokens, `end` behind each."""
        answers = dict(self.by_picture[source])
        return [((*self.ids[text], end), (*self.ids[answers[text]], end)) for text in texts]


def train_vision(config: VisionConfig) -> Path:
    """Train as configured; returns the folder of the generator.

    Raises ConfigError for sizes of a base that is there, InputError for a table that asks about no
    pictures.
    """
    sizes = {k: v for k, v in asdict(config).items() if k in SIZES and v is not None}
    if config.base is not None and sizes:
        raise ConfigError(
            f"{', '.join(sizes)}: `base` has sizes of its own; leave them out, or leave out `base`."
        )
    names = parse_names(config.columns)
    inputs = hash_table(config.table, names)
    if config.base is not None:
        base = find_part(config.base, "generator")
        inputs |= inside(base, hash_model(base))
    run = Run(config.out, config, seed=config.seed, inputs=inputs, report_to=config.report_to)
    if config.base is None:
        base = config.out / "untrained"
        texts = prompt_texts(config.table, names)
        build_generator(base, texts, sizes=GeneratorSizes(**sizes), seed=config.seed)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    asked = Asked(config.table, tokenizer, names)
    questions = asked.truths()
    generator = load_model(base, dtype=torch.float32)
    recogniser = Recogniser(generator, tokenizer.get_vocab_size(), len(asked.answers)).train()
    processor = load_image_processor(base)
    pictures = {
        source: _halved(process(processor, [image]))
        for source, image in load_pictures(config.table, questions)
    }
    held_out = sorted(hold_out(pictures, config.held_out, config.seed))
    run.report(pictures=len(pictures), answers=len(asked.answers), held_out=len(held_out))
    trained = sorted(pictures.keys() - set(held_out))
    batches = _batches(trained, config.batch_size, config.seed)
    random = Random(config.seed)

    def losses() -> dict[str, Tensor]:
        sources = next(batches)
        texts = [
            random.sample(questions[source], min(QUESTIONS, len(questions[source])))
            for source in sources
        ]
        ids = [[asked.ids[text] for text in own] for own in texts]
        logits = recogniser(_stack(pictures, sources), ids)
        targets = [asked.answer(one, text) for one, own in zip(sources, texts) for text in own]
        return {"loss": nn.functional.cross_entropy(logits, torch.tensor(targets))}

    optimise(
        recogniser.parameters(),
        losses,
        steps=config.steps,
        learning_rate=config.learning_rate,
        report=run.report,
    )
    known = {source: questions[source] for source in held_out}
    if held_out:
        run.report(answer_accuracy=accuracy(recogniser.eval(), asked, pictures, known))
    if config.language_steps:
        end = token_id(tokenizer, EOS)
        looking = Looking(
            generator,
            inputs_of=partial(_stack, pictures),
            pairs={one: asked.pairs(one, own, end) for one, own in questions.items()},
        )
        optimise(
            looking.parameters(),
            lambda: looking.losses(next(batches), random),
            steps=config.language_steps,
            learning_rate=config.learning_rate,
            report=run.report,
            done=config.steps,
        )
        if held_out:
            run.report(language_accuracy=looking.accuracy(held_out))
    out = save_model(generator, base, config.out / "model")
    run.close()
    return out


@torch.inference_mode()
def accuracy(
    recogniser: Recogniser, asked: Asked, pictures: Mapping[str, Inputs], held_out: Truths
) -> float:
    """The share of the questions on held-out pictures that are answered rightly."""
    correct = total = 0
    with Progress("Scoring", len(held_out), "pictures") as progress:
        for source, texts in progress.each(held_out.items()):
            logits = recogniser(_stack(pictures, [source]), [[asked.ids[text] for text in texts]])
            chosen = logits.argmax(dim=1).tolist()
            correct += sum(asked.answer(source, text) == one for text, one in zip(texts, chosen))
            total += len(texts)
    return correct / total


def _batches(sources: Sequence[str], size: int, seed: int) -> Iterator[list[str]]:
    """Batches of pictures without end; each round in a new order."""
    if not sources:
        raise InputError("No picture of the table can be read; `mmrag-batch validate` says why.")
    random = Random(seed)
    while True:
        order = random.sample(list(sources), len(sources))
        yield from (order[start : start + size] for start in range(0, len(order), size))


def _halved(inputs: Inputs) -> Inputs:
    """The pixels in half the bytes."""
    return {**inputs, "pixel_values": inputs["pixel_values"].half()}


def _stack(pictures: Mapping[str, Inputs], sources: Sequence[str]) -> Inputs:
    inputs = {
        name: torch.cat([pictures[source][name] for source in sources])
        for name in pictures[sources[0]]
    }
    return {**inputs, "pixel_values": inputs["pixel_values"].float()}
