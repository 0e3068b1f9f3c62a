"""The layer types there are, and that each documents what it does."""

from __future__ import annotations

import pytest

from caffetools.errors import NetError
from caffetools.layers.base import Layer
from caffetools.layers.registry import layer_class, layer_types, register

TYPES = layer_types()

# Caffe 1.0's layers that compute something; those that read data, and Python, live in other rooms.
CAFFE = {
    "AbsVal",
    "Accuracy",
    "ArgMax",
    "BatchNorm",
    "BatchReindex",
    "Bias",
    "BNLL",
    "Clip",
    "Concat",
    "ContrastiveLoss",
    "Convolution",
    "Crop",
    "Deconvolution",
    "Dropout",
    "DummyData",
    "ELU",
    "Eltwise",
    "Embed",
    "EuclideanLoss",
    "Exp",
    "Filter",
    "Flatten",
    "HDF5Output",
    "HingeLoss",
    "Im2col",
    "InfogainLoss",
    "InnerProduct",
    "Input",
    "LRN",
    "LSTM",
    "LSTMUnit",
    "Log",
    "MVN",
    "MultinomialLogisticLoss",
    "PReLU",
    "Parameter",
    "Pooling",
    "Power",
    "RNN",
    "ReLU",
    "Reduction",
    "Reshape",
    "SPP",
    "Scale",
    "Sigmoid",
    "SigmoidCrossEntropyLoss",
    "Silence",
    "Slice",
    "Softmax",
    "SoftmaxWithLoss",
    "Split",
    "Swish",
    "TanH",
    "Threshold",
    "Tile",
}


@pytest.mark.parametrize("name", sorted(CAFFE))
def test_every_type_of_caffe_is_known(name: str) -> None:
    assert issubclass(TYPES[name], Layer)


@pytest.mark.parametrize("name", TYPES)
def test_every_layer_class_documents_what_it_does(name: str) -> None:
    text = TYPES[name].__doc__
    assert text is not None
    assert text.strip().splitlines()[0].endswith((".", ":", ";")) or len(text.split()) > 8


@pytest.mark.parametrize("name", TYPES)
def test_every_layer_class_has_its_own_shape_rule_and_computation(name: str) -> None:
    assert TYPES[name].setup is not Layer.setup
    assert hasattr(TYPES[name], "forward")


def test_an_unknown_type_names_the_layer_and_what_may_be_meant() -> None:
    with pytest.raises(NetError, match=r"layer 'conv1': unknown layer type 'Convolutoin'; did you mean Convolution"):
        layer_class("Convolutoin", layer="conv1")


def test_a_type_has_one_class() -> None:
    with pytest.raises(ValueError, match="registered twice"):

        @register("ReLU")
        class Another(Layer):
            pass
