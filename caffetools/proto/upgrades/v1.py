"""Older forms of networks and solvers, brought to today's, as Caffe's upgrade_proto.cpp does when it reads a file.

In the order of their passing: ``layers { layer {`` (V0), old data transformation fields, ``layers {`` (V1), net-level inputs,
and BatchNorm layers that declare three learnable parameters. Everything happens in memory; files stay as they are.
"""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from typing import Any

from google.protobuf import text_format

from caffetools.errors import CaffeToolsError, NetError
from caffetools.proto.forks.tables import DIALECTS, UNKNOWN, fork_schema
from caffetools.proto.model import Caffemodel
from caffetools.proto.schema import LayerParameter, NetParameter, SolverParameter, V1LayerParameter, enum_name
from caffetools.proto.upgrades.v0 import upgrade_v0_layers

_TRANSFORM_FIELDS = ("scale", "mean_file", "crop_size", "mirror")
_TRANSFORMED = {"DATA": "data_param", "IMAGE_DATA": "image_data_param", "WINDOW_DATA": "window_data_param"}

# The V1 types whose name today isn't their words in capitals (INNER_PRODUCT is InnerProduct).
_V1_TYPES = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "IM2COL": "Im2col",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "RELU6": "ReLU6",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}
# V1 fields that are not in today's layer under the same name: what each becomes is in _upgrade_v1_layer.
_V1_ONLY = ("type", "param", "blob_share_mode", "blobs_lr", "weight_decay", "layer")

_SOLVER_TYPES = {
    "SGD": "SGD",
    "NESTEROV": "Nesterov",
    "ADAGRAD": "AdaGrad",
    "RMSPROP": "RMSProp",
    "ADADELTA": "AdaDelta",
    "ADAM": "Adam",
}


def upgrade_net(param: NetParameter) -> NetParameter:
    """Return ``param`` in today's form: a new ``NetParameter`` where something changes, else ``param`` itself.

    Raises:
        NetError: ``layer`` and ``layers`` are mixed, a V0 layer has no form today, or inputs have no shapes.
    """
    if not _is_old(param):
        return param
    upgraded = _upgraded(param)
    _check_inputs(upgraded, list(param.input))
    return upgraded


def upgrade_caffemodel(model: Caffemodel) -> Caffemodel:
    """Return ``model`` with its network in today's form; the blobs are the same arrays.

    Raises:
        NetError: as :func:`upgrade_net`, except that inputs may lack shapes: old files only name them, and they are left out.
    """
    if not _is_old(model.net):
        return model
    upgraded = _upgraded(model.net)
    return dataclasses.replace(model, net=upgraded, repeated=_moved(model.repeated, model.net, upgraded) if model.repeated else {})


def _moved(repeated: dict[int, Any], before: NetParameter, after: NetParameter) -> dict[int, Any]:
    """Return the arrays of ``repeated`` by the index that each layer has after an upgrade: the k-th of a name stays the k-th."""
    where: dict[str, list[int]] = {}
    for index, layer in enumerate(after.layer):
        where.setdefault(str(layer.name), []).append(index)
    layers: list[Any] = [*before.layers] or [*before.layer]
    counts: dict[str, int] = {}
    moved: dict[int, Any] = {}
    for index, layer in enumerate(layers):
        name = str(layer.name or layer.layer.name) if before.layers else str(layer.name)
        number = counts[name] = counts.get(name, -1) + 1
        if index in repeated and number < len(where.get(name, ())):
            moved[where[name][number]] = repeated[index]
    return moved


def upgrade_solver(param: SolverParameter) -> SolverParameter:
    """Return ``param`` with the old ``solver_type`` turned into ``type``: a new ``SolverParameter``, or ``param`` itself.

    Raises:
        CaffeToolsError: both are given, or the type is a fork's.
    """
    if not param.HasField("solver_type"):
        return param
    if param.HasField("type"):
        raise CaffeToolsError(f"the solver has both solver_type and type ('{param.type}'); keep only type")
    old = enum_name(param, "solver_type")
    if old not in _SOLVER_TYPES:
        raise CaffeToolsError(f"solver_type {old} is a fork's and not computed here; it is one of {', '.join(_SOLVER_TYPES)}")
    upgraded = type(param)()
    upgraded.CopyFrom(param)
    upgraded.type = _SOLVER_TYPES[old]
    upgraded.ClearField("solver_type")
    return upgraded


def _is_old(param: NetParameter) -> bool:
    return bool(param.layers or param.input) or any(_has_learnable_statistics(layer) for layer in param.layer)


def _upgraded(param: NetParameter) -> NetParameter:
    if param.layer and param.layers:
        raise NetError("the net has both 'layer' and 'layers' blocks; write all of them as 'layer'")
    upgraded = NetParameter()
    upgraded.CopyFrom(param)
    upgrade_v0_layers(upgraded)
    _upgrade_transformations(upgraded)
    for v1 in upgraded.layers:
        _upgrade_v1_layer(v1, upgraded.layer.add())
    upgraded.ClearField("layers")
    _upgrade_inputs(upgraded)
    for layer in upgraded.layer:
        if _has_learnable_statistics(layer):
            for spec in layer.param:
                spec.lr_mult = spec.decay_mult = 0.0
    return upgraded


