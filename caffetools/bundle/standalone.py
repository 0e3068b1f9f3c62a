#!/usr/bin/env python3
# ruff: noqa: UP006, UP035, UP045, B905
"""Classify pictures, videos or a camera with the bundle in this file's folder, or find objects in them.

It needs NumPy, OpenCV and a runtime, but not caffetools. With --serve it answers pictures that are sent by HTTP.
A bundle holds this file as classify.py. It runs on Python 3.6, which the first Jetsons have.

    python3 classify.py samples
    python3 classify.py camera:0 --backend tensorrt
    python3 classify.py --serve 8080        and then: curl --data-binary @photo.jpg http://localhost:8080/
"""

import argparse
import json
import os
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence, Tuple

if __name__ == "__main__":
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))  # which OpenCV reads when it is loaded
try:
    import cv2
    import numpy as np
except ImportError as error:
    if __name__ != "__main__":
        raise
    sys.stderr.write(f"classify: error: needs NumPy and OpenCV ({error}): pip install numpy opencv-python-headless\n")
    sys.exit(2)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Pixels = NDArray[np.uint8]
else:
    Array = Pixels = np.ndarray

FORMAT = 1
BACKENDS = ("tensorrt", "onnxruntime", "opencv")
PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
MAX_SIDE = 16384
MAX_BYTES = 32 << 20  # of a picture that is sent by HTTP
ENGINES = ("model.int8.engine", "model.fp16.engine", "model.fp32.engine")


class BundleError(Exception):
    """A file of the bundle, or an input, that cannot be used; the message names it."""


class Settings:
    """What preprocessing.json states: the model's input and outputs, and how an image becomes the input.

    Attributes:
        folder: The bundle.
        input: Name of the model's input.
        outputs: Names of its outputs: of the probabilities, or of a detector's scores (1, priors, classes) and boxes (1, priors, 4).
        channels, height, width: Of the model's input, (1, channels, height, width) float32.
        resize: (width, height) of the whole image before its center is cropped.
        order: ``BGR``, ``RGB`` or ``GRAY``.
        mean: (C or 1, 1, 1) or (C, H, W) float32, subtracted from pixels of 0 to 255.
        scale: (C or 1, 1, 1) float32, the factor after that.
        detection: Non-maximum suppression of a detector; None for a classifier.
        labels: Class names.
    """

    def __init__(self, folder: Path):
        self.folder, path = folder, folder / "preprocessing.json"
        try:
            self._read(json.loads(path.read_text(encoding="utf-8")))
            names = (folder / "labels.txt").read_text(encoding="utf-8")
            self.labels = names[: -1 if names.endswith("\n") else None].split("\n")
        except OSError as error:
            raise BundleError(f"{error.filename or path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
            raise BundleError(f"{path}: damaged, or not of a bundle ({error})") from None
        if len(self.labels) != self.classes:
            raise BundleError(f"{folder / 'labels.txt'}: {len(self.labels)} lines, but the model has {self.classes} classes")

    def _read(self, values: Dict[str, Any]) -> None:
        if values["format"] != FORMAT:
            raise ValueError("format {}".format(values["format"]))
        self.input = str(values["input"]["name"])
        self.channels, self.height, self.width = [int(n) for n in values["input"]["shape"][1:]]
        self.classes = int(values["output"]["classes"])
        self.resize = (int(values["resize"][0]), int(values["resize"][1]))
        self.order = str(values["channel_order"])
        if self.channels != {"BGR": 3, "RGB": 3, "GRAY": 1}.get(self.order):
            raise ValueError("the channel order does not fit the model's input")
        if not (0 < self.width <= self.resize[0] <= MAX_SIDE and 0 < self.height <= self.resize[1] <= MAX_SIDE):
            raise ValueError("the sizes are not possible")
        self.scale = np.array(values["scale"], np.float32).reshape(-1, 1, 1)
        if "mean_file" in values:
            mean = np.fromfile(str(self.folder / "mean.f32"), "<f4")
            self.mean = mean.astype(np.float32).reshape(self.channels, self.height, self.width)
        else:
            self.mean = np.array(values["mean"], np.float32).reshape(-1, 1, 1)
        if any(len(array) not in (1, self.channels) for array in (self.mean, self.scale)):
            raise ValueError("mean and scale need one number, or one a channel")
        self.detection = None  # type: Optional[Detection]
        if "detection" in values:
            self.outputs = [str(values["output"]["scores"]), str(values["output"]["boxes"])]
            self.detection = Detection(values["detection"])
        else:
            self.outputs = [str(values["output"]["name"])]


class Detection:
    """Non-maximum suppression, as a DetectionOutput layer of Caffe's SSD does it.

    Attributes:
        priors: Number of boxes.
        background: The class that is not an object; -1 for none.
        threshold: Scores above this one count.
        nms: Largest overlap, intersection over union, with a better box of the class.
        eta: Factor of ``nms`` after each box that is kept, while it is above 0.5.
        top_k: Best boxes of a class that are looked at; -1 for all.
        keep_top_k: Boxes to keep; -1 for all.
        min_height: Smallest height of a box that is kept, over the input's.
    """

    def __init__(self, values: Dict[str, Any]):
        self.priors, self.background = int(values["priors"]), int(values["background"])
        self.threshold, self.nms, self.eta = np.float32(values["threshold"]), np.float32(values["nms"]), np.float32(values["eta"])
        self.top_k, self.keep_top_k = int(values["top_k"]), int(values["keep_top_k"])
        self.min_height = np.float32(values.get("min_height", "-inf"))


def read_picture(path: Path, settings: Settings) -> Pixels:
    """Return a picture file as uint8 (H, W, 3) BGR, or (H, W) for a gray model. Raises BundleError naming the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot read the picture: {error.strerror}") from None
    return decode_picture(data, str(path), settings)


def decode_picture(data: bytes, name: str, settings: Settings) -> Pixels:
    """Return a picture file's bytes as :func:`read_picture` does, and raises; ``name`` is for errors."""
    if is_truncated(data):
        raise BundleError(f"{name}: the picture is truncated or empty")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE if settings.order == "GRAY" else cv2.IMREAD_COLOR)
    except cv2.error as error:
        reason = " (OPENCV_IO_MAX_IMAGE_PIXELS limits its pixels)" if "MAX_IMAGE_PIXELS" in str(error) else ""
        raise BundleError(f"{name}: not a picture that OpenCV can decode{reason}") from None
    if image is None:
        raise BundleError(f"{name}: not a picture that OpenCV can decode")
    return np.asarray(image, np.uint8)


