"""Benchmarks that wait for other machines run as far as they can here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.proto.text import read_net
from caffetools.zoo.networks import prototxt_path

ROOT = Path(__file__).parent.parent


def test_gpu_benchmark_measures_every_part_on_the_cpu_in_a_dry_run() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    report = json.loads(done.stdout)
    assert (report["device"], report["quick"]) == ("CPU", True)
    measured = [row for row in report["results"] if "left out" not in row]
    left_out = [row for row in report["results"] if "left out" in row]
    assert {(row["part"], row["who"]) for row in measured} == {
        ("inference", "caffetools"),
        ("inference", "pytorch"),
        ("training", "caffetools"),
        ("training", "pytorch"),
        ("reading", "caffetools"),
    }
    assert all(row["images/s"] > 0 for row in measured)
    assert left_out and all("CUDA graph" in row["variant"] and row["left out"] == "CUDA graphs need a CUDA device" for row in left_out)


def test_gpu_benchmark_without_a_gpu_is_one_line() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("--device cpu --quick tries the script itself")


def test_growth_benchmark_measures_and_draws_small_sizes(tmp_path: Path) -> None:
    picture = tmp_path / "growth.png"
    command = [sys.executable, str(ROOT / "benchmarks" / "growth.py"), "--quick", "--part", "depth", "--json", "--figure", str(picture)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    points = report["results"]["depth"]
    assert list(points) == ["10", "40"]
    assert all(value > 0 for figures in points.values() for value in figures.values())
    assert points["10"].keys() == report["exponents"]["depth"].keys() >= {"TEST pass", "training iteration", "GB, training"}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_inference_benchmark_reports_memory_and_measures_no_saved_row_again(tmp_path: Path) -> None:
    rows, models = tmp_path / "rows.json", tmp_path / "models"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "inference.py"),
        "--only",
        "lenet",
        "--batch",
        "2",
        "--rounds",
        "1",
        "--threads",
        "1",
    ]
    command += ["--sides", "layer by layer", "--json", "--save", str(rows), "--models", str(models)]
    first = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert first == json.loads(rows.read_text())
    row = first["results"]["lenet, batch 2"]
    assert row["rounds"] == 1
    for side in (row["caffetools"], row["layer by layer"]):
        assert side["peak MB"] > side["import MB"] > 50
        assert side["back to back"]["median"] > 0
    for path in models.rglob("*.caffemodel"):
        path.unlink()  # a measurement would need it
    again = subprocess.run([*command[:-5], "--save", str(rows), "--models", str(models)], capture_output=True, text=True, check=True).stdout
    assert again.splitlines()[-1].startswith("| lenet, 2 |")


@pytest.mark.parametrize("name", ["squeezenet_v1.1", "mobilenet_v2"])
def test_networks_by_hand_compute_what_ours_compute(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    plain = importlib.import_module("plain")
    torch.manual_seed(0)
    param = read_net(prototxt_path(name, "deploy"))
    param.layer[0].input_param.shape[0].dim[0] = 1
    net = Net(param)
    importlib.import_module("inference").fill(net, 0.1, 0.5)
    save_weights(net, tmp_path / "w.caffemodel")
    model = plain.NETWORKS[name][0]().eval()
    plain.load_caffemodel(model, tmp_path / "w.caffemodel")
    x = torch.randn(net.blob_shapes["data"])
    with torch.no_grad():
        torch.testing.assert_close(model.probabilities(x), net({"data": x})["prob"].flatten(1), rtol=1e-3, atol=1e-6)


def test_inference_benchmark_refuses_rows_of_other_threads_and_other_files(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "inference.py"), "--threads", "2", "--save", str(rows)]
    for text, part in (('{"threads": 1, "results": {}}', "measured with 1 threads, not 2"), ("[]", "holds no rows of this script")):
        rows.write_text(text)
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, rows.read_text()) == (2, text)
        assert part in done.stderr.splitlines()[-1]


def test_the_onnx_benchmark_leaves_the_name_to_the_package() -> None:
    folder = ROOT / "benchmarks"
    # As a script of the same folder imports it.
    code = "import onnx; from onnx import helper; print(onnx.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).name == "__init__.py"
    command = [sys.executable, str(folder / "onnx.py"), "--help"]
    assert "--networks" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
