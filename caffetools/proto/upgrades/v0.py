"""Caffe's first form of layers, ``layers { layer { type: "conv" ...``, brought to the second, ``layers { type: CONVOLUTION ...``."""

from __future__ import annotations

from typing import Any

from caffetools.errors import NetError
from caffetools.proto.schema import Message, NetParameter, V1LayerParameter

_TYPES = {
    "accuracy": "ACCURACY",
    "bnll": "BNLL",
    "concat": "CONCAT",
    "conv": "CONVOLUTION",
    "data": "DATA",
    "dropout": "DROPOUT",
    "euclidean_loss": "EUCLIDEAN_LOSS",
    "flatten": "FLATTEN",
    "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT",
    "im2col": "IM2COL",
    "images": "IMAGE_DATA",
    "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softmax": "SOFTMAX",
    "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT",
    "tanh": "TANH",
    "window_data": "WINDOW_DATA",
}

_PARAM = {
    "concat": "concat_param",
    "conv": "convolution_param",
    "data": "data_param",
    "dropout": "dropout_param",
    "hdf5_data": "hdf5_data_param",
    "images": "image_data_param",
    "infogain_loss": "infogain_loss_param",
    "innerproduct": "inner_product_param",
    "lrn": "lrn_param",
    "pool": "pooling_param",
    "window_data": "window_data_param",
}

# V0 field -> (its name in the parameter message, the layer types that take it). Caffe ignores it in layers of other types.
_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "num_output": ("num_output", ("conv", "innerproduct")),
    "biasterm": ("bias_term", ("conv", "innerproduct")),
    "weight_filler": ("weight_filler", ("conv", "innerproduct")),
    "bias_filler": ("bias_filler", ("conv", "innerproduct")),
    "pad": ("pad", ("conv", "pool")),
    "kernelsize": ("kernel_size", ("conv", "pool")),
    "group": ("group", ("conv",)),
    "stride": ("stride", ("conv", "pool")),
    "pool": ("pool", ("pool",)),
    "dropout_ratio": ("dropout_ratio", ("dropout",)),
    "local_size": ("local_size", ("lrn",)),
    "alpha": ("alpha", ("lrn",)),
    "beta": ("beta", ("lrn",)),
    "k": ("k", ("lrn",)),
    "source": ("source", ("data", "hdf5_data", "images", "window_data", "infogain_loss")),
    "batchsize": ("batch_size", ("data", "hdf5_data", "images", "window_data")),
    "rand_skip": ("rand_skip", ("data", "images")),
    "shuffle_images": ("shuffle", ("images",)),
    "new_height": ("new_height", ("images",)),
    "new_width": ("new_width", ("images",)),
    "concat_dim": ("concat_dim", ("concat",)),
    "det_fg_threshold": ("fg_threshold", ("window_data",)),
    "det_bg_threshold": ("bg_threshold", ("window_data",)),
    "det_fg_fraction": ("fg_fraction", ("window_data",)),
    "det_context_pad": ("context_pad", ("window_data",)),
    "det_crop_mode": ("crop_mode", ("window_data",)),
}
_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}


def upgrade_v0_layers(param: NetParameter) -> None:
    """Bring the V0 layers of a ``NetParameter`` to V1 form, in place; 'padding' layers go into the layer that reads them.

    Raises:
        NetError: a layer's type is unknown, or a padding layer feeds something else than one convolution or pooling.
    """
    if not any(connection.HasField("layer") for connection in param.layers):
        return
    if not all(connection.HasField("layer") for connection in param.layers):
        raise NetError("the net mixes 'layers { layer {' blocks with the later form 'layers {'")
    connections = _without_padding(param)
    upgraded = NetParameter()
    for connection in connections:
        _upgrade_layer(connection, upgraded.layers.add())
    del param.layers[:]
    param.layers.extend(upgraded.layers)


def _without_padding(param: NetParameter) -> list[Any]:
    """Return copies of the connections other than padding layers; the padding of their bottoms is moved to their ``pad`` field."""
    maker: dict[str, Any] = dict.fromkeys(param.input)
    kept: list[Any] = []
    for original in param.layers:
        connection = type(original)()
        connection.CopyFrom(original)
        for index, bottom in enumerate(original.bottom):
            padding = maker.get(bottom)
            if padding is not None and padding.layer.type == "padding":
                _check_padding(padding, original)
                connection.layer.pad = padding.layer.pad
                connection.bottom[index] = padding.bottom[0]
        if original.layer.type != "padding":
            kept.append(connection)
        maker.update(dict.fromkeys(original.top, original))
    return kept


def _check_padding(padding: Any, reader: Any) -> None:
    if reader.layer.type not in ("conv", "pool"):
        raise NetError(f"reads the padding layer '{padding.layer.name}'; only conv and pool layers can", layer=reader.layer.name)
    if len(reader.bottom) != 1 or len(padding.bottom) != 1 or len(padding.top) != 1:
        raise NetError(f"the padding layer '{padding.layer.name}' must read one blob and write one", layer=reader.layer.name)


def _upgrade_layer(connection: Any, layer: V1LayerParameter) -> None:
    v0 = connection.layer
    layer.bottom.extend(connection.bottom)
    layer.top.extend(connection.top)
    for field, value in v0.ListFields():
        if field.name == "name":
            layer.name = value
        elif field.name == "type":
            if value not in _TYPES:
                raise NetError(f"its old layer type '{value}' is unknown", layer=v0.name)
            layer.type = type(layer).LayerType.Value(_TYPES[value])
        elif field.name in ("blobs", "blobs_lr", "weight_decay"):
            getattr(layer, field.name).extend(value)
        elif field.name in _TRANSFORM:
            setattr(layer.transform_param, _TRANSFORM[field.name], value)
        elif field.name == "hdf5_output_param" and v0.type == "hdf5_output":
            layer.hdf5_output_param.CopyFrom(value)
        elif field.name in _FIELDS:
            name, types = _FIELDS[field.name]
            if v0.type in types:
                _set(getattr(layer, _PARAM[v0.type]), name, value)


def _set(message: Message, field: str, value: object) -> None:
    current = getattr(message, field)
    if hasattr(current, "append"):
        current.append(value)
    elif hasattr(current, "CopyFrom"):
        current.CopyFrom(value)
    else:
        setattr(message, field, value)
