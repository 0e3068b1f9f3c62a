"""Which class computes which Caffe layer type: one decorator, one lookup."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from caffetools.errors import NetError
from caffetools.proto.forks.tables import DIALECTS, table

if TYPE_CHECKING:
    from caffetools.layers.base import Layer

_LAYERS: dict[str, type[Layer]] = {}

# Layers that read databases and files live in the data room, above this one; they are found by name, so nothing is imported upwards.
_OTHER_ROOMS = ("caffetools.data.layers.builtin", "caffetools.pycaffe.python_layer")

_HINT = "register a class for it from a Python file with --plugin, or cut the net before it"

T = TypeVar("T", bound="type[Layer]")


def register(*types: str) -> Callable[[T], T]:
    """Class decorator: this class computes the layers whose ``type`` is one of ``types``. A type has one class, or it is a bug."""

    def bind(layer_class: T) -> T:
        for name in types:
            if name in _LAYERS:
                raise ValueError(f"layer type {name!r} is registered twice: {_LAYERS[name].__name__} and {layer_class.__name__}")
            _LAYERS[name] = layer_class
        return layer_class

    return bind


def forget(types: Iterable[str]) -> None:
    """Take back the registration of ``types``: of a plugin whose loading failed half way."""
    for name in types:
        _LAYERS.pop(name, None)


def layer_class(type_name: str, *, layer: str | None = None) -> type[Layer]:
    """The class that computes ``type_name``. Raises :class:`NetError`, naming ``layer`` and the closest known types."""
    known = layer_types()
    if type_name in known:
        return known[type_name]
    raise NetError(f"unknown layer type '{type_name}'{suggestion(type_name)}; {_HINT}", layer=layer)


def suggestion(type_name: str) -> str:
    """The end of a message on ``type_name``: the fork that has it, or the known types that are written much like it; may be empty."""
    if forks := [dialect for dialect in DIALECTS if type_name in table(dialect).layers]:
        return f": it is a layer of the fork '{forks[0]}', which is not computed here"
    known = layer_types()
    close = [name for name in known if name.lower() == type_name.lower()] or difflib.get_close_matches(type_name, list(known), n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def layer_types() -> dict[str, type[Layer]]:
    """Every known layer type and its class, by name."""
    _import_all()
    return dict(sorted(_LAYERS.items()))


@cache
def _import_all() -> None:
    package = importlib.import_module("caffetools.layers")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"caffetools.layers.{module.name}")
    for name in _OTHER_ROOMS:
        importlib.import_module(name)
