"""From an ONNX model to a Caffe net: deploy.prototxt and weights.caffemodel, compared with the model before they are written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from caffetools.layers.base import Shape
from caffetools.layers.concat import Split
from caffetools.onnx import import_ops
from caffetools.onnx.import_check import check
from caffetools.onnx.import_einsum import expand_einsums
from caffetools.onnx.import_graph import ImportFailed, Node, prepare
from caffetools.onnx.import_layout import channels_first
from caffetools.onnx.import_net import TARGETS, NetWriter, Target, clean_name, find_handler
from caffetools.onnx.import_ops.refused import why_not
from caffetools.onnx.import_patterns import merge_patterns
from caffetools.onnx.model import load_model
from caffetools.proto.binary import write_caffemodel
from caffetools.proto.encoding import encode_text
from caffetools.proto.model import Caffemodel
from caffetools.proto.text import format_text
from caffetools.results import Preprocessing
from caffetools.util.files import atomic_files

PathLike = str | os.PathLike[str]

import_ops.register()


@dataclass(frozen=True)
class ImportedNet:
    """A Caffe net that gives the numbers of an ONNX model.

    Attributes:
        model: The net with its weights.
        largest_difference: The largest difference of all outputs on two inputs, relative to an output's largest value; of the values
            before a Softmax or Sigmoid too, since probabilities of 0 and 1 are equal where those are not.
        outputs: ONNX output → blob.
        preprocessing: The preprocessing of the model's metadata, if caffetools wrote it.
        moved_inputs: ONNX input → the order of its axes in the net, for inputs that are (N, H, W, C) in the model.
        batch_limit: Why the net takes no other batch size than that of its prototxt; ``""`` where it takes any.
    """

    model: Caffemodel
    largest_difference: float
    outputs: dict[str, str]
    preprocessing: Preprocessing | None = None
    moved_inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    batch_limit: str = ""

    def write(self, folder: PathLike, more: Mapping[Path, bytes] | None = None) -> tuple[Path, Path]:
        """Write ``deploy.prototxt`` and ``weights.caffemodel`` into ``folder``, all or none; gives their paths.

        Args:
            folder: Created if missing.
            more: Path → content of further files that are written with them.

        Raises:
            RunFailed: A file cannot be written.
        """
        deploy, weights = Path(folder, "deploy.prototxt"), Path(folder, "weights.caffemodel")
        with atomic_files() as write:
            for path, content in {deploy: encode_text(format_text(self.model.net)), **(more or {})}.items():
                write(path, content)
            # The others get their names when the weights, the largest, have theirs.
            write_caffemodel(weights, self.model)
        return deploy, weights


def import_model(
    model: PathLike | bytes | onnx.ModelProto,
    *,
    target: Target = "bvlc",
    input_shapes: Mapping[str, Shape] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportedNet:
    """Convert an ONNX model to a Caffe net, and compare the two on two random inputs.

    Args:
        model: An ONNX file, a model's bytes, or a model.
        target: Which layers may be used: ``bvlc`` (those of BVLC Caffe 1.0), ``ssd`` (and Permute and Normalize of SSD's fork) or
            ``any`` (and forks' layers that caffetools computes, and ``round_mode``).
        input_shapes: Input name → shape, for inputs whose sizes are free.
        progress: Called with (nodes converted, all nodes) after each; may raise to stop.

    Returns:
        The net.

    Raises:
        ImportFailed: An operator has no layers that give its numbers, or the net gives others; names the node.
        ModelFileError: The file cannot be read, or onnxruntime cannot run it.
    """
    if target not in TARGETS:
        raise ImportFailed(f"there is no target '{target}'; there are {', '.join(TARGETS)}")
    proto = model if isinstance(model, onnx.ModelProto) else load_model(model)
    graph = prepare(proto, input_shapes)
    expand_einsums(graph)
    merge_patterns(graph)
    moved = channels_first(graph)
    merge_patterns(graph)
    writer = NetWriter(graph, target)
    for name, shape in graph.inputs.items():
        writer.add_input(name, shape)
    for number, node in enumerate(graph.nodes, 1):
        handler = find_handler(node.op, graph.opset)
        if handler is None:
            raise node.error(why_not(node.op, node.domain))
        handler(writer, node)
        if progress is not None:
            progress(number, len(graph.nodes))
    outputs = _finish(writer)
    result = writer.result()
    checked = check(writer, result, outputs, moved)
    properties = {item.key: item.value for item in proto.metadata_props}
    return ImportedNet(result, checked.largest_difference, outputs, Preprocessing.from_properties(properties), moved, checked.batch_limit)


def _finish(writer: NetWriter) -> dict[str, str]:
    """Let every output be a blob that no layer reads; gives ONNX output → blob."""
    end = Node("Output", "the graph's outputs", list(writer.graph.outputs), [])
    outputs: dict[str, str] = {}
    values = list(dict.fromkeys(writer.graph.outputs))
    if fixed := [value for value in values if value in writer.graph.constants]:
        raise ImportFailed(f"output '{fixed[0]}' is constant: nothing in it depends on an input, and a Caffe net has no such output")
    read = {blob for layer in writer.net.layer for blob in layer.bottom}
    # Two outputs may be one blob.
    held = [writer.blob(end, value) for value in values]
    read.update(blob for blob in held if held.count(blob) > 1)
    given = {blob for layer in writer.net.layer[: len(writer.graph.inputs)] for blob in layer.top}
    for value in values:
        blob, wanted = writer.blob(end, value), clean_name(value)
        if blob in read or blob in outputs.values() or blob in given:
            name = writer.free_blob(wanted)
            writer.net.layer.add(name=f"{name}_split", type=Split.TYPE, bottom=[blob], top=[name])
            blob = name
        outputs[value] = blob
    used = {blob for layer in writer.net.layer for blob in layer.bottom}
    rest = [top for layer in writer.net.layer for top in layer.top if top not in used and top not in outputs.values()]
    writer.silence(end, list(dict.fromkeys(rest)))
    return outputs