def is_truncated(data: bytes) -> bool:
    """Return whether a file is empty, or a JPEG or PNG without its end mark, for which decoders may fill in gray."""
    if data[:2] == b"\xff\xd8":
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    if data[:4] == b"\x89PNG":
        return b"IEND\xae\x42\x60\x82" not in data
    return not data


def prepare(image: Pixels, settings: Settings) -> Array:
    """Return an image (uint8, BGR or gray) as the model's input, (1, C, H, W) float32: resize, crop the center, mean, scale."""
    if image.shape[1::-1] != settings.resize:
        image = np.asarray(cv2.resize(image, settings.resize, interpolation=cv2.INTER_LINEAR), np.uint8)
    top, left = (settings.resize[1] - settings.height) // 2, (settings.resize[0] - settings.width) // 2
    image = image[top : top + settings.height, left : left + settings.width]
    if settings.order == "RGB":
        image = image[:, :, ::-1]
    planes = image[np.newaxis] if image.ndim == 2 else image.transpose(2, 0, 1)
    return np.ascontiguousarray(((planes.astype(np.float32) - settings.mean) * settings.scale)[np.newaxis])


class OnnxRuntimeBackend:
    """The model in onnxruntime, on the CPU or through CUDA."""

    def __init__(self, settings: Settings):
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        known = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]
        self._settings = settings
        self._session = onnxruntime.InferenceSession(str(settings.folder / "model.onnx"), options, providers=providers)

    def run(self, batch: Array) -> List[Array]:
        """Return the outputs for one prepared image."""
        return list(self._session.run(self._settings.outputs, {self._settings.input: batch}))


