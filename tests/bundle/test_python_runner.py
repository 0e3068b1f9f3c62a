"""A bundle's own scripts, classify.py and check.py, which run without caffetools: pictures, videos, HTTP."""

from __future__ import annotations

import ast
import http.client
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from caffetools.bundle import standalone, standalone_check
from caffetools.bundle.check import write_sums
from tests.data.drawing import png_bomb


def test_the_python_runner_works_alone(copy: Path, tmp_path: Path) -> None:
    (copy / "samples" / "cut.png").write_bytes((copy / "samples" / "sample_0.png").read_bytes()[:-40])
    (copy / "samples" / "bomb.png").write_bytes(png_bomb())
    command = [sys.executable, "-I", copy / "classify.py", copy / "samples", "--json", "--top", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"classify: error: {copy / 'samples' / 'bomb.png'}: not a picture that OpenCV can decode (OPENCV_IO_MAX_IMAGE_PIXELS limits its pixels)\n"
        f"classify: error: {copy / 'samples' / 'cut.png'}: the picture is truncated or empty\n"
    )
    expected = json.loads((copy / "samples" / "expected.json").read_text())
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(answer["picture"]).name for answer in answers] == sorted(expected)
    for answer in answers:
        for got, wanted in zip(answer["guesses"], expected[Path(answer["picture"]).name][:2], strict=True):
            assert (got["index"], got["label"]) == (wanted["index"], wanted["label"])
            assert abs(got["probability"] - wanted["probability"]) < 1e-5


def test_a_bundle_checks_itself_without_caffetools(copy: Path, detectors: dict[str, Path], tmp_path: Path) -> None:
    def check(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        # An import of caffetools, or of what a device does not have, would fail.
        absent = "import sys; sys.modules.update(dict.fromkeys(('caffetools', 'torch', 'onnx'))); import runpy; sys.argv = sys.argv[1:];"
        command = [
            sys.executable,
            "-I",
            "-c",
            f"{absent} runpy.run_path(sys.argv[0], run_name='__main__')",
            folder / "check.py",
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    for folder in (copy, detectors["jetson"]):
        done = check(folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert "files are intact; 4 samples in onnxruntime give the expected results; largest difference" in done.stdout
    expected = json.loads((copy / "samples" / "expected.json").read_text())
    expected["sample_0.png"][0]["probability"] -= 0.002
    (copy / "samples" / "expected.json").write_text(json.dumps(expected))
    done = check(copy)
    message = "changed: its SHA-256 is not that of SHA256SUMS; copy the bundle again"
    assert (done.returncode, done.stderr) == (2, f"check: error: {copy / 'samples' / 'expected.json'}: {message}\n")
    write_sums(copy)
    done = check(copy, "--backend", "opencv")
    assert done.returncode == 1 and "sample_0.png: a probability differs by 0.002" in done.stderr


@pytest.mark.parametrize("script", [standalone, standalone_check])
def test_the_scripts_are_written_for_python_3_6(script: ModuleType) -> None:
    source = Path(str(script.__file__)).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 6))
    # Methods and options that came later.
    later = {"removesuffix", "removeprefix", "isascii", "missing_ok", "capture_output", "dirs_exist_ok", "is_relative_to"}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {
        node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg
    }
    assert not used & later
    assert "import caffetools" not in source and "from caffetools" not in source


@pytest.mark.parametrize("name", ["classify.py", "check.py"])
def test_a_script_without_its_packages_is_one_line(bundles: dict[str, Path], name: str) -> None:
    # Without site-packages there is no NumPy.
    command = [sys.executable, "-S", "-E", str(bundles["jetson"] / name)]
    done = subprocess.run([*command, "photo.jpg"] if name == "classify.py" else command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{name.removesuffix('.py')}: error: needs NumPy and OpenCV (No module named '")
    assert done.stderr.count("\n") == 1 and "pip install numpy opencv-python-headless" in done.stderr


def test_the_python_runner_reads_videos(bundles: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    assert video.isOpened()
    for number in range(4):
        video.write(np.full((48, 64, 3), 60 * number, np.uint8))
    video.release()
    settings = standalone.Settings(bundles["opencv"])
    assert [name for name, _ in standalone.images([str(path)], settings, 3)] == [f"{path}#{number}" for number in range(3)]
    # FFmpeg would show a list of files as frames of letters.
    for name, text in (("words.avi", "no film"), ("list.txt", "photo.jpg 0\n" * 300)):
        (tmp_path / name).write_text(text)
        ((_, error),) = standalone.images([str(tmp_path / name)], settings, 0)
        assert isinstance(error, standalone.BundleError)


def _request(port: int, data: bytes | None, path: str = "/") -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET" if data is None else "POST", path, data)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_the_python_runner_answers_pictures_by_http(bundles: dict[str, Path], detectors: dict[str, Path]) -> None:
    for folder, key in ((bundles["opencv"], "guesses"), (detectors["opencv"], "boxes")):
        settings = standalone.Settings(folder)
        server = standalone.Server(("127.0.0.1", 0), standalone.open_backend(settings, "onnxruntime"), settings, 2)
        port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            assert _request(port, None) == (200, {"status": "ready"})
            expected = json.loads((folder / "samples" / "expected.json").read_text())
            for name, wanted in expected.items():
                status, answer = _request(port, (folder / "samples" / name).read_bytes())
                assert status == 200
                assert [item["index"] for item in answer[key][:2]] == [item["index"] for item in wanted[:2]]
            assert _request(port, b"words") == (400, {"error": "the picture: not a picture that OpenCV can decode"})
            assert _request(port, b"") == (400, {"error": "the picture: the picture is truncated or empty"})
            with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
                plain.sendall(b"POST / HTTP/1.0\r\nContent-Length: 99999999999\r\n\r\n")
                assert b" 413 " in plain.recv(200)
            with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
                plain.sendall(b"POST / HTTP/1.0\r\nContent-Length: -1\r\n\r\n")
                assert b" 411 " in plain.recv(200)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def test_the_python_runner_needs_something_to_do(copy: Path) -> None:
    for arguments in ((), ("--serve", "99999999"), ("--top", "0", "x.png")):
        command = [sys.executable, copy / "classify.py", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr and "error: " in done.stderr
