"""A graph whose matrix products are of 8 bits, by row and by column.

Each row of activations, that is each token, has a scale of its own. ONNX Runtime's quantiser takes
one over the whole batch, which makes an embedding depend on its neighbours. Sums of products are
exact, in 32-bit integers (Jacob et al., arXiv:1712.05877), so a row is the same bytes in any batch.
Nothing is calibrated.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.pattern import RewriteRule

from mmrag_batch.retrieval.sessions import SCALED_BY_ROW

ZERO = 128
"""The byte of activations that stands for 0: VNNI multiplies unsigned by signed bytes."""
GELU_ZERO, GELU_LEAST = 16, -0.17
"""The same behind a GELU, and what none falls below: nearly all bytes are for what is above 0."""
LARGEST = 64
"""Of a weight. A processor without VNNI adds two products of a byte and a weight in 16 bits, where
255 x 127 twice has no room: it would answer otherwise, in silence."""
TINY = np.float32(1e-20)
"""The least scale: a row or a column may be all zeros."""


def quantise(model: ir.Model) -> None:
    """Put the products of `model` with constant matrices in 8 bits, and note that in its metadata.

    It needs ONNX Runtime's own operator `MatMulIntegerToFloat`, which its CPU builds have.
    """
    rewrite(model, [RewriteRule(_product, _in_8_bits, _is_constant)])
    model.opset_imports["com.microsoft"] = 1
    model.metadata_props[SCALED_BY_ROW] = "yes"


def _product(op: Any, rows: Any, weights: Any) -> Any:
    """What to look for."""
    return op.MatMul(rows, weights)


def _is_constant(_: Any, weights: ir.Value, **__: Any) -> bool:
    return weights.const_value is not None and len(weights.const_value.shape) == 2


def _in_8_bits(op: Any, rows: ir.Value, weights: ir.Value, **_: Any) -> Any:
    """rows (..., K) by weights (K, N) -> (..., N)."""
    assert weights.const_value is not None
    matrix = weights.const_value.numpy()
    column_scales = np.maximum(np.abs(matrix).max(axis=0) / np.float32(LARGEST), TINY)  # (N,)
    columns = np.rint(matrix / column_scales).astype(np.int8)

    def constant(value: np.generic) -> Any:
        return op.Constant(value=ir.tensor(value))

    def initializer(values: NDArray[Any], kind: str) -> Any:
        return op.initializer(ir.tensor(values, name=f"{weights.name}_{kind}"))

    producer, last = rows.producer(), op.Constant(value_ints=[-1])
    if producer is not None and producer.op_type == "Gelu":
        zero = GELU_ZERO
        below = constant(np.float32(GELU_LEAST / -zero))  # known, so half of the search is saved
    else:
        zero = ZERO
        below = op.Mul(op.ReduceMin(rows, last), constant(np.float32(-1 / zero)))
    above = op.Mul(op.ReduceMax(rows, last), constant(np.float32(1 / (255 - zero))))
    scales = op.Max(above, below, constant(TINY))  # (..., 1)
    zero_point = constant(np.uint8(zero))
    zeros = op.Expand(zero_point, op.Shape(scales))
    quantised = op.QuantizeLinear(rows, scales, zeros, axis=-1, block_size=len(matrix))
    product = op.MatMulIntegerToFloat(
        quantised,
        initializer(columns, "int8"),
        constant(np.float32(1)),
        initializer(column_scales, "scales"),
        zero_point,
        _domain="com.microsoft",
    )
    return op.Mul(product, scales)
