"""A torch module -> an ONNX graph, in 32, 16 or 8 bits.

A graph is one file, but for weights past the 2 GB that a protobuf can hold, which go beside it.
"""

import logging
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.pattern import RewriteRule
from torch import Tensor, nn
from torch.nn import functional as F

from mmrag_batch.bundle import Precision
from mmrag_batch.export.quantise import quantise

OPSET = 23
"""The first that has attention as one operator."""
PROTOBUF_LIMIT = 2_000_000_000
SWAP = (0, 2, 1, 3)
"""The transpose between (B, T, H, D) and (B, H, T, D)."""

# It warns that torchvision's operators cannot be exported where it is not installed; none is used.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)

Sample = tuple[Tensor, ...]


class Halved(nn.Module):
    """An encoder that computes in float16 and is fed and read in float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = deepcopy(module).half()

    def forward(self, inputs: Tensor) -> Tensor:
        """As the encoder's."""
        if inputs.is_floating_point():
            inputs = inputs.half()
        return F.normalize(self.module(inputs).float(), dim=-1)


def write_graph(
    module: nn.Module,
    file: Path,
    inputs: Mapping[str, dict[int, object]],
    output: str,
    sample: Sample,
    precision: Precision = "fp32",
) -> int:
    """Write the graph of a module; returns how many attentions in it are one operator.

    `inputs` names each input and its dynamic dimensions; `sample` shapes the graph: a size of 1
    would be taken as constant.
    """
    module = (Halved(module) if precision == "fp16" else module).eval()
    with warnings.catch_warnings():
        # torch's exporter still calls what torch deprecates.
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.`", FutureWarning)
        program = torch.onnx.export(
            module,
            sample,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple(inputs.values()),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is, of the dynamo exporter
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    rewrite(program.model, [RewriteRule(_heads_first, _heads_last)])
    attentions = sum(node.op_type == "Attention" for node in program.model.graph)
    if precision == "int8":
        quantise(program.model)
    weights = [item.const_value for item in program.model.graph.initializers.values()]
    size = sum(weight.nbytes for weight in weights if weight is not None)
    program.save(file, external_data=size > PROTOBUF_LIMIT)
    return attentions


def _heads_first(op: Any, query: Any, key: Any, value: Any) -> Any:
    """An attention as torch writes it, in (B, H, T, D): a pattern to look for."""

    def split(mixed: Any, name: str) -> Any:
        heads = op.Reshape(mixed, _allow_other_inputs=True)
        return op.Transpose(heads, perm=SWAP, _outputs=[name])

    heads = split(query, "queries"), split(key, "keys"), split(value, "values")
    attended = op.Attention(*heads, _allow_other_inputs=True, _outputs=["attended"])
    return op.Reshape(op.Transpose(attended, perm=SWAP), _allow_other_inputs=True)


def _heads_last(
    op: Any, query: Any, key: Any, value: Any, queries: Any, keys: Any, attended: Any, **_: Any
) -> Any:
    """The same in (B, T, H D), as linear layers write and read it: without four transposes, which
    took 7% of the time of ImageBind's text encoder in int8."""
    heads = {"q_num_heads": queries.shape[1], "kv_num_heads": keys.shape[1]}
    node = attended.producer()
    return op.Attention(query, key, value, *node.inputs[3:], **node.attributes, **heads)
