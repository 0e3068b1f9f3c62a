"""Bundles: a deployed net with everything that a device needs, and the check of one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from caffetools._api.models import deployed
from caffetools.cancel import CancelToken
from caffetools.errors import CaffeToolsError
from caffetools.events import EventSink, ignore
from caffetools.util.arguments import check_control, file_path, finite_number, several, size_pair

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from caffetools.bundle.check import BundleCheck
    from caffetools.infer.classifier import PreprocessOptions

PathLike = str | os.PathLike[str]


def build_bundle(
    deploy: PathLike,
    weights: PathLike | None,
    out: PathLike,
    target: Literal["jetson", "onnxruntime", "opencv"] = "jetson",
    options: PreprocessOptions | None = None,
    *,
    mean: str | PathLike | Sequence[float] | NDArray[Any] | None = None,
    labels: PathLike | Sequence[str] | None = None,
    scale: float | None = None,
    resize: tuple[int, int] | None = None,
    calibration: PathLike | None = None,
    output: str | None = None,
    pictures: PathLike | Sequence[PathLike] = (),
    force: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> BundleCheck:
    """Build a bundle in the new folder ``out`` and check it: model, labels, preprocessing, scripts, runners and samples for a device.

    Args:
        deploy: The deploy prototxt, whose ``deploy.json`` gives the preprocessing, or the name of a model of the zoo.
        weights: Its .caffemodel, or the name of a model of the zoo; None for a model of the zoo with its published weights.
        out: The folder to create; it appears only when the bundle is complete and its samples give what the net gives.
        target: ``jetson``, ``onnxruntime`` or ``opencv``.
        options: Mean, labels, scale and size in one object, in place of the next four.
        mean: As for :func:`classify`.
        labels: As for :func:`classify`; a detector's may leave out the background.
        scale: As for :func:`classify`.
        resize: As for :func:`classify`.
        calibration: TensorRT's calibration cache for int8, as :func:`quantize` writes it.
        output: The blob of the probabilities or detections, where the net has several outputs.
        pictures: Image files and folders to copy as samples; drawn ones if empty.
        force: Replace an existing bundle.
        events: Receives ``Started``, ``Progress`` of the export, ``Warned``, ``Finished`` and ``ArtifactWritten``.
        cancel: Checked between the steps; nothing is left after a cancellation.

    Returns:
        What the final check measured.

    Raises:
        DataError: The target is unknown, ``out`` exists, or a mean, labels, pictures or the cache do not fit.
        NetError: The net is not a classifier, an SSD or a DetectNet with one input for images.
        ExportError: The net has no exact ONNX form.
        Cancelled: ``cancel`` was set.
    """
    from caffetools.bundle.build import build_bundle as build
    from caffetools.infer.classifier import PreprocessOptions, find_pictures

    check_control(events, cancel)
    given = PreprocessOptions(mean=mean, labels=labels, scale=scale, resize=size_pair("resize", resize))
    if options is not None and given != PreprocessOptions():
        raise CaffeToolsError("give either options or mean, labels, scale and resize, not both")
    net, parameters, how = deployed("deploy", deploy, weights, options or given, events, cancel)
    samples = find_pictures(several("pictures", pictures))
    return build(
        net,
        file_path("weights", parameters),
        file_path("out", out),
        target,
        how,
        calibration=calibration,
        output=output,
        pictures=samples,
        force=force,
        events=events,
        cancel=cancel,
    )


def check_bundle(
    folder: PathLike,
    *,
    engine: Literal["auto", "onnxruntime", "opencv", "tensorrt"] = "auto",
    tolerance: float = 1e-3,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> BundleCheck:
    """Check a bundle: its files are those of SHA256SUMS, and its runner gives the expected classes or boxes for its samples.

    Args:
        folder: The bundle.
        engine: What runs the model; ``auto`` takes the first that is installed, TensorRT if the bundle has an engine for it.
        tolerance: Largest difference to accept, of a probability, or of a box's corner over the image's size.
        events: Receives ``Started``, ``Progress`` in files and then in samples that were compared, and ``Finished``.
        cancel: Checked before each file and each sample.

    Returns:
        The numbers of files and samples that were compared, the engine, and the largest difference.

    Raises:
        DataError: A file is missing, changed or damaged.
        ModelFileError: The engine cannot load the model.
        ExportMismatch: The model gives other classes, boxes or probabilities than expected.
        CaffeToolsError: The engine is unknown.
        Cancelled: ``cancel`` was set.
    """
    from caffetools.bundle.check import check_bundle as check
    from caffetools.bundle.standalone import BACKENDS

    check_control(events, cancel)
    if engine not in ("auto", *BACKENDS):
        raise CaffeToolsError(f"'{engine}' is not known; auto, {', '.join(BACKENDS)} are")
    limit = finite_number("tolerance", tolerance)
    return check(file_path("folder", folder), backend=engine, tolerance=limit, events=events, cancel=cancel)
