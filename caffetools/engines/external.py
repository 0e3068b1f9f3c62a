"""Engines that run in another Python, as a subprocess: a real Caffe, and OpenCV 4's Caffe importer."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from caffetools.engines.base import Engine, EngineError, PathLike
from caffetools.engines.environments import Environment, find_environment
from caffetools.layers.base import Shape
from caffetools.net.net import Net
from caffetools.proto.schema import TEST

_WORKER = Path(__file__).with_name("_worker.py")


class ExternalEngine(Engine):
    """A deploy prototxt and its caffemodel in another interpreter; arrays go there and back in .npz files.

    Attributes:
        version: The library and its version.
        seconds: How long the last run took, without the way there and back.
    """

    ENVIRONMENT: ClassVar[str]

    def __init__(self, environment: Environment, deploy: PathLike, weights: PathLike):
        self.batch = None
        self.seconds = 0.0
        self._folder = tempfile.TemporaryDirectory(prefix="caffetools-")
        self._log = Path(self._folder.name, "stderr.txt").open("w+")  # noqa: SIM115 (as long as the process runs)
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        try:
            self._process = subprocess.Popen(
                [str(environment.python), str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # A file, since nobody reads a pipe that a talkative library fills.
                stderr=self._log,
                text=True,
                env={**clean, "GLOG_minloglevel": "3"},
                cwd=self._folder.name,
            )
        except OSError as error:
            raise EngineError(f"{environment.python} cannot be started: {error.strerror}") from None
        files = [str(Path(deploy).absolute()), str(Path(weights).absolute())]
        answer = self._ask({"open": files, "backend": environment.recipe.backend})
        self.outputs = [str(name) for name in answer["outputs"]]
        self.version = str(answer["version"])
        # What the engine calls an output → the blob.
        self._blobs = {name: name for name in self.outputs}
        if answer["inputs"] is None:
            net = Net.from_file(deploy, TEST, fill=False)
            self.inputs: dict[str, Shape] = {blob: net.blob_shapes[blob] for blob in net.inputs}
            # OpenCV names outputs after their layers, and lists layers without tops.
            tops = {layer.name: layer.tops for layer in net.layers}
            self._blobs = {name: tops[name][0] for name in self.outputs if tops.get(name)}
            self.outputs = list(self._blobs.values())
        else:
            self.inputs = {str(name): tuple(shape) for name, shape in answer["inputs"].items()}

    @classmethod
    def load(cls, deploy: PathLike, weights: PathLike | None = None, *, device: str = "cpu") -> ExternalEngine:
        """Open a deploy prototxt with its caffemodel, on the CPU.

        Raises:
            EngineError: The engine has no environment here, or it does not take the net.
        """
        if weights is None:
            raise EngineError(f"{os.fspath(deploy)}: its weights (a .caffemodel) are needed too")
        return cls(find_environment(cls.ENVIRONMENT), deploy, weights)

    def predict(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once on float32 arrays of any shape, as :meth:`Engine.predict` does. Raises :class:`EngineError` where the engine fails."""
        given, results = (Path(self._folder.name, name) for name in ("in.npz", "out.npz"))
        arrays: dict[str, Any] = {name: np.ascontiguousarray(value, np.float32) for name, value in batch.items()}
        np.savez(given, **arrays)
        self.seconds = float(self._ask({"run": str(given), "to": str(results)})["seconds"])
        with np.load(results, allow_pickle=False) as file:
            return {self._blobs[name]: file[name] for name in file.files if name in self._blobs}

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()
        self._folder.cleanup()

    def _ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise EngineError(f"the engine '{self.name}' is closed")
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            # Caffe ends the process where it finds a mistake, and writes the reason to stderr.
            self._process.wait()
            self._log.seek(0)
            lines = [text for text in self._log.read().splitlines() if text.strip() and not text.startswith("    @")]
            fatal = next((text for text in lines if text.startswith("F")), lines[-1] if lines else "no message")
            raise EngineError(f"the engine '{self.name}' ended: {fatal.strip()[:300]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(f"the engine '{self.name}' cannot run the net: {answer['error']}")
        return answer


class CaffeEngine(ExternalEngine):
    """A real Caffe (pycaffe)."""

    name = "caffe"
    ENVIRONMENT = "caffe"


class OpenCVEngine(ExternalEngine):
    """OpenCV's DNN module, by the Caffe importer of OpenCV 3.3 to 4."""

    name = "opencv"
    ENVIRONMENT = "opencv4"
