"""What Caffe's layers CHECK is a NetError that names the layer, the blob at fault and its shape."""

from __future__ import annotations

import pytest

from caffetools.errors import NetError
from tests.layers.helpers import one_layer

Shapes = list[tuple[int, ...]]
X = (2, 3, 7, 5)

# type and parameters, bottoms, number of tops, what the message must say
CASES: list[tuple[str, Shapes, int, list[str]]] = [
    ('type: "Pooling" pooling_param { kernel_size: 3 }', [(2, 3)], 1, ["'b0'", "4 axes", "2 x 3"]),
    ('type: "Pooling" pooling_param { }', [X], 1, ["kernel_size is missing"]),
    ('type: "Pooling" pooling_param { kernel_h: 3 }', [X], 1, ["kernel_h and kernel_w must both be set"]),
    ('type: "Pooling" pooling_param { kernel_size: 2 kernel_h: 3 kernel_w: 3 }', [X], 1, ["either kernel_size, or kernel_h and kernel_w"]),
    ('type: "Pooling" pooling_param { kernel_size: 2 pad: 2 }', [X], 1, ["pad 2 x 2 must be smaller"]),
    ('type: "Pooling" pooling_param { kernel_size: 2 stride: 0 }', [X], 1, ["at least 1"]),
    ('type: "Pooling" pooling_param { kernel_size: 9 }', [X], 1, ["does not fit maps of 7 x 5"]),
    ('type: "Pooling" pooling_param { global_pooling: true kernel_size: 2 }', [X], 1, ["remove kernel_size"]),
    ('type: "Pooling" pooling_param { global_pooling: true stride: 2 }', [X], 1, ["pad 0 and stride 1"]),
    ('type: "Pooling" pooling_param { pool: AVE kernel_size: 2 }', [X], 2, ["only MAX pooling has a second top"]),
    ('type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 2 pad: 1 }', [X], 1, ["takes no padding"]),
    ('type: "SPP" spp_param { pyramid_height: 4 }', [(1, 1, 5, 5)], 1, ["too small for 4 x 4 windows"]),
    ('type: "SPP" spp_param { pyramid_height: 0 }', [X], 1, ["pyramid_height must be at least 1"]),
    ('type: "LRN" lrn_param { local_size: 4 }', [X], 1, ["local_size must be odd, not 4"]),
    ('type: "Dropout" dropout_param { dropout_ratio: 1 }', [X], 1, ["dropout_ratio"]),
    ('type: "InnerProduct" inner_product_param { }', [X], 1, ["num_output must be at least 1"]),
    ('type: "InnerProduct" inner_product_param { num_output: 3 axis: 4 }', [X], 1, ["axis 4 is outside", "2 x 3 x 7 x 5"]),
    ('type: "Convolution" convolution_param { num_output: 4 kernel_size: 9 }', [X], 1, ["kernel 9 x 9 does not fit"]),
    ('type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 group: 2 }', [X], 1, ["group 2 must divide"]),
    ('type: "Convolution" convolution_param { num_output: 4 }', [X], 1, ["kernel_size is missing"]),
    ('type: "Im2col" convolution_param { kernel_size: 9 }', [X], 1, ["kernel 9 x 9 does not fit", "'b0'"]),
    ('type: "Concat"', [X, (2, 3, 7, 6)], 1, ["'b1' is 2 x 3 x 7 x 6"]),
    ('type: "Concat" concat_param { axis: 1 concat_dim: 1 }', [X], 1, ["not both"]),
    ('type: "Concat" concat_param { axis: -5 }', [X], 1, ["axis -5"]),
    ('type: "Slice"', [(2, 5)], 2, ["'b0' (2 x 5) cannot be cut into 2 equal parts"]),
    ('type: "Slice" slice_param { slice_point: 3 slice_point: 2 }', [(2, 5)], 3, ["must increase"]),
    ('type: "Slice" slice_param { slice_point: 3 }', [(2, 5)], 3, ["3 tops need 2 slice_point values"]),
    ('type: "Eltwise"', [(2, 3), (2, 4)], 1, ["'b1' is 2 x 4"]),
    ('type: "Eltwise"', [(2, 3)], 1, ["at least 2 bottom"]),
    ('type: "Eltwise" eltwise_param { coeff: 1 }', [(2, 3), (2, 3)], 1, ["once for each of its 2 bottoms"]),
    ('type: "Eltwise" eltwise_param { operation: PROD coeff: 1 coeff: 1 }', [(2, 3), (2, 3)], 1, ["coeff is for SUM"]),
    ('type: "BatchNorm" param { lr_mult: 1 }', [X], 1, ["lr_mult must be 0"]),
    ('type: "Scale"', [X, (4,)], 1, ["'b1' (4) does not fit 'b0' (2 x 3 x 7 x 5)"]),
    ('type: "Scale" scale_param { num_axes: 4 }', [X], 1, ["num_axes 4 from axis 1"]),
    ('type: "Bias" bias_param { axis: 4 }', [X], 1, ["axis 4 is outside"]),
    ('type: "PReLU"', [(3,)], 1, ["'b0' must have at least 2 axes"]),
    ('type: "Clip" clip_param { min: 1 }', [X], 1, ["needs min and max"]),
    ('type: "Exp" exp_param { base: 0 }', [X], 1, ["base must be larger than 0"]),
    ('type: "Log" log_param { base: -2 }', [X], 1, ["base must be larger than 0"]),
    ('type: "Flatten" flatten_param { axis: 2 end_axis: 1 }', [X], 1, ["end_axis 1 is before axis 2"]),
    ('type: "Reshape" reshape_param { shape { dim: -1 dim: -1 } }', [X], 1, ["one -1"]),
    ('type: "Reshape" reshape_param { shape { dim: 4 dim: -1 } }', [(2, 3)], 1, ["does not divide the 6 values", "'b0' (2 x 3)"]),
    ('type: "Reshape" reshape_param { shape { dim: 4 } }', [(2, 3)], 1, ["holds 4 values", "'b0' (2 x 3) 6"]),
    ('type: "Reshape" reshape_param { shape { dim: 2 dim: 3 dim: 0 } }', [(2, 3)], 1, ["copies axis 2"]),
    ('type: "Reshape" reshape_param { axis: 3 }', [(2, 3)], 1, ["axis 3 is outside"]),
    ('type: "Crop"', [X, (2, 3, 8, 5)], 1, ["cannot crop axis 2", "2 x 3 x 8 x 5"]),
    ('type: "Crop" crop_param { offset: 1 offset: 1 offset: 1 }', [X, (2, 3, 4, 4)], 1, ["offset is given 3 times"]),
    ('type: "Tile" tile_param { tiles: 0 }', [X], 1, ["tiles must be at least 1"]),
    ('type: "BatchReindex"', [X, (2, 1)], 1, ["'b1' (the order) must have 1 axis"]),
    ('type: "Filter"', [(3, 2), (3, 2)], 1, ["one value for each item, not 3 x 2"]),
    ('type: "Filter"', [(3, 2), (4,)], 1, ["'b0' (3 x 2) must have as many items"]),
    ('type: "Filter"', [(3, 2), (3,)], 2, ["one top for each bottom"]),
    ('type: "Reduction" reduction_param { axis: 4 }', [X], 1, ["axis 4 is outside"]),
    ('type: "ArgMax" argmax_param { top_k: 4 axis: 1 }', [X], 1, ["top_k 4", "3 values"]),
    ('type: "Softmax" softmax_param { axis: 4 }', [X], 1, ["axis 4 is outside"]),
    ('type: "SoftmaxWithLoss"', [X, (2,)], 1, ["needs 70 labels", "'b1' is 2"]),
    ('type: "SoftmaxWithLoss"', [X], 1, ["2 bottom blob(s)"]),
    ('type: "Accuracy" accuracy_param { top_k: 6 }', [(4, 5), (4,)], 1, ["top_k 6", "classes 5"]),
    ('type: "Accuracy"', [(4, 5), (3,)], 1, ["needs 4 labels", "'b1' is 3"]),
    ('type: "EuclideanLoss"', [(4, 5), (3, 5)], 1, ["same first dimension", "'b1' is 3 x 5"]),
    ('type: "EuclideanLoss"', [(4, 5), (4, 6)], 1, ["as many values", "'b1' is 4 x 6"]),
    ('type: "HingeLoss"', [(4, 5), (3,)], 1, ["one label for each item"]),
    ('type: "MultinomialLogisticLoss"', [(4, 5), (3,)], 1, ["one label for each item"]),
    ('type: "SigmoidCrossEntropyLoss"', [(4, 5), (4,)], 1, ["as many values"]),
    ('type: "ContrastiveLoss"', [(4, 5, 2, 1), (4, 5, 2, 1), (4,)], 1, ["'b0' must be N x C"]),
    ('type: "ContrastiveLoss"', [(4, 5), (4, 5), (3,)], 1, ["'b2'", "each pair"]),
    ('type: "InfogainLoss"', [(4, 5), (4,)], 1, ["needs the infogain matrix"]),
    ('type: "InfogainLoss"', [(4, 5), (4,), (4, 4)], 1, ["must be 5 x 5", "not 4 x 4"]),
    ('type: "InfogainLoss" infogain_loss_param { source: "missing.binaryproto" }', [(4, 5), (4,)], 1, ["missing.binaryproto"]),
    ('type: "Embed" embed_param { num_output: 2 }', [(4,)], 1, ["input_dim must be at least 1"]),
    ('type: "LSTM" recurrent_param { num_output: 2 }', [(4, 3, 5), (4, 2)], 1, ["'b1' T x N", "4 x 2"]),
    ('type: "LSTM" recurrent_param { }', [(4, 3, 5), (4, 3)], 1, ["num_output must be at least 1"]),
    ('type: "RNN" recurrent_param { num_output: 2 }', [(4, 3, 5), (4, 3), (2, 6)], 1, ["'b2' (2 x 6)", "3 streams"]),
    ('type: "RNN" recurrent_param { num_output: 2 expose_hidden: true }', [(4, 3, 5), (4, 3)], 1, ["1 state bottom(s)"]),
    (
        'type: "LSTM" recurrent_param { num_output: 2 expose_hidden: true }',
        [(4, 3, 5), (4, 3), (1, 3, 2), (1, 3, 4)],
        3,
        ["'b3'", "1 x 3 x 2"],
    ),
    ('type: "LSTMUnit"', [(1, 3, 4), (1, 3, 12), (1, 3)], 2, ["1 x N x 4D", "1 x 3 x 12"]),
    ('type: "DummyData" dummy_data_param { num: 2 shape { dim: 2 } }', [], 1, ["not both"]),
    ('type: "DummyData" dummy_data_param { num: 2 channels: 3 }', [], 1, ["height and width are needed"]),
    ('type: "DummyData" dummy_data_param { shape { dim: 2 } shape { dim: 2 } }', [], 3, ["one for each of its 3 tops"]),
    ('type: "HDF5Output"', [X, (2,)], 0, ["needs hdf5_output_param.file_name"]),
    ('type: "HDF5Output" hdf5_output_param { file_name: "o.h5" }', [X, (3,)], 0, ["same first dimension", "'b1' 3"]),
    ('type: "Input" input_param { }', [], 1, ["0 are given"]),
    ('type: "Silence"', [], 0, ["at least 1 bottom"]),
    ('type: "ReLU"', [X, X], 1, ["1 bottom blob(s)"]),
]


@pytest.mark.parametrize(("text", "shapes", "tops", "expected"), CASES, ids=[f"{c[0].split(chr(34))[1]}-{i}" for i, c in enumerate(CASES)])
def test_what_caffe_checks_is_an_error_that_names_the_place(text: str, shapes: Shapes, tops: int, expected: list[str]) -> None:
    with pytest.raises(NetError) as caught:
        one_layer(text, *shapes, tops=tops)
    message = str(caught.value)
    assert message.startswith("layer 'l': (")
    assert "\n" not in message
    for part in expected:
        assert part in message
