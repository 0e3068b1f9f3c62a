"""``NetSpec``: writing a network as Python expressions.

``L.Convolution(bottom, kernel_size=3, num_output=8)`` is a layer of type Convolution, applied to a top and returning one (or ``ntop``
of them). The field of ``LayerParameter`` that an argument sets is found in the schema: ``convolution_param`` for the
arguments of a Convolution that it has, ``LayerParameter`` itself for others (``param``, ``include``, ``loss_weight``, ``name``).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf.message import Message

from caffetools.errors import NetError, did_you_mean
from caffetools.layers.registry import layer_types
from caffetools.proto.schema import LayerParameter, NetParameter, message_class
from caffetools.pycaffe.errors import also
from caffetools.pycaffe.proto import caffe_pb2

__all__ = [
    "Counter",
    "Function",
    "Layers",
    "NetSpec",
    "OrderedDict",
    "Parameters",
    "Top",
    "assign_proto",
    "caffe_pb2",
    "layers",
    "param_name_dict",
    "params",
    "to_proto",
]


class UnknownTop(AttributeError, KeyError):
    """A top that was not set: an AttributeError, and a KeyError as in Caffe."""

    def __str__(self) -> str:
        return str(self.args[0])


class Top:
    """Output ``n`` of a layer, which other layers take as a bottom.

    Args:
        fn: The layer.
        n: The number of the output.
    """

    def __init__(self, fn: Function, n: int):
        self.fn, self.n = fn, n

    def to_proto(self) -> NetParameter:
        """Return the ``NetParameter`` of this top and all that it needs."""
        return to_proto(self)

    def _to_proto(self, layers: OrderedDict[Any, Any], names: dict[Any, str], autonames: Counter[str]) -> LayerParameter:
        return self.fn._to_proto(layers, names, autonames)

    def _update(self, params: dict[str, Any]) -> None:
        self.fn.params.update(params)

    def __repr__(self) -> str:
        return f"<top {self.n} of {self.fn!r}>"


class Function:
    """A layer.

    Args:
        type_name: Its type.
        inputs: The tops that it reads.
        params: Its parameters, and ``ntop`` and ``in_place``.

    Raises:
        TypeError: An input is not a :class:`Top`.
    """

    def __init__(self, type_name: str, inputs: tuple[Any, ...], params: dict[str, Any]):
        for index, top in enumerate(inputs):
            if not isinstance(top, Top):
                raise TypeError(f"{type_name} input {index} is not a Top (type is {type(top)})")
        self.type_name, self.inputs = type_name, tuple(inputs)
        self.params = dict(params)
        self.ntop = int(self.params.pop("ntop", 1))
        self.in_place = bool(self.params.pop("in_place", False))
        self.tops = tuple(Top(self, n) for n in range(self.ntop))

    def to_proto(self) -> NetParameter:
        """Return the ``NetParameter`` of this layer and all that it needs."""
        return to_proto(self)

    def _to_proto(self, layers: OrderedDict[Any, Any], names: dict[Any, str], autonames: Counter[str]) -> LayerParameter:
        """Write this layer and all that it needs into ``layers``, as fork's net specs do; return its ``LayerParameter``."""
        writer = _Writer(names, layers, autonames)
        writer.add(self)
        written: LayerParameter = writer.written[self]
        return written

    def _get_name(self, names: dict[Any, str], autonames: Counter[str]) -> str:
        return _Writer(names, None, autonames).name_of(self)

    def _get_top_name(self, top: Top, names: dict[Any, str], autonames: Counter[str]) -> str:
        return _Writer(names, None, autonames).name_of_top(top)

    def __repr__(self) -> str:
        return f"<{self.type_name} layer>"


