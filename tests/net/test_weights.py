"""Weights by layer name: what loads, what starts fresh, what does not fit."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from caffetools.errors import ModelFileError, NetError
from caffetools.net.net import Net
from caffetools.net.weights import load_weights, read_weights, save_weights, to_caffemodel
from caffetools.proto.blobs import release_pages
from tests.net.test_net import conv, data, net_of, relu


def small_net(outputs: int = 4, second: str = "d") -> Net:
    return net_of(data() + conv("c", "data", outputs=outputs) + relu("r", "c") + conv(second, "c"))


def test_saved_weights_load_bit_for_bit(tmp_path: Path) -> None:
    net, other = small_net(), small_net()
    save_weights(net, tmp_path / "a.caffemodel")
    report = load_weights(other, tmp_path / "a.caffemodel")
    assert (report.loaded, report.fresh, report.unused) == (["c", "d"], [], [])
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_names_start_fresh_and_are_reported(tmp_path: Path) -> None:
    save_weights(small_net(), tmp_path / "a.caffemodel")
    other = small_net(second="new")
    before = other.layer("new").blobs[0].clone()
    report = load_weights(other, tmp_path / "a.caffemodel")
    assert (report.loaded, report.fresh, report.unused) == (["c"], ["new"], ["d"])
    assert torch.equal(other.layer("new").blobs[0], before)


def test_another_shape_is_an_error_and_nothing_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.caffemodel"
    save_weights(small_net(outputs=5), path)
    net = small_net()
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(NetError, match=rf"layer 'c': parameter blob 0 is 4 x 3 x 3 x 3 in the net but 5 x 3 x 3 x 3 in {path}"):
        load_weights(net, path)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_old_files_with_four_axes_for_every_blob_fit() -> None:
    net = small_net()
    model = to_caffemodel(net)
    model.blobs["c"][1] = model.blobs["c"][1].reshape(1, 1, 1, 4) + 1
    load_weights(net, model)
    np.testing.assert_array_equal(net.layer("c").blobs[1].detach(), model.blobs["c"][1].reshape(4))


def test_hdf5_weights_load_with_any_slashes_in_names(tmp_path: Path) -> None:
    path = tmp_path / "a.caffemodel.h5"
    net = small_net(second="inception/3x3")
    arrays = {layer.name: [p.detach().numpy() + 1 for p in layer.blobs] for layer in net.layers if len(layer.blobs)}
    with h5py.File(path, "w") as file:
        for name, blobs in arrays.items():
            for index, blob in enumerate(blobs):
                file[f"data/{name}/{index}"] = blob
    assert load_weights(net, path).loaded == ["c", "inception/3x3"]
    np.testing.assert_array_equal(net.layer("inception/3x3").blobs[0].detach(), arrays["inception/3x3"][0])


def test_a_file_that_is_not_a_hdf5_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelFileError, match=r"a\.h5: this is text, and an HDF5 \.caffemodel is expected"):
        read_weights(tmp_path / "a.h5")


def test_a_missing_hdf5_file_is_an_error_in_the_systems_words(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"a\.h5: cannot read: No such file or directory$"):
        read_weights(tmp_path / "a.h5")


def test_weights_of_real_caffe_load_and_save_to_the_same_arrays(golden: Path, tmp_path: Path) -> None:
    source = golden / "logs" / "tiny_iter_150.caffemodel"
    net = net_of(
        data("dim: 2 dim: 1 dim: 8 dim: 8") + conv("conv1", "data", outputs=6).replace("pad: 1", ""),
    )
    assert load_weights(net, source).unused == ["ip"]
    save_weights(net, tmp_path / "again.caffemodel")
    np.testing.assert_array_equal(read_weights(tmp_path / "again.caffemodel").blobs["conv1"][0], read_weights(source).blobs["conv1"][0])


def test_weights_saved_under_the_name_of_an_hdf5_file_are_one(tmp_path: Path) -> None:
    net = small_net()
    path = tmp_path / "w.caffemodel.h5"
    save_weights(net, path)
    assert path.read_bytes()[:4] == b"\x89HDF"
    again = small_net()
    load_weights(again, path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs a peak of memory that can be reset")
def test_a_file_is_not_in_memory_next_to_its_copy(tmp_path: Path) -> None:
    param = data() + 'layer { name: "f" type: "InnerProduct" bottom: "data" top: "f" inner_product_param { num_output: 100000 } }'
    net = net_of(param)
    save_weights(net, tmp_path / "a.caffemodel")
    size = (tmp_path / "a.caffemodel").stat().st_size
    expected = net.layer("f").blobs[0].clone()
    net.layer("f").blobs[0].data.fill_(0.5)

    def memory(what: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    load_weights(net, tmp_path / "a.caffemodel")
    assert size > 64e6
    assert memory("VmHWM") - before < size / 2
    assert torch.equal(net.layer("f").blobs[0], expected)


def test_values_of_a_mapped_file_are_read_again_after_their_pages_were_released(tmp_path: Path) -> None:
    save_weights(small_net(), tmp_path / "a.caffemodel")
    model = read_weights(tmp_path / "a.caffemodel")
    before = model.blobs["c"][0].copy()
    release_pages(model.blobs["c"][0])
    release_pages(before)  # no part of a file
    np.testing.assert_array_equal(model.blobs["c"][0], before)