def _upgrade_transformations(param: NetParameter) -> None:
    """Move scale, mean_file, crop_size and mirror of V1 data layers into their transform_param, in place."""
    layers = [(v1, getattr(v1, _TRANSFORMED[enum_name(v1, "type")])) for v1 in param.layers if enum_name(v1, "type") in _TRANSFORMED]
    if not any(source.HasField(field) for _, source in layers for field in _TRANSFORM_FIELDS):
        return
    for v1, source in layers:
        # Caffe gives each of them the two messages, even if there is nothing to move.
        v1.transform_param.SetInParent()
        source.SetInParent()
        for field in _TRANSFORM_FIELDS:
            if source.HasField(field):
                setattr(v1.transform_param, field, getattr(source, field))
                source.ClearField(field)


def _upgrade_v1_layer(v1: V1LayerParameter, layer: LayerParameter) -> None:
    if v1.HasField("type"):
        layer.type = _type_name(enum_name(v1, "type"))
    for field, value in v1.ListFields():
        if field.name in _V1_ONLY:
            continue
        if isinstance(value, str):
            setattr(layer, field.name, value)
        else:
            getattr(layer, field.name).MergeFrom(value)
    for target, source in (
        ("name", v1.param),
        ("share_mode", v1.blob_share_mode),
        ("lr_mult", v1.blobs_lr),
        ("decay_mult", v1.weight_decay),
    ):
        for index, value in enumerate(source):
            while len(layer.param) <= index:
                layer.param.add()
            setattr(layer.param[index], target, value)
    _adopt_fork_fields(layer)


def _adopt_fork_fields(layer: LayerParameter) -> None:
    """Set what a V1 layer of a fork names and V1LayerParameter does not have, kept as text, in a layer of today's form."""
    texts = list(getattr(layer, UNKNOWN))
    layer.ClearField(UNKNOWN)
    for text in texts:
        if kind := re.fullmatch(r"type\s*:\s*(\w+)\W*", text):
            layer.type = _type_name(kind[1])
            continue
        fields = type(layer)()
        try:
            text_format.Parse(text, fields)
        except text_format.ParseError:
            getattr(layer, UNKNOWN).append(text)
        else:
            layer.MergeFrom(fields)


def _type_name(v1: str) -> str:
    """Return the type of today's layer: BVLC Caffe's or a fork's that is spelled alike, else the words in mixed case."""
    if v1 in _V1_TYPES:
        return _V1_TYPES[v1]
    words = re.sub(r"\d[a-z]", lambda found: found[0].upper(), "".join(word.capitalize() for word in v1.split("_")))
    return next((name for name in _fork_types() if name.upper() == words.upper()), words)


@cache
def _fork_types() -> list[str]:
    return sorted({name for dialect in DIALECTS for name in fork_schema(dialect).layers})


def _upgrade_inputs(param: NetParameter) -> None:
    """Turn net-level ``input`` fields and their shapes or dims into an Input layer that stands first, in place.

    Inputs without either are left out, as Caffe leaves them: some nets also have an Input layer.
    """
    shapes = _input_shapes(param) if param.input and (param.input_shape or param.input_dim) else []
    if shapes:
        later = NetParameter(layer=param.layer).layer
        del param.layer[:]
        layer = param.layer.add(name="input", type="Input", top=list(param.input))
        for shape in shapes:
            layer.input_param.shape.add(dim=shape)
        param.layer.extend(later)
    for field in ("input", "input_shape", "input_dim"):
        param.ClearField(field)


def _input_shapes(param: NetParameter) -> list[list[int]]:
    count = len(param.input)
    if param.input_shape:
        if len(param.input_shape) != count:
            raise NetError(f"{count} input(s) but {len(param.input_shape)} input_shape block(s)")
        return [list(shape.dim) for shape in param.input_shape]
    dims = list(param.input_dim)
    if len(dims) != 4 * count:
        raise NetError(f"{count} input(s) need {4 * count} input_dim values or {count} input_shape blocks, not {len(dims)}")
    return [dims[i : i + 4] for i in range(0, len(dims), 4)]


def _check_inputs(param: NetParameter, names: list[str]) -> None:
    made = {top for layer in param.layer for top in layer.top}
    for layer in param.layer:
        for bottom in layer.bottom:
            if bottom in names and bottom not in made:
                raise NetError(f"the input '{bottom}' has no shape; add 4 input_dim values or an input_shape block", layer=layer.name)


def _has_learnable_statistics(layer: LayerParameter) -> bool:
    """Return whether a BatchNorm layer lists its three blobs as parameters to learn, which at first kept the solver off them."""
    return bool(layer.type == "BatchNorm" and len(layer.param) == 3) and any(s.lr_mult != 0 or s.decay_mult != 0 for s in layer.param)
