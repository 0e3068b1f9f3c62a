"""Why an operator has no Caffe layers, for those that models do have."""

from __future__ import annotations

from caffetools.onnx.import_inline import RANDOM

_INTEGERS = "Caffe has no layer that computes with integers"
_BY_REASON: dict[str, tuple[str, ...]] = {
    "Caffe has no layer that chooses between others, so only an If of a constant condition can be converted": ("If",),
    "Caffe has no layer that repeats others, so only as many steps as are the same for all inputs, at most 512, can be written out": (
        "Loop",
        "Scan",
    ),
    "it gives other numbers in each run": tuple(RANDOM),
    "how many values it gives depends on the input, and a Caffe blob's shape does not": (
        "NonMaxSuppression",
        "NonZero",
        "Compress",
        "Unique",
    ),
    "Caffe has no layer that finds values which are no numbers": ("IsInf", "IsNaN"),
    "Caffe has no layer that rounds values": ("Ceil", "Floor", "Mod", "Round"),
    _INTEGERS: (
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    ),
    "Caffe has no trigonometric layers": ("Acos", "Asin", "Atan", "Cos", "Cosh", "Sin", "Sinh", "Tan"),
    "Caffe has no layer that reads places which are computed": (
        "GatherElements",
        "GridSample",
        "MaxRoiPool",
        "MaxUnpool",
        "RoiAlign",
        "ScatterElements",
        "ScatterND",
    ),
    "a Caffe net has no sequences of blobs": ("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SplitToSequence"),
}
_HINTS = {
    **dict.fromkeys(_BY_REASON[_INTEGERS], "import the model as it was before it was quantized"),
    "NonMaxSuppression": "export the model without the steps behind its scores and boxes",
}
_REASONS = {op: reason for reason, ops in _BY_REASON.items() for op in ops}


def why_not(op: str, domain: str) -> str:
    """Return why there are no layers for an operator, and what to do where something can be done."""
    if domain:
        hint = "; import the model as it was before onnxruntime optimized it" if domain.startswith("com.microsoft") else ""
        return f"the domain '{domain}' is not ONNX's own, and what its operators compute is not known{hint}"
    reason = _REASONS.get(op, "there are no Caffe layers for this operator; docs/onnx.md lists those that have some")
    return f"{reason}; {_HINTS[op]}" if op in _HINTS else reason
