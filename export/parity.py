"""Whether an exported graph computes what the torch module it came from does."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrag_batch.bundle import Precision
from mmrag_batch.errors import InternalError
from mmrag_batch.retrieval.sessions import open_session

TOLERANCE = 1e-4
"""Largest difference of one dimension of a unit vector, in float32 on the CPU."""
LEAST_COSINE: dict[Precision, float] = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.98}
"""Of an embedding and what it should be."""
PARITY = "parity.json"
"""What was measured on encoders when they were exported, kept beside their graphs until they become
part of a bundle."""


@torch.inference_mode()
def check_parity(
    module: nn.Module,
    file: Path,
    samples: Iterable[Sequence[Tensor]],
    precision: Precision = "fp32",
) -> float:
    """The largest absolute difference between `module` and the graph in `file` over `samples`.

    A sample is one tensor for each input of the graph, in its order. Raises InternalError where the
    difference is above `TOLERANCE` or, with fewer than 32 bits, a cosine below `LEAST_COSINE`.
    """
    session = open_session(file, device="cpu")
    names = [item.name for item in session.get_inputs()]
    difference = 0.0
    for sample in samples:
        expected = module(*sample)
        inputs = {name: tensor.numpy() for name, tensor in zip(names, sample, strict=True)}
        actual = torch.from_numpy(session.run(None, inputs)[0])
        max_error = float((actual - expected).abs().max())
        if precision == "fp32" and not max_error <= TOLERANCE:  # catches nan, too
            raise InternalError(
                f"{file.name} differs from its torch module by {max_error:.2e} (at most "
                f"{TOLERANCE:.0e}); please report it with your versions of torch and onnxruntime."
            )
        check_cosine(file.name, least_cosine(expected, actual), precision)
        difference = max(difference, max_error)
    return difference


def check_cosine(name: str, cosine: float, precision: Precision) -> None:
    """Raises InternalError where the cosine is too low for the precision."""
    if not cosine >= LEAST_COSINE[precision]:
        raise InternalError(
            f"{name} in {precision} keeps a cosine of {cosine:.4f} to its torch module, less than "
            f"{LEAST_COSINE[precision]}; export it with another --precision."
        )


def least_cosine(expected: Tensor, actual: Tensor) -> float:
    """The lowest cosine between rows (N, D) that should be equal."""
    return float(F.cosine_similarity(expected.double(), actual.double(), dim=-1).min())


def top_k_agreement(expected: Tensor, actual: Tensor, k: int) -> float:
    """How much of each row's `k` nearest other rows (N, D) is the same in both, on average."""
    matches = _nearest(expected, k)[:, :, None] == _nearest(actual, k)[:, None, :]  # (N, k, k)
    return float(matches.any(dim=2).float().mean())


def _nearest(vectors: Tensor, k: int) -> Tensor:
    """(N, k): the indices of the nearest others."""
    scores = (vectors @ vectors.T).fill_diagonal_(float("-inf"))
    return scores.topk(k, dim=1).indices
