"""A deployed net for programs without caffetools: a plain torch module, a TorchScript file, an exported program."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import torch

from caffetools.engines.base import EngineError
from caffetools.errors import ExportError, ExportMismatch
from caffetools.events import EventSink, Warned, ignore
from caffetools.infer.export import ExportOptions, build_deployed, free_axes
from caffetools.net.net import Net
from caffetools.onnx.clip import name_lower_bounds
from caffetools.onnx.export import build
from caffetools.onnx.pools import symmetrize_pools
from caffetools.onnx.verify import random_inputs
from caffetools.util.files import atomic_files, check_not_read
from caffetools.util.process_settings import warnings_ignored

if TYPE_CHECKING:
    from torch.fx import GraphModule
    from torch.jit import ScriptModule

PathLike = str | os.PathLike[str]
TorchFormat = Literal["torch", "torchscript", "exported-program"]
TORCH_FORMATS: tuple[TorchFormat, ...] = ("torch", "torchscript", "exported-program")
# The largest difference allowed, relative to an output's largest value.
TOLERANCE = 1e-4


def to_torch(net: Net, *, fixed_batch: bool = False) -> torch.nn.Module:
    """Convert ``net`` to a module of torch's own layers, through ONNX and onnx2torch.

    Args:
        net: A net in the TEST phase, with its weights.
        fixed_batch: The module takes only the net's own batch size; nets whose layers mix the pictures of a batch have no other form.

    Returns:
        A module that takes the net's inputs in order; its parameters are named after Caffe's layers (``conv1.weight``).

    Raises:
        EngineError: onnx2torch is not installed.
        ExportError: A layer has no ONNX form, or onnx2torch does not convert an operator of it.
    """
    try:
        from onnx2torch import convert
    except ImportError:
        raise EngineError("this needs onnx2torch", hint="install it with `pip install caffetools[onnx2torch]`") from None
    model, _ = build(net, dynamic_axes=() if fixed_batch else ("batch",))
    # onnx2torch has no average pooling whose padding differs at both ends, as Caffe's rounding up often has.
    symmetrize_pools(model)
    proto = model.to_proto()
    name_lower_bounds(proto)
    try:
        module = convert(proto)
        _fix_shapes(module)
        return cast("torch.nn.Module", module).eval()
    except NotImplementedError as error:
        raise ExportError(f"onnx2torch does not convert this net: {' '.join(str(error).split())[:200]}") from None


def _fix_shapes(module: GraphModule) -> None:
    """Write constant shapes of Reshapes as numbers: onnx2torch keeps them in tensors, whose values torch.export does not know."""
    for node in list(module.graph.nodes):
        called = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(called).__name__ != "OnnxReshape" or node.args[1].op != "get_attr":
            continue
        shape = cast("torch.Tensor", attrgetter(str(node.args[1].target))(module)).tolist()
        with module.graph.inserting_before(node):
            fixed = module.graph.call_function(_reshaped, (node.args[0], shape))
        node.replace_all_uses_with(fixed)
        module.graph.erase_node(node)
    module.recompile()


def _reshaped(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def export_torch(
    deploy: PathLike, weights: PathLike, path: PathLike, kind: TorchFormat, how: ExportOptions | None = None, *, events: EventSink = ignore
) -> float:
    """Write a deployed net for torch, after comparing it with the net.

    Args:
        deploy: The deploy prototxt.
        weights: Its .caffemodel.
        path: The file to write.
        kind: ``torchscript``; ``exported-program``; or ``torch``: the state_dict of :func:`to_torch`, and in :func:`module_path` the
            module itself, as an exported program that torch alone loads and that takes the state_dict.
        how: Sizes and parts of the net; ``batch`` fixes the batch size. What is particular to ONNX has no effect.
        events: Receives ``Warned`` where the batch size is fixed without being asked for.

    Returns:
        The largest difference, relative to an output's largest value.

    Raises:
        ExportError: The net has no form in torch, or gives other numbers there.
        CaffeToolsError: A file cannot be read or written.
    """
    files = torch_files(path, kind)
    for file in files:
        check_not_read(file, [deploy, weights])
    how = how or ExportOptions()
    net = build_deployed(deploy, weights, how)
    axes, limit = free_axes(net, how)
    fixed = "batch" not in axes
    # A batch of one would be taken for a fixed size.
    shapes = {blob: (max(1 if fixed else 2, net.blob_shapes[blob][0]), *net.blob_shapes[blob][1:]) for blob in net.inputs}
    inputs = tuple(torch.from_numpy(value) for value in random_inputs(net, shapes, 0).values())
    module = to_torch(net, fixed_batch=fixed)
    save, converted = _converted(module, inputs, kind, fixed_batch=fixed)
    with torch.no_grad():
        expected, got = net(dict(zip(net.inputs, inputs, strict=True))), converted(*inputs)
    values = [got] if isinstance(got, torch.Tensor) else list(got)
    worst = max(_difference(expected[blob], value) for blob, value in zip(net.outputs, values, strict=True))
    if worst > TOLERANCE:
        raise ExportMismatch(f"{os.fspath(path)}: the torch module differs by {worst:.2g} of an output's largest value")
    with atomic_files() as write:
        write(files[-1], save)
        if kind == "torch":
            write(path, partial(torch.save, module.state_dict()))
    if limit:
        events(Warned(task="export", message=limit))
    return worst


def torch_files(path: PathLike, kind: TorchFormat) -> list[Path]:
    """Return the files that :func:`export_torch` writes: ``path``, and for ``torch`` :func:`module_path`."""
    return [Path(path), module_path(path)] if kind == "torch" else [Path(path)]


def module_path(path: PathLike) -> Path:
    """Return where the module of a state_dict is written: ``model.module.pt2`` for ``model.pt``."""
    return Path(path).with_suffix(".module.pt2")


def _converted(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], kind: TorchFormat, *, fixed_batch: bool
) -> tuple[Callable[[IO[bytes]], object], Callable[..., Any]]:
    """Return how to write the module, and what is written as a function."""
    with warnings_ignored():
        # Tracing warns of sizes that it takes for constants; what comes out is compared.
        if kind == "torchscript":
            traced = torch.jit.trace(module, inputs)  # type: ignore[no-untyped-call]
            return lambda stream: stream.write(_script_bytes(traced)), traced
        free: dict[int, Any] = {} if fixed_batch else {0: torch.export.Dim("batch")}
        program = torch.export.export(module, inputs, dynamic_shapes=tuple(free for _ in inputs))
    # They would be written too, and be larger than the weights of a small net.
    program._example_inputs = None  # noqa: SLF001 (torch 2.6 refuses None for the property)
    return lambda stream: torch.export.save(program, cast("Any", stream)), program.module()


def _script_bytes(module: ScriptModule) -> bytes:
    stream = io.BytesIO()
    with warnings_ignored():
        # torch prefers exported programs by now.
        torch.jit.save(module, stream)
    return stream.getvalue()


def _difference(expected: torch.Tensor, got: torch.Tensor) -> float:
    if expected.shape != got.shape:
        return float("inf")
    scale = float(expected.abs().max())
    return float((expected - got).abs().max()) / scale if scale else 0.0
