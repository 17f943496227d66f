"""Scoring a row's own choices: a softmax over its option letters, nothing parsed."""

import math
from collections.abc import Sequence

from mmrag_batch.records import Prediction


def softmax(logits: Sequence[float]) -> tuple[float, ...]:
    """The probabilities of the options, given the logits of their letters alone.

    Raises ValueError for a logit that is not a finite number.
    """
    if not all(map(math.isfinite, logits)):
        raise ValueError("the model gave a logit that is not a finite number")
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def choose(choices: Sequence[str], probabilities: Sequence[float]) -> Prediction:
    """The most probable choice; the first of equals."""
    index = max(range(len(choices)), key=probabilities.__getitem__)
    return Prediction(text=choices[index], index=index, probabilities=tuple(probabilities))
