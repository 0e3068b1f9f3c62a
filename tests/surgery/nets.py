"""Small nets for the tests of surgery."""

from __future__ import annotations

from typing import Any

from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse

TINY = """
name: "tiny"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { mirror: true crop_size: 8 mean_value: 104 mean_value: 117 mean_value: 123 }
  data_param { source: "nowhere/train_lmdb" batch_size: 4 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { crop_size: 8 mean_file: "nowhere/mean.binaryproto" }
  data_param { source: "nowhere/val_lmdb" batch_size: 2 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 6 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 10 weight_filler { type: "gaussian" std: 0.01 } bias_filler { type: "constant" value: 0.5 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "top-5" type: "Accuracy" bottom: "fc" bottom: "label" top: "top-5" include { phase: TEST } accuracy_param { top_k: 5 } }
"""


def net_of(text: str) -> Any:
    """The ``NetParameter`` of ``text``."""
    return parse(text, NetParameter)


def layer_of(net: Any, name: str) -> Any:
    """The first layer called ``name``."""
    return next(layer for layer in net.layer if layer.name == name)


def with_head(between: str, loss: str = "SoftmaxWithLoss", reads: str = "y") -> Any:
    """A net with one InnerProduct ``fc`` (top ``fc``), the layers of ``between``, and a loss that reads ``reads``."""
    return net_of(
        'layer { name: "in" type: "Input" top: "x" top: "label" input_param { shape { dim: 2 dim: 5 } shape { dim: 2 } } }'
        'layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc" inner_product_param { num_output: 4 } }'
        + between
        + f'layer {{ name: "loss" type: "{loss}" bottom: "{reads}" bottom: "label" top: "loss" }}'
    )
