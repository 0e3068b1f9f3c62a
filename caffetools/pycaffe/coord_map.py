"""``caffe.coord_map``: maps of pixel coordinates between tops, and the Crop layers that align them, for fully convolutional nets.

A map is (axis, factor, offset): on the axes after ``axis``, coordinate x of one top is ``factor * x + offset`` in another.
Layers are those of a :class:`~caffetools.pycaffe.net_spec.NetSpec`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from caffetools.errors import NetError
from caffetools.layers.registry import layer_types, traits
from caffetools.pycaffe.errors import also
from caffetools.pycaffe.net_spec import Function, Top, layers

L = layers

# (first axis, factor, offset). Without an axis the map is the same for all; else factor and offset are arrays, of one value for all axes or one an axis.
Map = tuple[int | None, Any, Any]


class UndefinedMapException(NetError, RuntimeError):
    """There is no map of coordinates: two tops are not connected by layers that have one."""


class AxisMismatchException(NetError):
    """Two maps apply to different axes."""


def coord_map(fn: Function) -> Map:
    """Return the map from the coordinates of a layer's bottoms to those of its top.

    Args:
        fn: The layer.

    Returns:
        (axis, factor, offset): on the axes after ``axis``, x in the bottom is ``factor * x + offset`` in the top.

    Raises:
        UndefinedMapException: The type of layer has none.
    """
    coordinates = traits(fn.type_name).coordinates
    if coordinates == "window":
        axis, stride, kernel, pad = conv_params(fn)
        return axis, 1 / stride, (pad - (kernel - 1) / 2) / stride
    if coordinates == "transposed":
        axis, stride, kernel, pad = conv_params(fn)
        return axis, stride, (kernel - 1) / 2 - pad
    if coordinates == "same":
        return None, 1, 0
    if coordinates == "crop":
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset
    raise UndefinedMapException(f"a {fn.type_name} layer has no map of coordinates")


def conv_params(fn: Function) -> tuple[int, Any, Any, Any]:
    """Return (channel axis, stride, kernel extent, pad) of a layer with windows; arrays of one value, or of one an axis."""
    given = dict(fn.params)
    for name in ("convolution_param", "pooling_param"):
        given.update(given.pop(name, {}))
    axis = int(given.get("axis", 1))
    kernel = _spatial(given, "kernel_size", "kernel", None)
    extent = _spatial(given, "dilation", "dilation", 1) * (kernel - 1) + 1
    return axis, _spatial(given, "stride", "stride", 1), extent, _spatial(given, "pad", "pad", 0)


def crop_params(fn: Function) -> tuple[int, Any]:
    """Return (axis, offset) of a Crop layer."""
    given = {**fn.params, **fn.params.get("crop_param", {})}
    offset = given.get("offset", 0)
    return int(given.get("axis", 2)), np.array(offset, ndmin=1)


def compose(base_map: Map, next_map: Map) -> Map:
    """Return ``base_map`` after ``next_map``. Raises :class:`AxisMismatchException` where they apply to different axes."""
    axis1, a1, b1 = base_map
    axis2, a2, b2 = next_map
    if axis1 is None:
        axis = axis2
    elif axis2 is None or axis1 == axis2:
        axis = axis1
    else:
        raise AxisMismatchException(f"one map is of the axes after {axis1}, the other of those after {axis2}")
    return axis, a1 * a2, a1 * b2 + b1


def inverse(coord_map: Map) -> Map:
    """Return the inverse of a map."""
    axis, a, b = coord_map
    return axis, 1 / a, -b / a


def coord_map_from_to(top_from: Top, top_to: Top) -> Map:
    """Return the map from the coordinates of ``top_from`` to those of ``top_to``, through a top that both are computed from.

    Args:
        top_from: The top whose coordinates are mapped.
        top_to: The top they are mapped to.

    Raises:
        UndefinedMapException: They have no top in common, or a layer between has no map.
        AxisMismatchException: The layers between apply to different axes.
    """
    below_from = dict(_maps_below(top_from))
    for top, map_ in _maps_below(top_to):
        if top in below_from:
            return compose(map_, inverse(below_from[top]))
    raise UndefinedMapException("could not compute the map between the two tops; are they connected by spatial layers?")


def crop(top_from: Top, top_to: Top) -> Top:
    """Return the top of a Crop layer that cuts ``top_from`` to the size of ``top_to``, with their pixels aligned.

    Args:
        top_from: The top to cut.
        top_to: The top whose size it gets.

    Raises:
        NetError: They cannot be aligned: one is finer than the other, or the offset is not a whole number of pixels, or negative; also a
            ValueError and, as in Caffe, an AssertionError.
    """
    axis, a, b = coord_map_from_to(top_from, top_to)
    if not np.allclose(a, 1):
        raise _misfit(f"cannot crop: the two tops differ in scale ({a}); their strides must cancel out")
    if np.any(np.asarray(b) > 1e-6):
        raise _misfit(f"cannot crop with a negative offset ({-np.asarray(b)}): the top to crop is not large enough; pad it")
    if np.any(np.abs(np.asarray(b) - np.round(b)) > 1e-6):
        raise _misfit(f"cannot crop: the offset {-np.asarray(b)} is not a whole number of pixels; change pad or kernel_size")
    offset = (-np.round(np.asarray(b, float))).astype(int)
    return layers.Crop(  # type: ignore[no-any-return]
        top_from, top_to, crop_param={"axis": 2 if axis is None else axis + 1, "offset": offset.tolist()}
    )


def __getattr__(name: str) -> Any:
    if name == "PASS_THROUGH_LAYERS":
        return [kind for kind in layer_types() if traits(kind).coordinates == "same"]
    raise AttributeError(name)


def _misfit(message: str) -> Exception:
    return also(NetError(message), ValueError, AssertionError)


def _maps_below(top: Top) -> Iterator[tuple[Top, Map]]:
    """Yield ``top`` and the tops below it, nearest first, each with the map from its coordinates to those of ``top``."""
    waiting: list[tuple[Top, Map]] = [(top, (None, 1, 0))]
    seen = {top}
    while waiting:
        current, map_ = waiting.pop(0)
        yield current, map_
        # The second bottom of a Crop only gives the size.
        bottoms = current.fn.inputs[:1] if traits(current.fn.type_name).coordinates == "crop" else current.fn.inputs
        for bottom in bottoms:
            if bottom in seen:
                continue
            try:
                below = compose(map_, coord_map(current.fn))
            except UndefinedMapException:
                continue
            seen.add(bottom)
            waiting.append((bottom, below))


def _spatial(given: Mapping[str, Any], name: str, short: str, default: int | None) -> Any:
    if f"{short}_h" in given or f"{short}_w" in given:
        fallback = default or 0
        return np.array([given.get(f"{short}_h", fallback), given.get(f"{short}_w", fallback)])
    value = given.get(name, default)
    if value is None:
        raise UndefinedMapException(f"a layer with windows needs {name}")
    return np.array(value, ndmin=1)
