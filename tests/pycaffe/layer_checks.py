"""Layers of BVLC Caffe through ``import caffe``: settings to check, and figures of their tops and gradients.

Runs with caffetools and with a real Caffe alike. ``python tests/pycaffe/layer_checks.py`` with a real Caffe's Python writes
``layer_checks.json``, the figures that the test compares with.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np

FIGURES = Path(__file__).with_suffix(".json")

# Name of a case → (the layer's prototxt, its bottoms). A bottom is a shape and a kind of values: n normal, g normal but not near 0,
# p above 0, u from 0 to 1, d all different and far apart, s rows that sum to 1, iK indices below K, b 0 or 1, c continuation (0 first, then 1).
CASES = {
    "absval": ('type: "AbsVal"', "2x3x4x5 g"),
    "bnll": ('type: "BNLL"', "2x3x4x5 n"),
    "elu": ('type: "ELU" elu_param { alpha: 0.7 }', "2x3x4x5 g"),
    "exp": ('type: "Exp" exp_param { base: 2 scale: 0.5 shift: 1 }', "2x3x4x5 n"),
    "exp e": ('type: "Exp"', "2x3 n"),
    "log": ('type: "Log" log_param { base: 3 scale: 2 shift: 1 }', "2x3x4x5 p"),
    "power": ('type: "Power" power_param { power: 1.7 scale: 0.5 shift: 0.3 }', "2x3x4x5 p"),
    "power square": ('type: "Power" power_param { power: 2 scale: -0.5 shift: 0.3 }', "2x3 n"),
    "relu": ('type: "ReLU"', "2x3x4x5 g"),
    "relu leaky": ('type: "ReLU" relu_param { negative_slope: 0.1 }', "2x3x4x5 g"),
    "prelu": ('type: "PReLU"', "2x3x4x5 g"),
    "prelu shared": ('type: "PReLU" prelu_param { channel_shared: true }', "2x3x4 g"),
    "sigmoid": ('type: "Sigmoid"', "2x3x4x5 n"),
    "tanh": ('type: "TanH"', "2x3x4x5 n"),
    "swish": ('type: "Swish" swish_param { beta: 1.5 }', "2x3x4x5 n"),
    "dropout in test": ('type: "Dropout"', "2x3x4x5 n"),
    "threshold": ('type: "Threshold" threshold_param { threshold: 0.2 }', "2x3x4x5 g"),
    "inner product": ('type: "InnerProduct" inner_product_param { num_output: 7 }', "2x3x4x5 n"),
    "inner product axis 2": ('type: "InnerProduct" inner_product_param { num_output: 7 axis: 2 bias_term: false }', "2x3x4x5 n"),
    "inner product transposed": ('type: "InnerProduct" inner_product_param { num_output: 7 transpose: true }', "2x12 n"),
    "convolution": ('type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 stride: 2 pad: 1 }', "2x3x6x5 n"),
    "convolution groups": ('type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 group: 3 bias_term: false }', "2x3x6x5 n"),
    "convolution dilated": ('type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 dilation: 2 pad: 2 }', "2x3x7x6 n"),
    "convolution oblong": (
        'type: "Convolution" convolution_param { num_output: 4 kernel_h: 1 kernel_w: 3 stride_h: 2 stride_w: 1 pad_h: 0 pad_w: 2 }',
        "2x3x6x5 n",
    ),
    "convolution 1x1": ('type: "Convolution" convolution_param { num_output: 5 kernel_size: 1 }', "2x3x6x5 n"),
    "convolution 3-d": ('type: "Convolution" convolution_param { num_output: 2 kernel_size: 2 stride: 2 }', "1x2x4x5x6 n"),
    "convolution two bottoms": ('type: "Convolution" top: "t1" convolution_param { num_output: 4 kernel_size: 3 }', "2x3x6x5 n, 2x3x6x5 n"),
    "deconvolution": ('type: "Deconvolution" convolution_param { num_output: 4 kernel_size: 3 stride: 2 pad: 1 }', "2x3x4x5 n"),
    "deconvolution groups": ('type: "Deconvolution" convolution_param { num_output: 3 kernel_size: 4 stride: 2 group: 3 }', "2x3x4x5 n"),
    "im2col": ('type: "Im2col" convolution_param { kernel_size: 3 stride: 2 pad: 1 }', "2x3x6x5 n"),
    "pooling max": ('type: "Pooling" pooling_param { pool: MAX kernel_size: 3 stride: 2 }', "2x3x6x7 d"),
    "pooling max padded": ('type: "Pooling" pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 2 }', "2x3x6x5 d"),
    "pooling average": ('type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }', "2x3x6x7 n"),
    "pooling global": ('type: "Pooling" pooling_param { pool: AVE global_pooling: true }', "2x3x6x7 n"),
    "pooling oblong": ('type: "Pooling" pooling_param { pool: MAX kernel_h: 2 kernel_w: 3 stride_h: 1 stride_w: 2 }', "2x3x6x7 d"),
    "spp": ('type: "SPP" spp_param { pyramid_height: 3 }', "2x3x8x9 d"),
    "lrn": ('type: "LRN" lrn_param { local_size: 5 alpha: 2 beta: 0.75 k: 1.5 }', "2x7x3x3 n"),
    "lrn within": ('type: "LRN" lrn_param { local_size: 3 alpha: 2 norm_region: WITHIN_CHANNEL }', "2x4x5x6 n"),
    "batch norm in test": ('type: "BatchNorm"', "3x4x2x3 n"),
    "mvn": ('type: "MVN"', "2x3x4x5 n"),
    "mvn across, mean only": ('type: "MVN" mvn_param { across_channels: true normalize_variance: false }', "2x3x4x5 n"),
    "scale": ('type: "Scale" scale_param { bias_term: true }', "2x3x4x5 n"),
    "scale by a bottom": ('type: "Scale" scale_param { axis: 0 }', "2x3x4x5 n, 2x3 n"),
    "scale scalar": ('type: "Scale" scale_param { num_axes: 0 }', "2x3x4 n"),
    "scale rest": ('type: "Scale" scale_param { axis: 1 num_axes: -1 bias_term: true }', "2x3x4 n"),
    "bias": ('type: "Bias" bias_param { axis: 1 num_axes: 2 }', "2x3x4x5 n"),
    "bias by a bottom": ('type: "Bias" bias_param { axis: 2 }', "2x3x4x5 n, 4x5 n"),
    "concat": ('type: "Concat"', "2x3x4 n, 2x2x4 n, 2x1x4 n"),
    "concat axis 0": ('type: "Concat" concat_param { axis: 0 }', "2x3x4 n, 1x3x4 n"),
    "slice": ('type: "Slice" top: "t1" top: "t2" slice_param { axis: 1 slice_point: 1 slice_point: 4 }', "2x6x3 n"),
    "split": ('type: "Split" top: "t1"', "2x3x4 n"),
    "crop": ('type: "Crop" crop_param { axis: 1 offset: 1 offset: 0 offset: 2 }', "2x4x5x6 n, 2x2x3x4 n"),
    "eltwise product": ('type: "Eltwise" eltwise_param { operation: PROD }', "2x3x4 g, 2x3x4 g, 2x3x4 g"),
    "eltwise product stable": ('type: "Eltwise" eltwise_param { operation: PROD stable_prod_grad: false }', "2x3x4 g, 2x3x4 g"),
    "eltwise sum": ('type: "Eltwise" eltwise_param { operation: SUM coeff: 0.5 coeff: -2 }', "2x3x4 n, 2x3x4 n"),
    "eltwise max": ('type: "Eltwise" eltwise_param { operation: MAX }', "2x3x4 d, 2x3x4 d"),
    "embed": ('type: "Embed" embed_param { input_dim: 6 num_output: 4 }', "3x2 i6"),
    "flatten": ('type: "Flatten" flatten_param { axis: 1 end_axis: 2 }', "2x3x4x5 n"),
    "reshape": ('type: "Reshape" reshape_param { shape { dim: 0 dim: -1 dim: 2 } }', "2x3x4 n"),
    "reshape part": ('type: "Reshape" reshape_param { shape { dim: 2 dim: 2 } axis: 2 num_axes: 1 }', "2x3x4x5 n"),
    "tile": ('type: "Tile" tile_param { axis: 1 tiles: 3 }', "2x3x4 n"),
    "reduction sum": ('type: "Reduction" reduction_param { operation: SUM axis: 1 coeff: 0.5 }', "2x3x4 n"),
    "reduction asum": ('type: "Reduction" reduction_param { operation: ASUM axis: 1 }', "2x3x4 g"),
    "reduction sumsq": ('type: "Reduction" reduction_param { operation: SUMSQ axis: 2 }', "2x3x4 n"),
    "reduction mean": ('type: "Reduction" reduction_param { operation: MEAN axis: -1 }', "2x3x4 n"),
    "softmax": ('type: "Softmax"', "2x4x3x2 n"),
    "softmax axis 0": ('type: "Softmax" softmax_param { axis: 0 }', "4x3x2 n"),
    "argmax": ('type: "ArgMax" argmax_param { top_k: 2 out_max_val: true }', "3x8 d"),
    "accuracy": ('type: "Accuracy" accuracy_param { top_k: 2 }', "6x4 d, 6 i4"),
    "rnn": ('type: "RNN" recurrent_param { num_output: 3 }', "4x2x5 n, 4x2 c"),
    "lstm": ('type: "LSTM" recurrent_param { num_output: 3 }', "4x2x5 n, 4x2 c"),
    "lstm static": ('type: "LSTM" recurrent_param { num_output: 3 }', "4x2x5 n, 4x2 c, 2x3 n"),
    "softmax loss": ('type: "SoftmaxWithLoss"', "4x5x2x3 n, 4x1x2x3 i5"),
    "softmax loss ignoring": ('type: "SoftmaxWithLoss" loss_param { ignore_label: 2 normalization: VALID }', "4x5x2x3 n, 4x1x2x3 i5"),
    "softmax loss unnormalized": ('type: "SoftmaxWithLoss" loss_weight: 0.5 loss_param { normalization: NONE }', "4x5 n, 4 i5"),
    "euclidean loss": ('type: "EuclideanLoss" loss_weight: 2', "4x5 n, 4x5 n"),
    "hinge loss": ('type: "HingeLoss" hinge_loss_param { norm: L1 }', "4x5 d, 4 i5"),
    "hinge loss squared": ('type: "HingeLoss" hinge_loss_param { norm: L2 }', "4x5 n, 4 i5"),
    "sigmoid loss": ('type: "SigmoidCrossEntropyLoss"', "4x5 n, 4x5 u"),
    "sigmoid loss ignoring": ('type: "SigmoidCrossEntropyLoss" loss_param { ignore_label: 1 }', "4x5 n, 4x5 b"),
    "multinomial loss": ('type: "MultinomialLogisticLoss"', "4x5 s, 4 i5"),
    "contrastive loss": ('type: "ContrastiveLoss" contrastive_loss_param { margin: 3 }', "6x4 n, 6x4 n, 6 b"),
    "contrastive loss legacy": ('type: "ContrastiveLoss" contrastive_loss_param { margin: 9 legacy_version: true }', "6x4 n, 6x4 n, 6 b"),
}
# Types without a gradient.
WITHOUT = ("Threshold", "ArgMax", "Accuracy")
# Types whose second bottom has a gradient as well; elsewhere only the first has one.
SEVERAL = ("Convolution", "Scale", "Bias", "Concat", "Eltwise", "EuclideanLoss", "ContrastiveLoss")


def bottoms_of(name: str) -> list[tuple[tuple[int, ...], str]]:
    """Return shape and kind of each bottom of a case."""
    return [(tuple(int(n) for n in shape.split("x")), kind) for shape, kind in (part.split() for part in CASES[name][1].split(", "))]


def prototxt(name: str) -> str:
    """Return the net of a case: an input for each bottom, and the layer."""
    shapes = [shape for shape, _ in bottoms_of(name)]
    inputs = "".join(
        f'layer {{ name: "b{k}" type: "Input" top: "b{k}" input_param {{ shape {{ {" ".join(f"dim: {n}" for n in shape)} }} }} }}\n'
        for k, shape in enumerate(shapes)
    )
    bottoms = " ".join(f'bottom: "b{k}"' for k in range(len(shapes)))
    down = " ".join(f"propagate_down: {str(k in with_gradient(name)).lower()}" for k in range(len(shapes)))
    force = "force_backward: true\n" if with_gradient(name) else ""
    text = f'{force}{inputs}layer {{ name: "l" {bottoms} top: "t0" {down} {CASES[name][0]} }}\n'
    if "Loss" not in kind_of(name) and kind_of(name) not in WITHOUT:
        # The objective: the sum of (t + 0.7)^3 over each top.
        for top in ["t0", *(f"t{k}" for k in (1, 2) if f'top: "t{k}"' in text)]:
            text += f'layer {{ name: "c{top}" type: "Power" bottom: "{top}" top: "c{top}" power_param {{ power: 3 shift: 0.7 }} }}\n'
            text += f'layer {{ name: "r{top}" type: "Reduction" bottom: "c{top}" top: "r{top}" loss_weight: 0.3 }}\n'
    return text


def kind_of(name: str) -> str:
    """Return the layer type of a case."""
    return CASES[name][0].split('"')[1]


def with_gradient(name: str) -> list[int]:
    """Return the bottoms of a case that have a gradient."""
    kind = kind_of(name)
    if kind in (*WITHOUT, "Embed"):
        return []
    count = len(bottoms_of(name))
    if kind in ("LSTM", "RNN"):
        return [0, *range(2, count)]
    return list(range(min(count, 2) if kind == "ContrastiveLoss" else count)) if kind in SEVERAL else [0]


def values(kind: str, shape: tuple[int, ...], random: np.random.RandomState) -> np.ndarray:
    """Return random values of a kind, float32."""
    normal = np.array(random.randn(*shape))
    made = {
        "n": normal,
        "g": normal + 0.1 * np.sign(normal),
        "p": np.abs(normal) + 0.5,
        "u": random.rand(*shape),
        "d": (random.permutation(normal.size).reshape(shape) / 5.0 - normal.size / 10.0),
        "b": (random.rand(*shape) > 0.5) * 1.0,
        "c": np.concatenate([np.zeros((1, *shape[1:])), np.ones((shape[0] - 1, *shape[1:]))]) if shape else normal,
    }
    if kind.startswith("i"):
        return random.randint(0, int(kind[1:]), shape).astype(np.float32)
    if kind == "s":
        rows = random.rand(*shape) + 0.2
        return (rows / rows.sum(1, keepdims=True)).astype(np.float32)
    return made[kind].astype(np.float32)


class Check:
    """A case in a net of ``caffe``, filled with the case's values.

    Attributes:
        net: The net.
    """

    def __init__(self, caffe: ModuleType, name: str, folder: str):
        path = Path(folder) / "net.prototxt"
        path.write_text(prototxt(name))
        self.name = name
        self.random = np.random.RandomState(zlib.crc32(name.encode()) % 2**31)
        self.net = caffe.Net(str(path), caffe.TEST)
        for k, (shape, kind) in enumerate(bottoms_of(name)):
            self.net.blobs[f"b{k}"].data[...] = values(kind, shape, self.random)
        statistics = "BatchNorm" in CASES[name][0]
        for blobs in self.net.params.values():
            for k, blob in enumerate(blobs):
                made = values("p" if statistics else "n", tuple(blob.data.shape), self.random)
                blob.data[...] = 1 if statistics and k == 2 else made

    def objective(self) -> float:
        """Return the loss after a forward pass; the tops' sum where the type has no gradient."""
        blobs = self.net.forward()
        if "Loss" in kind_of(self.name):
            weight = CASES[self.name][0].partition("loss_weight: ")[2].split(" ")[0]
            return float(np.sum(blobs["t0"])) * float(weight or 1)
        return float(sum(np.sum(array, dtype=np.float64) * (0.3 if top[0] == "r" else 1) for top, array in blobs.items()))

    def gradients(self) -> dict[str, np.ndarray]:
        """Return the gradients of the objective by blob: ``b0``, …, and ``p0``, … of the parameters."""
        self.net.forward()
        parameters = [blob for blobs in self.net.params.values() for blob in blobs]
        for blob in parameters:
            blob.diff[...] = 0
        self.net.backward()
        found = {f"b{k}": self.net.blobs[f"b{k}"].diff.copy() for k in with_gradient(self.name)}
        if "BatchNorm" not in CASES[self.name][0]:
            found.update({f"p{k}": blob.diff.copy() for k, blob in enumerate(parameters)})
        return found

    def memory(self, blob: str) -> np.ndarray:
        """Return the array behind ``b0`` or ``p0``."""
        if blob[0] == "b":
            return self.net.blobs[blob].data
        return [b for blobs in self.net.params.values() for b in blobs][int(blob[1:])].data

    def figures(self) -> dict[str, float]:
        """Return the objective, and for each gradient its product with fixed random values."""
        found = {"objective": self.objective()}
        if kind_of(self.name) not in WITHOUT:
            for blob, gradient in self.gradients().items():
                random = np.random.RandomState(zlib.crc32(blob.encode()) % 2**31)
                found[blob] = float((gradient.astype(np.float64) * random.randn(*gradient.shape)).sum())
        return found


if __name__ == "__main__":
    import tempfile

    import caffe

    with tempfile.TemporaryDirectory() as scratch:
        recorded = {name: {k: float(f"{v:.7g}") for k, v in Check(caffe, name, scratch).figures().items()} for name in CASES}
    FIGURES.write_text(json.dumps(recorded, indent=1) + "\n")
