"""What an import leaves in its folder, also where the disk is full or an earlier net was there; and padding by less than nothing."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from caffetools.errors import ModelFileError, WriteFailed
from caffetools.infer.import_model import torch_to_onnx
from caffetools.infer.sidecar import read_preprocessing, write_preprocessing
from caffetools.onnx.importer import ImportedNet, import_model
from caffetools.results import Preprocessing
from tests.cli.inprocess import error_of, run, run_well

SHAPE = (1, 3, 7, 6)


class Function(torch.nn.Module):
    """A module of a function of one tensor."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def imported(function: Callable[[torch.Tensor], torch.Tensor]) -> ImportedNet:
    return import_model(torch_to_onnx(Function(function), {"data": SHAPE}))


def test_a_full_disk_leaves_none_of_the_files(tmp_path: Path) -> None:
    # More text than weights.
    net = imported(lambda x: torch.relu(x * 2))
    sizes = [path.stat().st_size for path in net.write(tmp_path / "whole")]
    assert sizes[1] < sizes[0]
    mean = Preprocessing(channel_order="BGR", mean_image=np.zeros(SHAPE[1:], np.float32))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so that writing past the limit fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (sum(sizes) // 2, limits[1]))
    try:
        with pytest.raises(WriteFailed, match=r"deploy\.prototxt"):
            net.write(tmp_path / "new")
        with pytest.raises(WriteFailed):
            write_preprocessing(tmp_path / "new.prototxt", mean)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_the_preprocessing_of_an_earlier_net_does_not_stay_with_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(torch_to_onnx(Function(torch.relu), {"data": SHAPE}))
    deploy = tmp_path / "out" / "deploy.prototxt"
    deploy.parent.mkdir()
    write_preprocessing(deploy, Preprocessing(channel_order="RGB", mean_values=(1.0, 2.0, 3.0)))
    assert "already exists" in error_of(run("import", tmp_path / "m.onnx", "-o", tmp_path / "out"))
    assert read_preprocessing(deploy) is not None
    run_well("import", tmp_path / "m.onnx", "-o", tmp_path / "out", "--force")
    assert sorted(path.name for path in deploy.parent.iterdir()) == ["deploy.prototxt", "weights.caffemodel"]
    # The net is rewritten by other commands, too.
    write_preprocessing(tmp_path / "old.prototxt", Preprocessing(channel_order="RGB", scale=0.5))
    run_well("upgrade", deploy, tmp_path / "old.prototxt")
    assert read_preprocessing(tmp_path / "old.prototxt") is None


@pytest.mark.parametrize(
    ("amounts", "value"),
    [
        ((-1, 1, -1, 1), 0.0),
        ((2, -1, -2, 3), 0.5),
        ((-1, -2, 1, 1), 0.0),
        ((1, 1, -1, 0, 0, 2), 1.0),
        ((-2, -3, 0, 0), 0.0),
        ((0, 0, 0, 0, -1, 1), 0.0),
    ],
)
def test_padding_by_less_than_nothing_comes_together_with_padding(amounts: tuple[int, ...], value: float) -> None:
    net = imported(lambda x: functional.pad(x, amounts, value=value))
    assert net.largest_difference < 1e-6
    assert {layer.type for layer in net.model.net.layer} <= {"Input", "Slice", "Silence", "Convolution", "Power"}


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    proto = onnx.load_from_string(torch_to_onnx(torch.nn.Conv2d(3, 4, 3), {"data": SHAPE}))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.weights", size_threshold=0)
    assert import_model(tmp_path / "m.onnx").largest_difference < 1e-6
    (tmp_path / "m.weights").unlink()
    with pytest.raises(ModelFileError, match=r"its weights are in 'm.weights', which is missing; copy both files together"):
        import_model(tmp_path / "m.onnx")
