"""Models of the zoo in place of files: the public API takes the names that every command takes, and fetches weights on use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from caffetools.cancel import CancelToken
from caffetools.events import EventSink, ignore
from caffetools.util.arguments import file_path

if TYPE_CHECKING:
    from caffetools.infer.classifier import PreprocessOptions

T = TypeVar("T")


def net_path(name: str, value: object, kind: Literal["train_val", "deploy", "solver"]) -> Path:
    """Return a prototxt: a path, or that of the model of the zoo that a text names where no such file exists.

    Args:
        name: Name of the parameter.
        value: Its value.
        kind: Which of a model's prototxts.

    Raises:
        CaffeToolsError: It is neither a ``str`` nor an ``os.PathLike``.
    """
    from caffetools.zoo.names import is_model
    from caffetools.zoo.networks import prototxt_path

    return prototxt_path(value, kind) if isinstance(value, str) and is_model(value) else file_path(name, value)


def weights_path(value: T, events: EventSink = ignore, cancel: CancelToken | None = None) -> T | Path:
    """Return weights: the published ones of a model of the zoo that a text names, fetched if they are not in the cache; else ``value``.

    Args:
        value: A path, a :class:`~caffetools.proto.model.Caffemodel`, None, or the name of a model.
        events: Receives the progress of fetching.
        cancel: Stops fetching.

    Raises:
        ZooError: The model has no published weights, or they cannot be fetched.
        CaffeToolsError: It is something else.
    """
    from caffetools.proto.model import Caffemodel
    from caffetools.zoo.fetch import fetch
    from caffetools.zoo.names import is_model

    if value is not None and not isinstance(value, Caffemodel):
        file_path("weights", value)
    if not isinstance(value, str) or not is_model(value):
        return value
    return fetch(value, events=events, cancel=cancel).path


def deployed(
    name: str, model: object, weights: T, given: PreprocessOptions, events: EventSink = ignore, cancel: CancelToken | None = None
) -> tuple[Path, T | Path, PreprocessOptions]:
    """Return the files and the preprocessing of a deployed net, any of which may come from the zoo.

    Args:
        name: Name of the parameter of the net.
        model: A deploy prototxt, an ONNX file, or the name of a model, whose weights are taken where there are none.
        weights: A .caffemodel, the name of a model, or None.
        given: Preprocessing of the caller; the rest comes from the model's card.
        events: Receives the progress of fetching.
        cancel: Stops fetching.
    """
    from caffetools.infer.zoo_models import merge_options
    from caffetools.zoo.fetch import fetch
    from caffetools.zoo.names import is_model

    if isinstance(model, str) and is_model(model):
        parameters = fetch(model, events=events, cancel=cancel).path if weights is None else weights_path(weights, events, cancel)
        return net_path(name, model, "deploy"), parameters, merge_options(given, model)
    return file_path(name, model), weights_path(weights, events, cancel), given
