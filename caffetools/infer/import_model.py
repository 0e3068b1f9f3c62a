"""Import of ONNX and PyTorch models into a folder, with the preprocessing that an ONNX file holds."""

from __future__ import annotations

import importlib
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch

from caffetools.cancel import CancelToken
from caffetools.errors import DataError, ModelFileError, did_you_mean
from caffetools.events import ArtifactWritten, EventSink, ignore, reported, reporter
from caffetools.infer.data_preprocessing import update_preprocessing
from caffetools.infer.sidecar import preprocessing_files
from caffetools.layers.base import Shape
from caffetools.onnx.import_net import TARGETS, Target
from caffetools.onnx.importer import ImportedNet, import_model
from caffetools.util.process_settings import logger_level, native_output_dropped, warnings_ignored, working_folder_importable

PathLike = str | os.PathLike[str]


def import_file(
    model: PathLike,
    folder: PathLike,
    *,
    target: str = "bvlc",
    input_shapes: Mapping[str, Shape] | None = None,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> tuple[ImportedNet, tuple[Path, Path]]:
    """Import a model and write ``deploy.prototxt``, ``weights.caffemodel`` and, where it is known, ``deploy.json``, all or none.

    A ``deploy.json`` of an earlier net is removed where the model has no preprocessing.

    Args:
        model: An ONNX file; an exported program of torch (``.pt2``); or ``module:callable``, a function without arguments that gives
            a ``torch.nn.Module``. The module is searched in the current folder too, and its code is run.
        folder: Where to write.
        target: ``bvlc``, ``ssd`` or ``any``.
        input_shapes: Input name → shape. A ``module:callable`` needs the shape of each of its inputs, in order.
        events: Receives ``Started``, ``Progress`` in nodes converted, ``ArtifactWritten`` for each file, and ``Finished``.
        cancel: Checked after each node and before the files are written.

    Returns:
        The net, and the paths of the prototxt and of the weights.

    Raises:
        ImportFailed: The model has no Caffe net with its numbers.
        CaffeToolsError: The model cannot be read, or the target is unknown.
        Cancelled: ``cancel`` was set; nothing is written then.
    """
    chosen: Target | None = next((known for known in TARGETS if known == target), None)
    if chosen is None:
        raise DataError(f"there is no target '{target}'; there are {', '.join(TARGETS)}")
    with reported("import", f"Importing {os.fspath(model)}", events):
        token = cancel or CancelToken()
        token.raise_if_cancelled("import")
        source, shapes = _source(model, input_shapes or {})
        imported = import_model(source, target=chosen, input_shapes=shapes, progress=reporter(events, "import", "nodes", token))
        token.raise_if_cancelled("import")
        deploy = Path(folder, "deploy.prototxt")
        more = preprocessing_files(deploy, imported.preprocessing) if imported.preprocessing is not None else {}
        files = imported.write(folder, more)
        if not more:
            update_preprocessing(deploy, None)
        written = [("deploy", files[0]), ("weights", files[1]), *(("preprocessing", path) for path in more)]
        for what, path in written:
            events(ArtifactWritten(task="import", path=os.fspath(path), what=what))
    return imported, files


def _source(model: PathLike, shapes: Mapping[str, Shape]) -> tuple[PathLike | bytes, Mapping[str, Shape]]:
    """Return the ONNX file, or the bytes of a model that torch exports, and the shapes of inputs that are not in it."""
    text = os.fspath(model)
    if text.endswith(".pt2"):
        if shapes and Path(text).exists():
            raise DataError("an exported program has the shapes of its inputs", path=text, hint="leave out --input-shape")
        return _exported_program(text), {}
    if ":" in text and not Path(text).exists():
        return _module(text, shapes), {}
    return model, shapes


def _exported_program(path: str) -> bytes:
    if not Path(path).is_file():
        raise ModelFileError("no such file", path=path)
    try:
        # It logs the traceback of each way to read the file that it tries.
        with logger_level("torch.export", logging.CRITICAL):
            program = torch.export.load(path)
    except Exception as error:
        # torch raises what its readers of zip files and JSON raise.
        raise ModelFileError(f"not an exported program of torch: {_one_line(error)}", path=path) from None
    try:
        with warnings_ignored():
            exported = torch.onnx.export(program, (), dynamo=True, verbose=False)
    except ImportError as error:
        raise ModelFileError(f"torch.onnx cannot read it: {error}", path=path, hint="`pip install caffetools[pt2]`") from None
    except Exception as error:
        raise ModelFileError(f"torch.onnx cannot export it: {_one_line(error)}", path=path) from None
    data: bytes = exported.model_proto.SerializeToString() if exported is not None else b""
    return data


def _module(text: str, shapes: Mapping[str, Shape]) -> bytes:
    module = _load_module(text)
    if not shapes:
        raise DataError(f"{text}: a torch module does not know the shape of its input", hint="give it: --input-shape data=1,3,224,224")
    try:
        return torch_to_onnx(module, shapes)
    except Exception as error:
        # What torch's exporter and the user's own code raise.
        given = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in shapes.items())
        raise DataError(f"{text}: torch.onnx cannot export it for {given}: {_one_line(error)}") from None


def _load_module(text: str) -> torch.nn.Module:
    """Return the module that ``module:callable`` names or gives. Raises :class:`DataError` that names which of the two is at fault."""
    name, _, attribute = text.partition(":")
    if not name or not attribute.isidentifier():
        raise DataError(f"'{text}' is not MODULE:CALLABLE, such as nets.my_net:build")
    try:
        importlib.invalidate_caches()
        with working_folder_importable():
            found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            hint = f"run it in the folder that holds {error.name.partition('.')[0]}, or put that folder on PYTHONPATH"
            raise DataError(f"{text}: there is no module '{error.name}'", hint=hint) from None
        raise DataError(f"{text}: the module '{name}' cannot be imported: {_one_line(error)}") from None
    except Exception as error:
        raise DataError(f"{text}: the module '{name}' cannot be imported: {type(error).__name__}: {_one_line(error)}") from None
    if not hasattr(found, attribute):
        names = [known for known, value in vars(found).items() if callable(value)]
        raise DataError(f"{text}: the module '{name}' has no '{attribute}'{did_you_mean(attribute, names)}")
    function = getattr(found, attribute)
    if not callable(function):
        raise DataError(f"{text}: '{attribute}' is of type {type(function).__name__}, not a torch.nn.Module or a function that gives one")
    try:
        module = function if isinstance(function, torch.nn.Module) else function()
    except Exception as error:
        raise DataError(f"{text}: '{attribute}' failed: {type(error).__name__}: {_one_line(error)}") from None
    if not isinstance(module, torch.nn.Module):
        raise DataError(f"{text} gives an object of type {type(module).__name__}, not a torch.nn.Module")
    return module


def torch_to_onnx(module: torch.nn.Module, shapes: Mapping[str, Shape]) -> bytes:
    """Export a torch module in evaluation mode with torch's own exporter, for inputs of these names and shapes."""
    stream = io.BytesIO()
    inputs = tuple(torch.zeros(shape) for shape in shapes.values())
    # Its C++ code prints the graph in which it finds an operator that it does not export.
    with warnings_ignored(), native_output_dropped():
        # The exporter that traces is deprecated, but needs no packages of its own.
        torch.onnx.export(module.eval(), inputs, cast("str", stream), dynamo=False, opset_version=17, input_names=list(shapes))
    return stream.getvalue()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
