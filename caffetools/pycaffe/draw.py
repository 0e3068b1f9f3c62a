"""``caffe.draw``: a net as a picture. The graph is written in Graphviz's language, and rendered by its program ``dot``."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from caffetools.errors import CaffeToolsError
from caffetools.layers.registry import traits
from caffetools.net.phases import layer_included, make_state
from caffetools.proto.schema import LayerParameter, NetParameter, enum_name, message_class
from caffetools.pycaffe.errors import also
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]

PoolingParameter = message_class("PoolingParameter")
# pydot's styles of nodes, which scripts that draw their own nodes use.
LAYER_STYLE_DEFAULT = {"shape": "record", "fillcolor": "#6495ED", "style": "filled"}
NEURON_LAYER_STYLE = {"shape": "record", "fillcolor": "#90EE90", "style": "filled"}
BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}

_CONVOLUTION, _POOLING, _LINEAR = "#FF5050", "#FF9900", "#CC33FF"
_OTHER, _BLOB = "#6495ED", "#E0E0E0"


def draw_net_to_file(
    caffe_net: NetParameter, filename: PathLike, rankdir: str = "LR", phase: int | None = None, display_lrm: bool = False
) -> None:
    """Draw a ``NetParameter`` to a file: .dot or .gv as text, any other kind (.png, .svg, .pdf) by Graphviz.

    Args:
        caffe_net: The net.
        filename: The file; its ending gives the kind.
        rankdir: "LR", "TB", "BT" or "RL".
        phase: Only the layers of that phase; None: all.
        display_lrm: Write the learning rate multipliers of weights and bias.

    Raises:
        CaffeToolsError: Graphviz is not installed, or does not know the kind of picture.
    """
    kind = Path(filename).suffix.lstrip(".") or "dot"
    with atomic_write(filename) as stream:
        stream.write(draw_net(caffe_net, rankdir, kind, phase, display_lrm))


def draw_net(caffe_net: NetParameter, rankdir: str, ext: str = "png", phase: int | None = None, display_lrm: bool = False) -> bytes:
    """Return a picture of a ``NetParameter`` as bytes, of the kind ``ext``; see :func:`draw_net_to_file`."""
    text = dot_text(caffe_net, rankdir, phase=phase, display_lrm=display_lrm).encode()
    return text if ext in ("dot", "gv") else render(text, ext)


def render(text: bytes, ext: str) -> bytes:
    """Render a graph by Graphviz to a picture of the kind ``ext``. Raises :class:`CaffeToolsError`."""
    dot = shutil.which("dot")
    if dot is None:
        raise CaffeToolsError(f"a .{ext} picture of a net needs Graphviz, whose program 'dot' is not installed; or write a .dot file")
    done = subprocess.run([dot, f"-T{ext}"], input=text, capture_output=True, check=False)
    if done.returncode:
        raise CaffeToolsError(f"Graphviz cannot draw the net: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def dot_text(
    caffe_net: NetParameter, rankdir: str = "LR", label_edges: bool = True, phase: int | None = None, display_lrm: bool = False
) -> str:
    """Return the graph of a ``NetParameter`` in Graphviz's language: boxes are layers, octagons blobs.

    Args:
        caffe_net: The net.
        rankdir: "LR", "TB", "BT" or "RL".
        label_edges: Write the number of outputs or channels at the arrows.
        phase: Only the layers of that phase; None: all.
        display_lrm: Write the learning rate multipliers of weights and bias.
    """
    lines = [f"digraph {_quoted(caffe_net.name or 'net')} {{", f"  rankdir={_quoted(rankdir)};", '  node [fontname="Helvetica"];']
    blobs: set[str] = set()
    for index, layer in enumerate(_layers(caffe_net, phase)):
        node = f"layer{index}"
        # Wide graphs have room in height.
        label = "\n".join(_label_parts(layer, display_lrm)) if rankdir in ("LR", "RL") else " ".join(_label_parts(layer, display_lrm))
        colour = choose_color_by_layertype(layer.type)
        if list(layer.top) == list(layer.bottom):
            # In place: one blob, with the layer next to it.
            lines.append(f'  {node} [label={_quoted(label)}, shape=box, style="filled,dashed", fillcolor="{colour}"];')
        else:
            lines.append(f'  {node} [label={_quoted(label)}, shape=box, style=filled, fillcolor="{colour}"];')
        blobs.update([*layer.bottom, *layer.top])
        lines += [f"  {_blob(bottom)} -> {node};" for bottom in layer.bottom]
        number = get_edge_label(layer)
        edge = f" [label={_quoted(number)}]" if label_edges and number != '""' else ""
        lines += [f"  {node} -> {_blob(top)}{edge};" for top in layer.top]
    for name in sorted(blobs):
        lines.append(f'  {_blob(name)} [label={_quoted(name)}, shape=octagon, style=filled, fillcolor="{_BLOB}"];')
    return "\n".join([*lines, "}", ""])


def get_pydot_graph(
    caffe_net: NetParameter, rankdir: str, label_edges: bool = True, phase: int | None = None, display_lrm: bool = False
) -> Any:
    """Return the graph of a ``NetParameter`` as a ``pydot.Dot``, for scripts that work on it (``create_png``).

    Args:
        caffe_net: The net.
        rankdir: "LR", "TB", "BT" or "RL".
        label_edges: Write the number of outputs or channels at the arrows.
        phase: Only the layers of that phase; None: all.
        display_lrm: Write the learning rate multipliers of weights and bias.

    Raises:
        CaffeToolsError: pydot is not installed.
    """
    try:
        pydot = importlib.import_module("pydot")
    except ImportError:
        raise also(
            CaffeToolsError("caffe.draw.get_pydot_graph needs the package pydot (pip install pydot); draw_net_to_file works without it"),
            ImportError,
        ) from None
    return pydot.graph_from_dot_data(dot_text(caffe_net, rankdir, label_edges, phase, display_lrm))[0]


def get_layer_lr_mult(layer: LayerParameter) -> tuple[float, float]:
    """Return the learning rate multipliers of a layer's weights and bias, 1 where none is given.

    Raises:
        ValueError: The layer is of a type that pycaffe does not label with them, or has more of them.
    """
    if traits(layer).role != "classifier":
        raise ValueError(f"{layer.type} layers do not have a learning rate multiplier")
    if len(layer.param) > 2:
        raise ValueError("Could not parse the learning rate multiplier")
    first, second, *_ = *(spec.lr_mult for spec in layer.param), 1.0, 1.0
    return first, second


def get_pooling_types_dict() -> dict[int, str]:
    """Return the names of the pooling methods by number."""
    values = PoolingParameter.DESCRIPTOR.enum_types_by_name["PoolMethod"].values
    return {value.number: value.name for value in values}


def get_layer_label(layer: LayerParameter, rankdir: str, display_lrm: bool = False) -> str:
    r"""Return the text of a layer's box in double quotes, as pydot takes it: name, type, and kernel, stride and pad where it has them.

    Args:
        layer: The layer.
        rankdir: "LR" and "RL" separate the parts by ``\n``, others by a space.
        display_lrm: Add the learning rate multipliers of weights and bias.
    """
    separator = r"\n" if rankdir in ("LR", "RL") else " "
    return f'"{separator.join(_label_parts(layer, display_lrm))}"'


def get_edge_label(layer: LayerParameter) -> str:
    """Return the text of the arrow out of a layer, as pydot takes it: the number of its outputs, a data layer's batch, or ``""`` in quotes."""
    facts = traits(layer.type)
    if facts.role == "data" and facts.source:
        return f"Batch {getattr(layer, facts.source).batch_size}"
    return str(facts.num_output(layer)) if facts.role == "classifier" else '""'


