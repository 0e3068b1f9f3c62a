"""Inference: classify, export, quantize, verify."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from caffetools._api.models import deployed, net_path, weights_path
from caffetools.cancel import CancelToken
from caffetools.events import EventSink, ignore, reported, reporter
from caffetools.util.arguments import MOST_SEED32, check_control, file_path, finite_number, named_shapes, several, size_pair, whole_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from caffetools.infer.blobs import Item
    from caffetools.infer.classifier import ClassificationResult, ImageLike
    from caffetools.infer.detector import DetectionResult
    from caffetools.onnx.importer import ImportedNet
    from caffetools.onnx.verify import Verification
    from caffetools.quant.quantize import Quantization

PathLike = str | os.PathLike[str]
Phase = Literal["TRAIN", "TEST"]


def classify(
    images: ImageLike | Iterable[ImageLike],
    model: PathLike,
    weights: PathLike | None = None,
    *,
    mean: str | PathLike | Sequence[float] | NDArray[Any] | None = None,
    labels: PathLike | Sequence[str] | None = None,
    scale: float | None = None,
    resize: tuple[int, int] | None = None,
    top: int = 5,
    batch: int = 16,
    oversample: bool = False,
    channel_order: Literal["RGB", "BGR"] = "RGB",
    engine: str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> list[ClassificationResult]:
    """Classify images with a deployed net.

    Args:
        images: One image or several: paths of files and folders, Pillow images, or uint8 arrays (H, W, 3) or (H, W) with values from 0 to 255.
        model: A deploy prototxt, or an ONNX file; or the name of a model of the zoo, such as ``"googlenet"``, whose weights are fetched
            if they are not in the cache, and whose card gives mean, scale, size and labels.
        weights: The .caffemodel; None for an ONNX file and for a model of the zoo with its published weights.
        mean: Values per channel in BGR order, ``"104,117,123"``, a .binaryproto or .npy file, or an array (C, H, W).
        labels: Class names in order, or a text file with one per line.
        scale: Factor applied after the mean is subtracted.
        resize: (width, height) of the whole image before the center crop.
        top: Number of classes to return for each image.
        batch: Images per batch.
        oversample: Average ten crops, as ``caffe.io.oversample`` does.
        channel_order: Order of the channels of arrays; Pillow images and files need none.
        engine: ``"torch"`` or ``"onnxruntime"``; by default torch for a prototxt and onnxruntime for an ONNX file.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        precision: ``"fp32"`` as Caffe, ``"tf32"``, ``"bf16"`` or ``"fp16"``; others than float32 for the engine ``"torch"`` only.
        events: Receives ``Progress`` events, in images.
        cancel: Checked before every batch.

    Returns:
        One result per image: the most probable classes, or ``error`` for a file that cannot be read.

    Raises:
        CaffeToolsError: Model, weights, mean, labels or arrays cannot be used.
        Cancelled: ``cancel`` was set.

    Example:
        >>> import caffetools as ct, numpy as np
        >>> deploy = ct.zoo_prototxt("lenet")
        >>> ct.save_weights(ct.load_net(deploy), "lenet.caffemodel")
        >>> digit = np.zeros((28, 28), np.uint8)
        >>> result, = ct.classify(digit, deploy, "lenet.caffemodel", mean=[0], scale=1 / 256, top=1)
        >>> 0 <= result.guesses[0].index < 10
        True
    """
    from caffetools.infer.classifier import Classifier, PreprocessOptions, as_images

    check_control(events, cancel)
    top, batch = whole_number("top", top), whole_number("batch", batch)
    options = PreprocessOptions(mean=mean, labels=labels, scale=scale, resize=size_pair("resize", resize))
    model, weights, options = deployed("model", model, weights, options, events, cancel)
    classifier = Classifier(model, weights, options, engine=engine, device=device, precision=precision)
    return classifier.classify(
        as_images(images), top=top, batch=batch, oversample=oversample, channel_order=channel_order, events=events, cancel=cancel
    )


def detect(
    images: ImageLike | Iterable[ImageLike],
    model: PathLike,
    weights: PathLike | None = None,
    *,
    threshold: float = 0.5,
    top: int | None = None,
    mean: str | PathLike | Sequence[float] | NDArray[Any] | None = None,
    labels: PathLike | Sequence[str] | None = None,
    scale: float | None = None,
    batch: int = 1,
    channel_order: Literal["RGB", "BGR"] = "RGB",
    output: str | None = None,
    engine: str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> list[DetectionResult]:
    """Detect objects in images with a net whose last layer makes boxes: SSD's DetectionOutput, or a YOLO layer of the forks.

    Args:
        images: As for :func:`classify`.
        model: A deploy prototxt, or an ONNX file.
        weights: The .caffemodel; None for an ONNX file.
        threshold: Lowest score, 0 to 1; the net has one of its own.
        top: Most objects of an image; None returns all.
        mean: As for :func:`classify`.
        labels: Names of all classes, or of all but the background, in order; or a text file with one per line.
        scale: As for :func:`classify`.
        batch: Images that the net processes at once, where its output names the image of an object.
        channel_order: Order of the channels of arrays; Pillow images and files need none.
        output: The blob of the objects, where the net has several outputs.
        engine: As for :func:`classify`.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        precision: ``"fp32"`` as Caffe, ``"tf32"``, ``"bf16"`` or ``"fp16"``; others than float32 for the engine ``"torch"`` only.
        events: Receives ``Progress`` events, in images.
        cancel: Checked before every batch.

    Returns:
        One result per image: objects with class, label, score and box (left, top, right, bottom) in pixels of the image, best first; or
        ``error`` for a file that cannot be read.

    Raises:
        CaffeToolsError: Model, weights, mean, labels or images cannot be used, or the net makes no boxes.
        Cancelled: ``cancel`` was set.
    """
    from caffetools.infer.classifier import PreprocessOptions, as_images
    from caffetools.infer.detector import Detector

    check_control(events, cancel)
    threshold = finite_number("threshold", threshold)
    top, batch = None if top is None else whole_number("top", top), whole_number("batch", batch)
    model, weights, options = deployed("model", model, weights, PreprocessOptions(mean=mean, labels=labels, scale=scale), events, cancel)
    detector = Detector(model, weights, options, engine=engine, device=device, precision=precision, output=output)
    return detector.detect(
        as_images(images), threshold=threshold, top=top, batch=batch, channel_order=channel_order, events=events, cancel=cancel
    )


def compute_blobs(
    item: Item,
    deploy: PathLike,
    weights: PathLike | None = None,
    *,
    outputs: Sequence[str] = (),
    tile: int | None = None,
    own_size: bool = False,
    mean: str | PathLike | Sequence[float] | NDArray[Any] | None = None,
    scale: float | None = None,
    resize: tuple[int, int] | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Compute blobs of a deployed net, in one pass or, for pictures that do not fit in memory, tile by tile.

    Args:
        item: A picture file; a uint8 image (H, W, 3) RGB or (H, W); an array (C, H, W) or (N, C, H, W) of the net's input or a .npy file of
            one, which are not preprocessed; a .npz file or a mapping with an array for each input blob.
        deploy: A deploy prototxt, or the name of a model of the zoo.
        weights: Its .caffemodel; None for a net without parameters, and for a model of the zoo with its published weights.
        outputs: The blobs; by default the net's outputs.
        tile: Most pixels of a side that the net gets at once, for fully convolutional nets: the values are those of one pass, also at the
            seams. Pictures keep their size. None: one pass.
        own_size: Pictures keep their size in place of the net's input size.
        mean: As for :func:`classify`.
        scale: As for :func:`classify`.
        resize: (width, height) of the picture.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        precision: ``"fp32"`` as Caffe, ``"tf32"``, ``"bf16"`` or ``"fp16"``; others than float32 for the engine ``"torch"`` only.
        events: Receives ``Progress`` events, in tiles.
        cancel: Checked before every tile.

    Returns:
        float32 arrays by blob name.

    Raises:
        CaffeToolsError: A file cannot be read, a blob does not exist, the input does not fit, or with ``tile`` a layer depends on the whole
            picture; names it.
        Cancelled: ``cancel`` was set.

    Example:
        >>> import caffetools as ct, numpy as np
        >>> with open("edges.prototxt", "w") as file:
        ...     _ = file.write('''layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 8 dim: 8 } } }
        ...     layer { name: "largest" type: "Pooling" bottom: "data" top: "largest" pooling_param { kernel_size: 2 stride: 2 } }''')
        >>> large = np.zeros((1, 1, 300, 200), np.float32)
        >>> ct.compute_blobs(large, "edges.prototxt", tile=64)["largest"].shape
        (1, 1, 150, 100)
    """
    from caffetools.infer.blobs import BlobOptions, BlobReader
    from caffetools.infer.classifier import PreprocessOptions

    check_control(events, cancel)
    options = PreprocessOptions(mean=mean, scale=scale, resize=size_pair("resize", resize))
    what = BlobOptions(tuple(several("outputs", outputs)), own_size, tile)
    deploy, weights, options = deployed("deploy", deploy, weights, options, events, cancel)
    reader = BlobReader(deploy, weights, options, what, device=device, precision=precision)
    return reader.run(item, events=events, cancel=cancel)