class NetSpec:
    """A network being written: tops set as attributes (or items) name blobs, and :meth:`to_proto` writes their layers in order."""

    def __init__(self) -> None:
        object.__setattr__(self, "tops", OrderedDict())

    def __setattr__(self, name: str, value: object) -> None:
        self[name] = value

    def __getattr__(self, name: str) -> Any:
        try:
            return self.tops[name]
        except KeyError:
            raise UnknownTop(f"the net has no top '{name}'{did_you_mean(name, self.tops)}") from None

    def __delattr__(self, name: str) -> None:
        del self.tops[name]

    def __setitem__(self, name: str, value: object) -> None:
        self.tops[name] = value

    def __getitem__(self, name: str) -> Any:
        return self.tops[name]

    def __delitem__(self, name: str) -> None:
        del self.tops[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tops

    def keys(self) -> list[str]:
        """Return the names of the tops in order, as in SSD's fork."""
        return list(self.tops)

    def vals(self) -> list[Any]:
        """Return the tops in order, as in SSD's fork."""
        return list(self.tops.values())

    def update(self, name: str, params: dict[str, Any]) -> None:
        """Change parameters of the layer that produces a top, as in SSD's fork.

        Args:
            name: Name of the top.
            params: Parameters as given to the layer; those of the same name are replaced.

        Raises:
            KeyError: There is no such top.
        """
        self.tops[name].fn.params.update(params)

    def to_proto(self) -> NetParameter:
        """Return the ``NetParameter`` of all tops that were set, and all that they need. Raises :class:`NetError` for a wrong argument."""
        return _write(self.tops)


class Layers:
    """``layers.TYPE(*bottoms, **params)``: a layer's tops; the layer itself for ``ntop=0``."""

    def __getattr__(self, type_name: str) -> Any:
        if type_name.startswith("__"):
            raise AttributeError(type_name)

        def make(*bottoms: object, **params: object) -> Any:
            function = Function(type_name, bottoms, params)
            return function if function.ntop == 0 else function.tops[0] if function.ntop == 1 else function.tops

        return make


class Parameters:
    """``params.Pooling.MAX``: an enum value of ``PoolingParameter``."""

    class _Message:
        def __init__(self, name: str):
            self._name = name

        def __getattr__(self, value: str) -> int:
            try:
                message = message_class(f"{self._name}Parameter")
            except KeyError:
                raise AttributeError(f"module 'caffe.proto.caffe_pb2' has no attribute '{self._name}Parameter'") from None
            return getattr(message, value)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> _Message:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._Message(name)


layers: Any = Layers()
params = Parameters()


def to_proto(*tops: object) -> NetParameter:
    """Return the ``NetParameter`` of ``tops`` (or layers without tops) and all that they need; blobs get names such as Convolution1.

    Raises:
        TypeError: Something is not a top or a layer.
        AttributeError: A layer has no such parameter.
        NetError: A parameter's value does not fit; also of the type that Caffe raises.
    """
    return _write(OrderedDict((f"\0{index}", top) for index, top in enumerate(tops)))


@cache
def param_name_dict() -> dict[str, str]:
    """Return layer type → the name of its field in ``LayerParameter``, without ``_param``: ``{"Convolution": "convolution", …}``."""
    names: dict[str, str] = {}
    for field in LayerParameter.DESCRIPTOR.fields:
        if field.message_type is not None and field.name.endswith("_param") and field.message_type.name.endswith("Parameter"):
            # The first counts: forks have second fields of a message, such as relu6_param.
            names.setdefault(field.message_type.name.removesuffix("Parameter"), field.name.removesuffix("_param"))
    # Layers that take another's parameters.
    for name, layer_class in layer_types().items():
        if layer_class.TRAITS.settings:
            names.setdefault(name, layer_class.TRAITS.settings.removesuffix("_param"))
    return names


def assign_proto(proto: Message, name: str, val: object) -> None:
    """Set a field of a message from Python values.

    Args:
        proto: The message.
        name: The field.
        val: A number, a text, a dict for a message, a list (or one value) for a repeated field.

    Raises:
        AttributeError: The message has no field of that name.
        TypeError: The value does not fit the field; or ValueError.
    """
    field = proto.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        known = list(proto.DESCRIPTOR.fields_by_name)
        raise AttributeError(f"{proto.DESCRIPTOR.name} has no field '{name}'{did_you_mean(name, known)}")
    current = getattr(proto, name)
    if hasattr(current, "extend"):
        for item in _listed(val):
            if field.message_type is None:
                current.append(_enum(field, item))
            elif isinstance(item, dict):
                _assign_all(current.add(), item)
            else:
                current.add().CopyFrom(item)
    elif field.message_type is not None:
        if isinstance(val, dict):
            current.SetInParent()
            _assign_all(current, val)
        else:
            current.CopyFrom(val)
    else:
        setattr(proto, name, _enum(field, val))


def _assign_all(message: Message, values: dict[str, Any]) -> None:
    for name, value in values.items():
        assign_proto(message, name, value)


def _listed(value: object) -> Iterator[Any]:
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__iter__"):
        yield value
    else:
        yield from value


def _enum(field: Any, value: object) -> Any:
    if field.enum_type is not None and isinstance(value, str):
        number = field.enum_type.values_by_name.get(value)
        if number is None:
            raise ValueError(f"'{value}' is not one of {', '.join(field.enum_type.values_by_name)} ({field.name})")
        return number.number
    # protobuf does not take NumPy's numbers, nor, as the one that Caffe was written for does, a bool for a number.
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, bool) and field.enum_type is None and field.cpp_type != field.CPPTYPE_BOOL else value


