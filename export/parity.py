"""Whether an exported graph computes what the torch module it came from does."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmrag_batch.errors import InternalError
from mmrag_batch.retrieval.sessions import open_session

TOLERANCE = 1e-4
"""Largest difference of one dimension of a unit vector, in float32 on the CPU."""


@torch.inference_mode()
def check_parity(module: nn.Module, file: Path, samples: Iterable[Sequence[Tensor]]) -> float:
    """The largest absolute difference between `module` and the graph in `file` over `samples`.

    A sample is one tensor for each input of the graph, in its order. Raises InternalError where the
    difference is above `TOLERANCE`.
    """
    session = open_session(file, device="cpu")
    names = [item.name for item in session.get_inputs()]
    difference = 0.0
    for sample in samples:
        expected = module(*sample)
        inputs = {name: tensor.numpy() for name, tensor in zip(names, sample, strict=True)}
        found = torch.from_numpy(session.run(None, inputs)[0])
        worst = float((found - expected).abs().max())
        if not worst <= TOLERANCE:  # catches nan, too
            raise InternalError(
                f"{file.name} differs from its torch module by {worst:.2e} (at most "
                f"{TOLERANCE:.0e}); please report it with your versions of torch and onnxruntime."
            )
        difference = max(difference, worst)
    return difference