class OpenCVBackend:
    """The model in OpenCV's DNN module."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._net = cv2.dnn.readNetFromONNX(str(settings.folder / "model.onnx"))

    def run(self, batch: Array) -> List[Array]:
        """Return the outputs for one prepared image."""
        self._net.setInput(batch, self._settings.input)
        return [np.asarray(output, np.float32) for output in self._net.forward(self._settings.outputs)]


class TensorRTBackend:
    """An engine that build_engine.sh built, through tensorrt and pycuda."""

    def __init__(self, settings: Settings):
        import pycuda.autoinit  # noqa: F401 (makes the CUDA context)
        import pycuda.driver as cuda
        import tensorrt

        path = find_engine(settings.folder)
        if path is None:
            raise BundleError(f"{settings.folder}: no TensorRT engine; build one with ./build_engine.sh")
        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise BundleError(f"{path}: TensorRT cannot load it; build it on this device with ./build_engine.sh")
        self._settings, self._cuda = settings, cuda
        self._context = self._engine.create_execution_context()
        priors = settings.detection.priors if settings.detection else 0
        shapes = [(1, priors, settings.classes), (1, priors, 4)] if settings.detection else [(1, settings.classes)]
        self._outputs = [np.empty(shape, np.float32) for shape in shapes]
        self._buffers = {settings.input: cuda.mem_alloc(4 * settings.channels * settings.height * settings.width)}
        for name, output in zip(settings.outputs, self._outputs):
            self._buffers[name] = cuda.mem_alloc(output.nbytes)

    def run(self, batch: Array) -> List[Array]:
        """Return the outputs for one prepared image. Raises :class:`BundleError` where TensorRT fails."""
        self._cuda.memcpy_htod(self._buffers[self._settings.input], batch)
        if hasattr(self._engine, "get_binding_index"):  # TensorRT up to 9
            bindings = [0] * len(self._buffers)
            for name, buffer in self._buffers.items():
                bindings[self._engine.get_binding_index(name)] = int(buffer)
        else:
            bindings = [int(self._buffers[self._engine.get_tensor_name(i)]) for i in range(self._engine.num_io_tensors)]
        if not self._context.execute_v2(bindings):
            raise BundleError("TensorRT failed to run the engine")
        for name, output in zip(self._settings.outputs, self._outputs):
            self._cuda.memcpy_dtoh(output, self._buffers[name])
        return [output.copy() for output in self._outputs]


def find_engine(folder: Path) -> Optional[Path]:
    """Return the fastest TensorRT engine of the bundle, or None if none is built."""
    return next((folder / name for name in ENGINES if (folder / name).is_file()), None)


def open_backend(settings: Settings, name: str = "auto") -> Any:
    """Open the model with a back end: ``tensorrt``, ``onnxruntime``, ``opencv``, or the first that is there. Raises :class:`BundleError`."""
    classes = {"tensorrt": TensorRTBackend, "onnxruntime": OnnxRuntimeBackend, "opencv": OpenCVBackend}
    names = [name] if name != "auto" else [n for n in BACKENDS if n != "tensorrt" or find_engine(settings.folder) is not None]
    for candidate in names:
        try:
            return classes[candidate](settings)
        except ImportError as error:
            if candidate == names[-1]:
                raise BundleError(f"{candidate} is not installed here ({error})") from None
        except BundleError:
            raise
        except Exception as error:  # the runtimes' exceptions have no common base class but Exception
            text = " ".join(str(error).split())[:300]
            raise BundleError("{}: {} cannot load it: {}".format(settings.folder / "model.onnx", candidate, text)) from None
    raise BundleError("no runtime found")


def best(output: Array, settings: Settings, top: int = 5) -> List[Dict[str, Any]]:
    """Return the ``top`` best classes of an output as {index, label, probability}, of equal ones the lower first; or raise BundleError."""
    row = np.asarray(output, np.float32).reshape(-1)
    if row.size != settings.classes:
        raise BundleError(f"the model gives {row.size} values, but there are {settings.classes} classes")
    order = np.argsort(-row, kind="stable")[:top]
    return [{"index": int(i), "label": settings.labels[i], "probability": float(row[i])} for i in order]


def detect(outputs: Sequence[Array], size: Tuple[int, int], settings: Settings) -> List[Dict[str, Any]]:
    """Return the boxes after non-maximum suppression as {index, label, score, box}, best first; or raise BundleError.

    Args:
        outputs: Scores and boxes of the model.
        size: (width, height) of the picture; ``box`` is x1, y1, x2, y2 in its pixels.
        settings: Those of a detector.
    """
    how = settings.detection
    assert how is not None  # noqa: S101
    scores, boxes = (np.asarray(output, np.float32) for output in outputs)
    if scores.size != how.priors * settings.classes or boxes.size != 4 * how.priors:
        raise BundleError(f"the model gives {scores.size} scores and {boxes.size} corners, which does not fit {how.priors} boxes")
    scores, boxes = scores.reshape(how.priors, settings.classes), boxes.reshape(how.priors, 4)
    labels = [label for label in range(settings.classes) if label != how.background]
    found = [(label, prior) for label in labels for prior in suppress(scores[:, label], boxes, how)]
    found.sort(key=lambda pair: -scores[pair[1], pair[0]])
    inner = np.array([settings.width, settings.height] * 2, np.float32)  # from the crop to the whole picture
    offset = np.array([(settings.resize[0] - settings.width) // 2, (settings.resize[1] - settings.height) // 2] * 2, np.float32)
    factor = np.array([size[0] / settings.resize[0], size[1] / settings.resize[1]] * 2, np.float32)
    return [
        {
            "index": label,
            "label": settings.labels[label],
            "score": float(scores[prior, label]),
            "box": [float(value) for value in (boxes[prior] * inner + offset) * factor],
        }
        for label, prior in (found[: how.keep_top_k] if how.keep_top_k >= 0 else found)
    ]


def suppress(scores: Array, boxes: Array, how: Detection) -> List[int]:
    """Return the indices of the boxes of one class that are kept, best first; of equal scores the lower index first."""
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > how.threshold]
    order = order[: how.top_k] if how.top_k >= 0 else order
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1)
    nms, kept = how.nms, []  # type: Any, List[int]
    for index in order.tolist():
        sides = np.minimum(boxes[index, 2:], boxes[kept, 2:]) - np.maximum(boxes[index, :2], boxes[kept, :2])
        shared = sides.clip(min=0).prod(1)
        whole = areas[index] + areas[kept] - shared
        meet = (sides > 0).all(1) & (whole > 0)
        if not meet.any() or (shared[meet] / whole[meet]).max() <= nms:
            kept.append(index)
            if how.eta < 1 and nms > 0.5:
                nms *= how.eta
    return [index for index in kept if boxes[index, 3] - boxes[index, 1] >= how.min_height]


def images(names: Sequence[str], settings: Settings, limit: int) -> Iterator[Tuple[str, Any]]:
    """Yield (name, image) of picture files, folders, videos and cameras (``camera:0``); the image is a BundleError where it is unreadable."""
    for name in names:
        path = Path(name)
        if path.is_dir():
            paths = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
            if not paths:
                yield name, BundleError(f"{name}: the folder holds no pictures")
        elif path.suffix.lower() in PICTURES or not (name.startswith(("camera:", "/dev/video")) or path.is_file()):
            paths = [path]
        else:
            yield from frames(name, settings, limit)
            continue
        for picture in paths:
            try:
                yield str(picture), read_picture(picture, settings)
            except BundleError as error:
                yield str(picture), error


def frames(name: str, settings: Settings, limit: int) -> Iterator[Tuple[str, Any]]:
    """Yield the frames of a video or a camera, named ``NAME#0``, ``NAME#1``…; at most ``limit``, 0 for all."""
    device = name[len("camera:") :]
    if name.startswith("camera:") and not device.isdigit():
        yield name, BundleError(f"{name}: write camera:0 for the first camera")
        return
    source = int(device) if name.startswith("camera:") else name  # type: Any
    count, video = 0, cv2.VideoCapture() if is_text(Path(name)) else cv2.VideoCapture(source)
    while video.isOpened() and (limit == 0 or count < limit):
        found, image = video.read()
        if not found:
            break
        yield f"{name}#{count}", cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if settings.order == "GRAY" else image
        count += 1
    if count == 0:
        yield name, BundleError(f"{name}: not a picture, video or camera that OpenCV can open")


