"""Which class computes which Caffe layer type, and what is true of each type."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from caffetools.errors import NetError
from caffetools.layers.traits import Role, Traits
from caffetools.proto.forks.tables import DIALECTS, fork_schema
from caffetools.proto.schema import LayerParameter

if TYPE_CHECKING:
    from caffetools.layers.base import Layer

# Installed packages name modules that register layers under this group of entry points.
ENTRY_POINTS = "caffetools.layers"

_HINT = "register a class for it from a Python file with --plugin, or cut the net before it"

log = logging.getLogger(__name__)
T = TypeVar("T", bound="type[Layer]")

_LAYERS: dict[str, type[Layer]] = {}
# Counts the changes to the registry, so that what was derived from it can be kept.
_generation = 0
# Classes of types that are not computed, of which other rooms need to know something.
_DECLARED: dict[str, type[Layer]] = {}
# The traits of types whose layers all have the same, as they were asked for: nets of thousands of layers are asked many times.
_FIXED: dict[str, Traits] = {}
# Entry points that could not be loaded, and why.
_BROKEN: dict[str, str] = {}


def register(*types: str) -> Callable[[T], T]:
    """Bind a class to layer types; a class decorator.

    Args:
        types: The values of ``type`` that the class computes. The first is the class's :attr:`Layer.TYPE`, the others are spellings
            that forks use.

    Raises:
        ValueError: A type has another class already.
    """

    def bind(layer_class: T) -> T:
        for name in types:
            if name in _LAYERS:
                raise ValueError(f"layer type {name!r} is registered twice: {_LAYERS[name].__name__} and {layer_class.__name__}")
            _LAYERS[name] = layer_class
        _changed()
        layer_class.TYPE = types[0]
        return layer_class

    return bind


def unregister(types: Iterable[str]) -> None:
    """Remove the classes of ``types``, such as those of a plugin whose loading failed half way."""
    for name in types:
        _LAYERS.pop(name, None)
    _changed()


def generation() -> int:
    """Return a number that changes whenever a type is registered or unregistered."""
    _load()
    return _generation


def _changed() -> None:
    global _generation
    _generation += 1
    _FIXED.clear()


def declare(*types: str) -> Callable[[T], T]:
    """Bind a class that only states facts to layer types that are not computed; a class decorator.

    A class that is registered for one of the types takes precedence.

    Args:
        types: The values of ``type``.
    """

    def bind(layer_class: T) -> T:
        _DECLARED.update(dict.fromkeys(types, layer_class))
        _FIXED.clear()
        return layer_class

    return bind


def described(type_name: str) -> type[Layer] | None:
    """Return the class that computes a type, or else the one that only states facts about it; None for other types."""
    _load()
    return _LAYERS.get(type_name) or _DECLARED.get(type_name)


def layer_class(type_name: str, *, layer: str | None = None) -> type[Layer]:
    """Return the class that computes ``type_name``.

    Args:
        type_name: The type, as in the prototxt.
        layer: The name of the layer, for the error.

    Raises:
        NetError: The type is not known; the message names the closest known types.
    """
    _load()
    if type_name in _LAYERS:
        return _LAYERS[type_name]
    raise NetError(f"unknown layer type '{type_name}'{suggestion(type_name)}; {_HINT}", layer=layer)


def is_known(type_name: str) -> bool:
    """Return whether a class computes ``type_name``."""
    _load()
    return type_name in _LAYERS


def layer_types() -> dict[str, type[Layer]]:
    """Return every known layer type and its class, sorted by name."""
    _load()
    return dict(sorted(_LAYERS.items()))


def types(*, role: Role) -> list[str]:
    """Return the names of the known types with ``role``, sorted."""
    return [name for name, layer_class in layer_types().items() if layer_class.TRAITS.role == role]


def traits(layer: LayerParameter | str) -> Traits:
    """Return the traits of a layer or of a layer type.

    Args:
        layer: A ``LayerParameter``, whose settings may matter, or the name of a type.

    Returns:
        The traits that the type's class states. A type without a class has the role ``unknown``, or ``loss`` where its name ends
        in "Loss", as those of all forks do.
    """
    name = layer if isinstance(layer, str) else layer.type
    if (fixed := _FIXED.get(name)) is not None:
        return fixed
    found = described(name)
    if found is None:
        return _UNKNOWN_LOSS if name.endswith("Loss") else _UNKNOWN
    if found.has_fixed_traits():
        return _FIXED.setdefault(name, found.TRAITS)
    return found.TRAITS if isinstance(layer, str) else found.traits(layer)


def suggestion(type_name: str) -> str:
    """Return the end of a message on an unknown type: the fork that has it, or known types with a similar name; may be empty."""
    if forks := [dialect for dialect in DIALECTS if type_name in fork_schema(dialect).layers]:
        return f": it is a layer of the fork '{forks[0]}', which is not computed here"
    known = layer_types()
    close = [name for name in known if name.lower() == type_name.lower()] or difflib.get_close_matches(type_name, list(known), n=2)
    broken = "".join(f"; the installed package '{name}', which adds layers, cannot be loaded: {reason}" for name, reason in _BROKEN.items())
    return (f"; did you mean {' or '.join(close)}?" if close else "") + broken


_UNKNOWN, _UNKNOWN_LOSS = Traits(role="unknown"), Traits(role="loss")


@cache
def _load() -> None:
    """Import the modules that register layers: the package's own, and those that installed packages name."""
    importlib.import_module("caffetools.builtin")
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        before = set(_LAYERS)
        try:
            point.load()
        except Exception as error:
            unregister(set(_LAYERS) - before)
            _BROKEN[point.name] = f"{type(error).__name__}: {error}"
            log.warning("the layers of the installed package '%s' cannot be loaded: %s", point.name, _BROKEN[point.name])
