"""extract_features into HDF5: the values of the LMDB, in files that an HDF5Data layer reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffetools.data.torch_dataset import LmdbDataset
from caffetools.errors import CaffeToolsError, DataError
from caffetools.infer import features
from caffetools.infer.features import extract_features
from caffetools.net.net import Net
from caffetools.proto.schema import TEST, NetParameter
from caffetools.proto.text import parse

NET = """
layer { name: "data" type: "DummyData" top: "data" dummy_data_param {
  shape { dim: 3 dim: 2 dim: 5 dim: 4 } data_filler { type: "gaussian" std: 1 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 2 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
"""


def net() -> Net:
    torch.manual_seed(3)
    return Net(parse(NET, NetParameter), TEST)


def test_hdf5_has_the_values_of_the_lmdb_and_feeds_an_hdf5data_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two batches of ip (3 x 6) fit in a file, and none of conv (3 x 4 x 4 x 3) with another.
    monkeypatch.setattr(features, "_VALUES_PER_FILE", 36)
    for backend in ("lmdb", "hdf5"):
        paths = [tmp_path / f"{name}_{backend}" for name in ("conv", "ip")]
        assert extract_features(net(), ["conv", "ip"], paths, 5, backend=backend) == [(15, (4, 4, 3)), (15, (6, 1, 1))]
    assert len((tmp_path / "conv_hdf5" / "list.txt").read_text().splitlines()) == 5
    assert (tmp_path / "ip_hdf5" / "list.txt").read_text() == "".join(f"{tmp_path}/ip_hdf5/data_000{i}.h5\n" for i in range(3))
    for name, size in (("conv", (4, 4, 3)), ("ip", (6,))):
        stored = LmdbDataset(tmp_path / f"{name}_lmdb")
        text = f'hdf5_data_param {{ source: "{tmp_path}/{name}_hdf5/list.txt" batch_size: 15 }}'
        (read,) = Net(parse(f'layer {{ name: "h" type: "HDF5Data" top: "{name}" {text} }}', NetParameter), TEST).layers[0]()
        expected = np.stack([np.asarray(stored[number][0]).reshape(size) for number in range(15)])
        np.testing.assert_array_equal(read.numpy(), expected)


def test_an_existing_folder_is_replaced_by_force_only_and_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("keep")
    for force in (False, True):
        with pytest.raises(DataError, match="mine"):
            extract_features(net(), ["ip"], [tmp_path / "mine"], 1, backend="hdf5", force=force)
    extract_features(net(), ["ip"], [tmp_path / "out"], 1, backend="hdf5")
    extract_features(net(), ["ip"], [tmp_path / "out"], 2, backend="hdf5", force=True)

    def fail(done: int, _: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(net(), ["ip"], [tmp_path / "other"], 2, backend="hdf5", progress=fail)
    with pytest.raises(CaffeToolsError, match="the database type 'h5' is unknown; it can be lmdb, leveldb, hdf5 or parquet"):
        extract_features(net(), ["ip"], [tmp_path / "other"], 1, backend="h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]