def is_text(path: Path) -> bool:
    """Return whether a file begins like a text that is not a list of videos; FFmpeg would show it as frames of letters."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        start = stream.read(512)
    return not start.startswith((b"#EXTM3U", b"v=0", b"ffconcat")) and all(byte >= 32 or 9 <= byte <= 13 for byte in start)


def answer(name: str, batch: Array, size: Tuple[int, int], backend: Any, settings: Settings, top: int) -> Dict[str, Any]:
    """Return the result for one prepared image of ``size`` (width, height): ``guesses``, or ``boxes`` of a detector."""
    outputs = backend.run(batch)
    if settings.detection:
        return {"picture": name, "boxes": detect(outputs, size, settings)}
    return {"picture": name, "guesses": best(outputs[0], settings, top)}


def as_text(result: Dict[str, Any]) -> str:
    """Return the result for one picture as lines of text."""
    lines = [result["picture"], *("  {probability:6.4f}  {label}".format(**guess) for guess in result.get("guesses", []))]
    for box in result.get("boxes", []):
        lines.append("  {:6.4f}  {}  ({:.1f}, {:.1f}) to ({:.1f}, {:.1f})".format(box["score"], box["label"], *box["box"]))
    return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    """Classify all inputs; returns the exit code: 2 if one cannot be used."""
    code, settings = 0, Settings(options.bundle)
    backend = open_backend(settings, options.backend)
    if options.serve is not None:
        server = Server((options.host, options.serve), backend, settings, options.top)
        sys.stderr.write("classify: answers pictures at http://{}:{}/\n".format(*server.server_address[:2]))
        server.serve_forever()
    dump = options.dump.open("wb") if options.dump else None
    for name, image in images(options.inputs, settings, options.frames):
        if isinstance(image, BundleError):
            sys.stderr.write(f"classify: error: {image}\n")
            code = 2
            continue
        batch = prepare(image, settings)
        if dump:
            dump.write(batch.astype("<f4").tobytes())
        result = answer(name, batch, image.shape[1::-1], backend, settings, options.top)
        print(json.dumps(result, ensure_ascii=False) if options.json else as_text(result), flush=True)
    if dump:
        dump.close()
    return code


class Server(socketserver.ThreadingMixIn, HTTPServer):
    """Answers pictures by HTTP: a thread for each connection, one picture at a time in the model."""

    daemon_threads = True

    def __init__(self, address: Tuple[str, int], backend: Any, settings: Settings, top: int):
        self.backend, self.settings, self.top, self.lock = backend, settings, top, threading.Lock()
        super().__init__(address, Handler)

    def classify(self, data: bytes) -> Dict[str, Any]:
        """Return the result for the bytes of a picture's file."""
        image = decode_picture(data, "the picture", self.settings)
        batch = prepare(image, self.settings)
        with self.lock:
            return answer("", batch, (image.shape[1], image.shape[0]), self.backend, self.settings, self.top)