def choose_color_by_layertype(layertype: str) -> str:
    """Return the colour of a layer's box."""
    if _convolves(layertype):
        return _CONVOLUTION
    return {"pooling": _POOLING, "classifier": _LINEAR}.get(traits(layertype).role, _OTHER)


def _label_parts(layer: LayerParameter, display_lrm: bool) -> list[str]:
    parts = [str(layer.name), f"({layer.type})"]
    facts = traits(layer)
    pools = facts.role == "pooling"
    if pools or _convolves(layer.type):
        param = facts.settings_of(layer)
        if pools:
            parts[1] = f"({layer.type} {enum_name(param, 'pool')})"
        parts += [f"{what}: {_window(param, name, short, default)}" for what, name, short, default in _WINDOWS]
    if display_lrm and facts.role == "classifier" and any(get_layer_lr_mult(layer)):
        parts.append("lr mult: {:.1f}, {:.1f}".format(*get_layer_lr_mult(layer)))
    return parts


def _convolves(layertype: str) -> bool:
    facts = traits(layertype)
    return facts.coordinates in ("window", "transposed") and bool(facts.outputs)


_WINDOWS = (("kernel size", "kernel_size", "kernel", 0), ("stride", "stride", "stride", 1), ("pad", "pad", "pad", 0))


def _window(param: Message, name: str, short: str, default: int) -> str:
    if param.HasField(f"{short}_h") or param.HasField(f"{short}_w"):
        return f"{getattr(param, f'{short}_h')}x{getattr(param, f'{short}_w')}"
    value = getattr(param, name)
    values = list(value) if hasattr(value, "extend") else [value]
    return "x".join(map(str, values)) or str(default)


def _layers(net: NetParameter, phase: int | None) -> Iterator[Any]:
    for layer in net.layer:
        if phase is None or layer_included(layer, make_state(phase)):
            yield layer


def _blob(name: str) -> str:
    return _quoted(f"blob {name}")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
