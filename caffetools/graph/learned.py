"""Which parameter blobs a layer learns, from what its class declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FunctionType

from caffetools.errors import CaffeToolsError
from caffetools.graph.graph import Graph, shapes_in
from caffetools.graph.summary import summarize
from caffetools.layers.base import BlobSpec, Layer, Shape
from caffetools.layers.registry import is_known, layer_class, traits
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter

_cache: dict[bytes, list[BlobSpec] | None] = {}
_MOST_CACHED = 10_000
_without: dict[type[Layer], bool] = {}


def declared_blobs(layer: LayerParameter, bottoms: Sequence[Shape] | None = None) -> list[BlobSpec] | None:
    """Return the parameter blobs that a layer's class declares.

    Args:
        layer: A ``LayerParameter``.
        bottoms: The shapes of its bottoms, where they are known; otherwise shapes that fit its settings are tried, since the number
            of blobs and what is learned of them rarely depend on the bottoms' sizes.

    Returns:
        The specs in Caffe's order, or None where the type is not known or the shapes do not fit it. The module of a Python layer is
        imported and its ``setup`` is called.
    """
    if not is_known(layer.type):
        return None
    if traits(layer).role == "data":
        return []
    if _has_none(layer_class(layer.type)):
        return []
    if bottoms is not None:
        return _declared(layer, bottoms)
    key = _key(layer)
    if key not in _cache:
        if len(_cache) >= _MOST_CACHED:
            _cache.clear()
        _cache[key] = _declared(layer, layer_class(layer.type).example_shapes(layer))
    return _cache[key]


def count_learned(layer: LayerParameter, bottoms: Sequence[Shape] | None = None) -> int | None:
    """Return how many ``param`` entries name the blobs that a layer learns: up to the last learned one.

    Args:
        layer: A ``LayerParameter``.
        bottoms: As for :func:`declared_blobs`.

    Returns:
        The number, 0 where nothing is learned; None where it is not known.
    """
    specs = declared_blobs(layer, bottoms)
    if specs is None:
        return None
    return max((index + 1 for index, spec in enumerate(specs) if spec.learnable), default=0)


def _has_none(made: type[Layer]) -> bool:
    """Return whether a class of this package declares no blobs for any bottoms: none of its methods calls ``declare_blob``."""
    if made not in _without:
        _without[made] = _never_declares(made)
    return _without[made]


def _never_declares(made: type[Layer]) -> bool:
    methods = [method for part in made.__mro__ if part is not Layer for method in vars(part).values() if isinstance(method, FunctionType)]
    return made.__module__.startswith("caffetools.") and not any("declare_blob" in method.__code__.co_names for method in methods)


def _declared(layer: LayerParameter, bottoms: Sequence[Shape]) -> list[BlobSpec] | None:
    try:
        made = layer_class(layer.type)(layer, TEST)
        if not made.tops and made.IS_LOSS:
            made.tops = [made.name]
        made.configure(bottoms)
    except Exception:  # a plugin's or a Python layer's own code may raise anything for shapes that it does not expect
        return None
    return list(made.specs)


class LearnedBlobs:
    """Counts the learned blobs of the layers of one net, from shapes that fit a layer's settings or else from the net's own.

    Args:
        net: A ``NetParameter`` in today's form.
        shapes: Shapes of inputs by blob, where the net does not state them; ``""`` is the first input.
    """

    def __init__(self, net: NetParameter, shapes: Mapping[str, Shape] | None = None):
        self._net, self._shapes = net, dict(shapes or {})
        self._known: dict[str, Shape] | None = None

    def count(self, layer: LayerParameter) -> int | None:
        """Return how many blobs ``layer`` learns, as :func:`count_learned`; None where that is not known."""
        number = count_learned(layer)
        if number is None and is_known(layer.type):
            known = self._blob_shapes()
            if all(bottom in known for bottom in layer.bottom):
                number = count_learned(layer, [known[bottom] for bottom in layer.bottom])
        return number

    def _blob_shapes(self) -> dict[str, Shape]:
        if self._known is None:
            self._known = {}
            for phase in (TRAIN, TEST):
                with suppress(CaffeToolsError):
                    given = shapes_in(Graph(self._net, phase), self._shapes)
                    rows = summarize(self._net, phase, shapes=given).layers
                    self._known |= {top: shape for row in rows for top, shape in zip(row.tops, row.shapes, strict=True) if shape}
        return self._known


def _key(layer: LayerParameter) -> bytes:
    """Return the settings without what gives a layer its place in the net."""
    settings = LayerParameter()
    settings.CopyFrom(layer)
    for field in ("name", "param", "include", "exclude", "loss_weight"):
        settings.ClearField(field)
    bottoms, tops = len(layer.bottom), len(layer.top)
    settings.bottom[:], settings.top[:] = [f"b{i}" for i in range(bottoms)], [f"t{i}" for i in range(tops)]
    return bytes(settings.SerializeToString(deterministic=True))
