"""Teach the language model of a small generator to look.

Llama 3.2's could read before it was joined to a tower; one that is made from nothing learns all at
once, and among all the words of a prompt the few that are asked about are faint at first. It comes
to name what is seen, and long not to say whether that is what was asked about. So it begins with
the bare questions of a table, on what a tower that has learnt and stays as it is makes of their
pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random

import torch
from torch import Tensor, nn
from transformers import MllamaForConditionalGeneration

from mmrag_batch.progress import Progress
from mmrag_batch.train.examples import IGNORED
from mmrag_batch.train.tuning import freeze

Inputs = dict[str, Tensor]
QUESTIONS = 2
"""Most questions on a picture, a step. Each costs as much as a picture does."""
BATCH = 64
"""Pictures at a time, without gradients."""
Pair = tuple[Sequence[int], Sequence[int]]
"""The token ids of a question and of its answer, each with the token that ends it."""


class Looking:
    """A generator whose tower stays as it is from now on, the pictures that `inputs_of` gives by
    their sources, and what is asked about each."""

    def __init__(
        self,
        generator: MllamaForConditionalGeneration,
        *,
        inputs_of: Callable[[Sequence[str]], Inputs],
        pairs: Mapping[str, Sequence[Pair]],
    ) -> None:
        freeze(generator.model.vision_model)
        self._generator = generator
        self._inputs_of = inputs_of
        self._pairs = pairs

    def parameters(self) -> list[nn.Parameter]:
        """Those of the language model and of the projector before it."""
        return [one for one in self._generator.parameters() if one.requires_grad]

    def losses(self, sources: Sequence[str], random: Random) -> dict[str, Tensor]:
        """The mean loss of the answers to some questions on each picture, over their tokens."""
        asked_of = [
            random.sample(own, min(QUESTIONS, len(own)))
            for own in (self._pairs[source] for source in sources)
        ]
        logits, labels = ask(self._generator, self._inputs_of(sources), asked_of)
        flat = logits.flatten(0, 1)
        loss = nn.functional.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED)
        return {"language_loss": loss}

    @torch.inference_mode()
    def accuracy(self, sources: Sequence[str]) -> float:
        """The share of questions on pictures whose answers are the likeliest, token by token."""
        right = total = 0
        with Progress("Scoring", len(sources), "pictures") as progress:
            for start in range(0, len(sources), BATCH):
                batch = sources[start : start + BATCH]
                asked_of = [self._pairs[source] for source in batch]
                logits, labels = ask(self._generator, self._inputs_of(batch), asked_of)
                likeliest = (logits.argmax(dim=-1) == labels) | (labels == IGNORED)
                right += int(likeliest.all(dim=1).sum())
                total += len(labels)
                progress.advance(len(batch))
        return right / total


def ask(
    generator: MllamaForConditionalGeneration,
    inputs: Inputs,
    asked_of: Sequence[Sequence[Pair]],
) -> tuple[Tensor, Tensor]:
    """Inputs of B images and pairs on each, Q in all -> logits (Q, L, vocabulary), each of the next
    token, and those tokens (Q, L), IGNORED where they are no answer's."""
    counts = torch.tensor([len(own) for own in asked_of])
    patches: Tensor = generator.model.vision_model(**inputs).last_hidden_state
    seen = generator.model.multi_modal_projector(patches.flatten(1, 3))  # (B, tiles x patches, D)
    pairs = [pair for own in asked_of for pair in own]
    length = max(len(question) + len(answer) for question, answer in pairs)
    rows, labels = [], []
    for question, answer in pairs:
        filled = length - len(question) - len(answer)
        rows.append([*question, *answer, *[0] * filled])
        labels.append([*[IGNORED] * len(question), *answer, *[IGNORED] * filled])
    tiles = inputs["aspect_ratio_mask"].repeat_interleave(counts, dim=0)  # (Q, 1, tiles)
    output = generator(
        input_ids=torch.tensor(rows),
        cross_attention_states=seen.repeat_interleave(counts, dim=0),
        cross_attention_mask=tiles[:, None].expand(-1, length, -1, -1),
        use_cache=False,
    )
    logits: Tensor = output.logits
    return logits[:, :-1], torch.tensor(labels)[:, 1:]