def _write(named: OrderedDict[str, Any]) -> NetParameter:
    writer = _Writer({value: name for name, value in named.items() if not name.startswith("\0")})
    for index, (name, value) in enumerate(named.items()):
        if not isinstance(value, (Top, Function)):
            shown = f"argument {index}" if name.startswith("\0") else f"'{name}'"
            raise TypeError(f"{shown} must be a top, or a layer with ntop=0, not {value!r}; several tops are set as n.a, n.b = L.X(ntop=2)")
        writer.add(value.fn if isinstance(value, Top) else value)
    net = NetParameter()
    net.layer.extend(writer.written.values())
    return net


class _Writer:
    """Writes layers after those that they need, and names those without a name.

    Args:
        names: Names of tops and layers; more are added.
        written: Layers already written, to which more are added.
        counts: How many names each type has.
    """

    def __init__(self, names: dict[Any, str], written: OrderedDict[Function, Any] | None = None, counts: Counter[str] | None = None):
        self.names = names
        self.written: OrderedDict[Function, Any] = OrderedDict() if written is None else written
        self.counts: Counter[str] = Counter() if counts is None else counts

    def add(self, function: Function) -> None:
        # Not by recursion: a ResNet is deeper than Python's stack.
        waiting: list[tuple[Function, bool]] = [(function, False)]
        while waiting:
            item, ready = waiting.pop()
            if item in self.written:
                continue
            if ready:
                self.written[item] = self._layer(item)
            else:
                waiting.append((item, True))
                waiting += [(top.fn, False) for top in reversed(item.inputs)]

    def _layer(self, function: Function) -> Any:
        layer = LayerParameter(type=function.type_name)
        layer.bottom.extend(self.written[top.fn].top[top.n] for top in function.inputs)
        if function.in_place:
            layer.top.extend(layer.bottom)
        else:
            layer.top.extend(self.name_of_top(top) for top in function.tops)
        layer.name = self.name_of(function)
        for name, value in function.params.items():
            self._set(layer, function, name, value)
        return layer

    def _set(self, layer: LayerParameter, function: Function, name: str, value: object) -> None:
        try:
            inner = param_name_dict().get(function.type_name)
            if not name.endswith("param") and inner is not None:
                message = getattr(layer, f"{inner}_param")
                if name in message.DESCRIPTOR.fields_by_name:
                    assign_proto(message, name, value)
                    return
            if name not in layer.DESCRIPTOR.fields_by_name and inner is not None:
                known = [*getattr(layer, f"{inner}_param").DESCRIPTOR.fields_by_name, *layer.DESCRIPTOR.fields_by_name]
                raise AttributeError(f"there is no parameter '{name}'{did_you_mean(name, known)}")
            assign_proto(layer, name, value)
        except (AttributeError, TypeError, ValueError) as error:
            # In Caffe the error of protobuf comes out.
            raise also(NetError(f"({function.type_name}) {name}={value!r}: {error}", layer=layer.name), type(error)) from None

    def name_of(self, function: Function) -> str:
        """Return the layer's name: its first top's, or a numbered one."""
        if function not in self.names:
            self.names[function] = self.name_of_top(function.tops[0]) if function.tops else self._count(function)
        return self.names[function]

    def name_of_top(self, top: Top) -> str:
        """Return the top's name: the one that was set, or a numbered one."""
        if top not in self.names:
            self.names[top] = self._count(top.fn)
        return self.names[top]

    def _count(self, function: Function) -> str:
        self.counts[function.type_name] += 1
        return f"{function.type_name}{self.counts[function.type_name]}"
