"""The sizes that a net was exported with, kept in the ONNX file's metadata where the model itself leaves height or width free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from caffetools.layers.base import Shape

_PROPERTY = "caffetools.input_shapes"


def shapes_to_properties(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Return ONNX ``metadata_props`` that :func:`fill_free_axes` reads; input → its shape in the net."""
    return {_PROPERTY: json.dumps({name: list(shape) for name, shape in shapes.items()}, ensure_ascii=False)}


def fill_free_axes(name: str, dims: Sequence[int | str | None], properties: Mapping[str, str]) -> Shape | None:
    """Return the shape of input ``name`` with a size for every axis that the model leaves free.

    A free batch size becomes 1; the others are those that the file was exported with.

    Args:
        name: The input.
        dims: Its axes as the model declares them; a free one is a name, None, or below 1.
        properties: The model's ``metadata_props``.

    Returns:
        The shape; None where a size is free and the file does not say what it was in the net.
    """
    fixed = [size if isinstance(size, int) and size > 0 else None for size in dims]
    known = [1, *fixed[1:]] if fixed and fixed[0] is None else fixed
    if None in known:
        kept = _kept(name, properties)
        if len(kept) != len(fixed) or any(size not in (None, kept[axis]) for axis, size in enumerate(fixed[1:], 1)):
            return None
        known = [known[0], *kept[1:]]
    return tuple(size for size in known if size is not None)


def _kept(name: str, properties: Mapping[str, str]) -> list[int]:
    """Return the shape in the metadata; [] where there is none or another program wrote something else there."""
    try:
        shapes = json.loads(properties.get(_PROPERTY, "{}"))
    except ValueError:
        return []
    shape = shapes.get(name) if isinstance(shapes, dict) else None
    return shape if isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape) else []