def export_onnx(
    deploy: PathLike,
    weights: PathLike,
    path: PathLike,
    *,
    mean: str | PathLike | Sequence[float] | NDArray[Any] | None = None,
    labels: PathLike | Sequence[str] | None = None,
    scale: float | None = None,
    resize: tuple[int, int] | None = None,
    opset: int = 17,
    batch: int | None = None,
    dynamic_axes: Collection[str] | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    outputs: Sequence[str] = (),
    sources: Sequence[str] = (),
    preprocess: bool = False,
    images: Sequence[PathLike] = (),
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Verification:
    """Export a deployed net as an ONNX file, after every blob was compared with the net in float64.

    Args:
        deploy: The deploy prototxt, or the name of a model of the zoo.
        weights: Its .caffemodel, or the name of a model of the zoo.
        path: ONNX file to write.
        mean: As for :func:`classify`; stored in the file's metadata.
        labels: As for :func:`classify`; stored in the file's metadata.
        scale: As for :func:`classify`; stored in the file's metadata.
        resize: As for :func:`classify`; stored in the file's metadata.
        opset: Version of ONNX's operator set, 11 to 28.
        batch: Batch size to fix; None leaves it to ``dynamic_axes``.
        dynamic_axes: Axes of the inputs that may have any size: ``batch``, ``height``, ``width``; None for the batch where the net
            takes any size, which is else fixed, with a warning event.
        input_shapes: Input blob → shape, in place of the prototxt's.
        outputs: Blobs to export in place of the net's outputs.
        sources: Blobs that become inputs; the layers before them are left out.
        preprocess: Put mean, channel swap and scale into the graph, which then takes uint8 (N, H, W, 3) RGB images.
        images: Image files to verify on; seeded random inputs if empty.
        events: Receives ``Started``, ``Progress`` in layers compared, ``Warned`` for notes on the model, ``ArtifactWritten`` and
            ``Finished``.
        cancel: Checked after each layer that was compared; nothing is written after a cancellation.

    Returns:
        What was compared, and the largest differences.

    Raises:
        ExportError: The net has no exact ONNX form, or the exported model gives other numbers; nothing is written then.
        CaffeToolsError: A file cannot be read, or does not fit the net.
        Cancelled: ``cancel`` was set.
    """
    from caffetools.infer.classifier import PreprocessOptions
    from caffetools.infer.export import ExportOptions, export_deployed, preprocessing_of_part

    check_control(events, cancel)
    options = PreprocessOptions(mean=mean, labels=labels, scale=scale, resize=size_pair("resize", resize))
    fixed = None if batch is None else whole_number("batch", batch)
    how = ExportOptions(
        whole_number("opset", opset),
        None if dynamic_axes is None else several("dynamic_axes", dynamic_axes),
        fixed,
        named_shapes("input_shapes", input_shapes or {}),
        several("outputs", outputs),
        several("sources", sources),
        preprocess,
    )
    out = file_path("path", path)
    deploy, parameters, whole = deployed("deploy", deploy, weights, options, events, cancel)
    options = preprocessing_of_part(how, options, whole)
    with reported("export", f"Exporting {os.fspath(deploy)}", events):
        return export_deployed(
            deploy, file_path("weights", parameters), out, options, how, pictures=several("images", images), events=events, cancel=cancel
        )


def import_onnx(
    model: PathLike,
    folder: PathLike,
    *,
    target: Literal["bvlc", "ssd", "any"] = "bvlc",
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> ImportedNet:
    """Convert an ONNX model to ``deploy.prototxt`` and ``weights.caffemodel``, after both gave the same numbers.

    Args:
        model: The ONNX file; also an exported program of torch (``.pt2``), or ``module:callable``.
        folder: Where to write.
        target: Which layers may be used: ``bvlc`` (those of BVLC Caffe 1.0), ``ssd`` (and SSD's Permute and Normalize) or ``any``
            (and other forks' layers).
        input_shapes: Input name → shape, for inputs whose sizes are free.
        events: Receives ``Started``, ``Progress`` in nodes converted, ``ArtifactWritten`` for each file, and ``Finished``.
        cancel: Checked after each node and before the files are written.

    Returns:
        The net, and the largest difference from the model.

    Raises:
        ExportError: An operator has no Caffe layers with its numbers; names the node and the reason.
        CaffeToolsError: The file cannot be read.
        Cancelled: ``cancel`` was set; nothing is written then.
    """
    from caffetools.infer.import_model import import_file

    check_control(events, cancel)
    source = model if isinstance(model, str) else file_path("model", model)
    shapes = None if input_shapes is None else named_shapes("input_shapes", input_shapes)
    return import_file(source, file_path("folder", folder), target=target, input_shapes=shapes, events=events, cancel=cancel)[0]


def quantize(
    deploy: PathLike,
    weights: PathLike,
    path: PathLike,
    calibration: PathLike | Sequence[PathLike],
    *,
    precision: Literal["int8", "fp16"] = "int8",
    method: Literal["minmax", "entropy", "percentile"] = "minmax",
    percentile: float = 99.99,
    keep: Sequence[str] = (),
    min_agreement: float | None = None,
    tables: Sequence[str] = ("tensorrt", "ncnn", "caffe"),
    mean: str | PathLike | Sequence[float] | NDArray[Any] | None = None,
    labels: PathLike | Sequence[str] | None = None,
    scale: float | None = None,
    resize: tuple[int, int] | None = None,
    test: PathLike | None = None,
    images: int = 500,
    batch: int = 8,
    opset: int = 17,
    outputs: Sequence[str] = (),
    ranges: PathLike | None = None,
    resume: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Quantization:
    """Write a deployed net in int8 or fp16 as an ONNX file, calibrated on images and compared with the float net.

    Args:
        deploy: The deploy prototxt, or the name of a model of the zoo.
        weights: Its .caffemodel, or the name of a model of the zoo.
        path: ONNX file to write; calibration tables get its name with other endings.
        calibration: A folder of images, an LMDB or LevelDB, a list (``.txt``: a path on each line), or several files, folders and lists.
        precision: ``int8`` (QDQ nodes, a scale for each output channel of the weights) or ``fp16``.
        method: How ranges are found: ``minmax``, ``entropy`` or ``percentile``.
        percentile: For ``percentile``: % of the magnitudes above 0 that are not clipped.
        keep: Layers that are not quantized.
        min_agreement: Share of images, 0 to 1, whose best class must stay; the worst layers stay in float until it is reached.
        tables: Calibration tables to write, of ``tensorrt``, ``ncnn`` and ``caffe``; for int8.
        mean: As for :func:`classify`.
        labels: As for :func:`classify`; the folders of ``test`` are named after them.
        scale: As for :func:`classify`.
        resize: As for :func:`classify`.
        test: An LMDB or LevelDB, a list with labels, or a folder with a folder of images for each class, to measure the accuracy before
            and after on.
        images: Most images to take, spread evenly over all.
        batch: Images per run.
        opset: Version of ONNX's operator set, 13 to 25.
        outputs: Blobs to end the net at, in place of its outputs, as for :func:`export_onnx`.
        ranges: The file of ranges (``PREFIX_iter_N.ranges.json``) that :func:`train` with ``quantize="int8"`` wrote; by default the one
            next to ``weights``, if there is one; ``"none"`` for none.
        resume: Continue a calibration that was cancelled or killed.
        events: Receives ``Progress`` in images, and ``ArtifactWritten``.
        cancel: Checked before every batch.

    Returns:
        Agreement of the best classes, accuracy on ``test``, signal-to-noise ratio of each layer, sizes and speeds before and after, and the files.

    Raises:
        RunFailed: ``min_agreement`` is not reached.
        CaffeToolsError: A file cannot be read, or an option is wrong.
        Cancelled: ``cancel`` was set; what was counted is kept for ``resume``.
    """
    from caffetools.infer.classifier import PreprocessOptions
    from caffetools.infer.quantize import quantize_deployed
    from caffetools.quant.quantize import QuantizeOptions

    check_control(events, cancel)
    how = QuantizeOptions(
        precision, method, percentile, several("keep", keep), min_agreement, several("tables", tables), batch, opset, resume
    )
    options = PreprocessOptions(mean=mean, labels=labels, scale=scale, resize=size_pair("resize", resize))
    deploy, parameters, options = deployed("deploy", deploy, weights, options, events, cancel)
    return quantize_deployed(
        deploy,
        file_path("weights", parameters),
        file_path("path", path),
        calibration,
        options,
        how,
        test=test,
        images=images,
        ranges=ranges,
        outputs=several("outputs", outputs),
        events=events,
        cancel=cancel,
    )


def verify(
    model: PathLike,
    deploy: PathLike,
    weights: PathLike,
    *,
    seed: int = 0,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> Verification:
    """Compare an ONNX model with the Caffe net it came from, on seeded random inputs.

    Args:
        model: The ONNX file.
        deploy: The deploy prototxt, or the name of a model of the zoo.
        weights: Its .caffemodel, or the name of a model of the zoo.
        seed: Seed of the inputs.
        events: Receives ``Started``, ``Progress`` in layers compared, and ``Finished``.
        cancel: Checked after each layer.

    Returns:
        The largest error of every blob, worst first.

    Raises:
        ExportMismatch: A blob's error against float64 is more than 4 times the float32 engine's (plus 1e-6 of its largest value); names
            the first blob that differs.
        CaffeToolsError: A file cannot be read.
        Cancelled: ``cancel`` was set.
    """
    from caffetools.engines.torch import TorchEngine
    from caffetools.onnx.verify import verify as compare

    check_control(events, cancel)
    whole_number("seed", seed, 0, MOST_SEED32)
    model = file_path("model", model)
    with reported("verify", f"Comparing {os.fspath(model)} with {os.fspath(deploy)}", events):
        progress = reporter(events, "verify", "layers", cancel)
        net = TorchEngine.load(net_path("deploy", deploy, "deploy"), weights_path(weights, events, cancel)).net
        return compare(model, net, seed=seed, progress=progress)