class Handler(BaseHTTPRequestHandler):
    """POST a picture's file, and get its result as JSON; GET answers that the service runs."""

    timeout, disable_nagle_algorithm = 30, True  # the body, written after the headers, does not wait for a delayed ACK
    server_version, sys_version = "caffetools", ""
    server: Server

    def do_GET(self) -> None:
        """Answer that the service runs."""
        self._send(200, {"status": "ready"})

    def do_POST(self) -> None:
        """Answer a picture."""
        length = self.headers.get("Content-Length") or ""
        if not length.isdigit():
            self._send(411, {"error": "send the picture's file with its Content-Length"})
        elif int(length) > MAX_BYTES:
            self._send(413, {"error": f"the picture has more than {MAX_BYTES} bytes"})
        else:
            try:
                self._send(200, self.server.classify(self.rfile.read(int(length))))
            except BundleError as error:
                self._send(400, {"error": str(error)})

    def _send(self, code: int, result: Dict[str, Any]) -> None:
        data = json.dumps(result, ensure_ascii=False).encode("utf-8") + b"\n"
        self.send_response(code)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; returns the exit code: 2 if an input or the bundle cannot be used."""
    parser = argparse.ArgumentParser(description="Classify pictures, folders, videos or a camera with the bundle in this folder.")
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="picture, folder, video, camera:0")
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parent, help="the bundle's folder (default: this one)")
    parser.add_argument("--top", type=int, default=5, help="number of classes (default 5)")
    parser.add_argument("--backend", choices=("auto", *BACKENDS), default="auto")
    parser.add_argument("--frames", type=int, default=0, help="stop after this many frames of a video or camera")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--dump", type=Path, metavar="FILE", help="write the model's inputs to FILE, float32")
    parser.add_argument("--serve", type=int, metavar="PORT", help="answer pictures sent by HTTP (POST) as JSON")
    parser.add_argument("--host", default="127.0.0.1", help="address for --serve (default: this machine only; 0.0.0.0 for all)")
    options = parser.parse_args(arguments)
    if not options.inputs and options.serve is None:
        parser.error("give pictures, folders, videos or camera:0, or --serve PORT")
    if options.top < 1:
        parser.error("--top needs at least 1")
    try:
        return run(options)
    except (BundleError, OverflowError) as error:
        sys.stderr.write(f"classify: error: {error}\n")
        return 2
    except BrokenPipeError:  # what reads the output, such as head, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        sys.stderr.write("classify: error: {}{}\n".format(f"{error.filename}: " if error.filename else "", error.strerror))
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
