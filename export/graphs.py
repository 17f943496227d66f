"""A torch module -> an ONNX graph, in 32, 16 or 8 bits.

A graph is one file, but for weights past the 2 GB that a protobuf can hold, which go beside it.
"""

import logging
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrag_batch.bundle import Precision

OPSET = 23
"""The first that has attention as one operator."""
PROTOBUF_LIMIT = 2_000_000_000

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
    attentions = sum(node.op_type == "Attention" for node in program.model.graph)
    if precision == "int8":
        _quantise(program, file)
    else:
        weights = [item.const_value for item in program.model.graph.initializers.values()]
        size = sum(weight.nbytes for weight in weights if weight is not None)
        program.save(file, external_data=size > PROTOBUF_LIMIT)
    return attentions


def _quantise(program: torch.onnx.ONNXProgram, file: Path) -> None:
    """Save with the weights of its matrix products in 8 bits, by channel; what they are multiplied
    with is quantised as it comes, so no calibration is needed."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Otherwise it advises, in a warning, what torch's exporter has done already.
    program.model.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"
    with TemporaryDirectory(dir=file.parent, prefix=".int8-") as folder:
        whole = Path(folder) / "whole.onnx"
        program.save(whole, external_data=True)
        quantize_dynamic(
            whole,
            file,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
