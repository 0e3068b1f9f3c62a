"""Every name that BVLC Caffe's Python module has is there, as is what forks add; ``pycaffe_names.json`` lists ``dir()`` of a real one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

import caffetools
from caffetools.errors import CaffeToolsError

NAMES = json.loads(Path(__file__).with_name("pycaffe_names.json").read_text())

# Of a later fork's schema than ours; helpers of Python 2 and 3 in one file, and of boost.
NOT_CAFFES = {
    "caffe.io": set(),
    "caffe.net_spec": {"_param_names", "protobuf", "six"},
    "caffe.pycaffe": {"_Net_get_id_name", "caffe", "izip_longest", "six"},
    "caffe.classifier": {"caffe"},
    "caffe.detector": {"caffe"},
    "caffe.coord_map": {"division"},
    "caffe.proto.caffe_pb2": {
        name
        for name in NAMES["modules"]["caffe.proto.caffe_pb2"]
        if any(own in name.upper() for own in ("CONTINUATIONINDICATOR", "CTCLOSS", "LABELSEQUENCE", "REVERSE", "ROUNDMODE", "PERMUTE"))
    },
}
_NOT_OF_CLASSES = {"_Transformer__check_input"}


@pytest.fixture(autouse=True)
def installed() -> None:
    caffetools.install_as_caffe()


@pytest.mark.parametrize("module", NAMES["modules"])
def test_modules_have_the_names_of_a_real_caffe(module: str) -> None:
    loaded = importlib.import_module(module)
    missing = [name for name in NAMES["modules"][module] if name not in NOT_CAFFES.get(module, set()) and not hasattr(loaded, name)]
    assert not missing


@pytest.mark.parametrize("path", NAMES["classes"])
def test_classes_have_the_members_of_a_real_caffe(path: str) -> None:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    declared = {key for kind in found.__mro__ for key in getattr(kind, "__annotations__", {})} | _NOT_OF_CLASSES
    missing = [member for member in NAMES["classes"][path] if member not in declared and not hasattr(found, member)]
    if name == "SolverParameter":
        missing = [member for member in missing if member not in found.DESCRIPTOR.fields_by_name]
    assert not missing


def test_types_of_what_scripts_hold_are_those_of_the_module(tmp_path: Path) -> None:
    import caffe

    (tmp_path / "net.prototxt").write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }\n'
    )
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    assert type(net.blobs["x"]) is type(net.params["ip"][0]) is caffe._caffe.Blob
    assert type(net.params["ip"]) is type(net._blobs) is type(net.layers[1].blobs) is caffe._caffe.BlobVec
    assert type(net.layers) is caffe._caffe.LayerVec
    assert isinstance(net.layers[1], caffe.Layer)
    assert (net.layers[1].type, len(net.layers[1].blobs), len(net.layers[0].blobs)) == ("InnerProduct", 2, 0)
    shape = net.blobs["x"].shape
    assert type(shape) is type(shape[:1]) is caffe._caffe.IntVec
    shape[0] = 5
    one = (4,)
    assert (shape, (1, *shape), one + shape[1:]) == ((5, 3), (1, 5, 3), (4, 3))
    assert net.blobs["x"].data.dtype == net.params["ip"][0].diff.dtype == np.float32
    assert [blob.shape for blob in net._blobs] == [(2, 3), (2, 2)]
    vector = caffe._caffe.BlobVec()
    vector.append(net.blobs["x"])
    vector.extend([net.blobs["y"]])
    assert len(vector) == 2


def test_names_of_forks_answer_with_what_to_use() -> None:
    import caffe

    with pytest.raises(AttributeError, match=r"caffe\.proto\.caffe_pb2\.LayerParameter"):
        _ = caffe.LayerParameter
    with pytest.raises(CaffeToolsError, match="torchrun"):
        caffe.NCCL()
    caffe.set_devices([0])
    timer = caffe.Timer()
    timer.start()
    timer.stop()
    assert timer.ms >= 0
    assert caffe.io.caffe_pb2._V1LAYERPARAMETER_LAYERTYPE.values_by_number[4].name == "CONVOLUTION"
    assert {"CONVOLUTION", "RELU"} <= set(caffe.proto.caffe_pb2._V1LAYERPARAMETER_LAYERTYPE.values_by_name)


def test_a_net_spec_has_the_methods_of_ssds_fork() -> None:
    import caffe
    from caffe import layers as L

    spec = caffe.NetSpec()
    spec.data = L.Input(shape=dict(dim=[1, 3, 8, 8]))
    spec.conv = L.Convolution(spec.data, num_output=2, kernel_size=3)
    assert spec.keys() == ["data", "conv"]
    assert spec.vals() == [spec.data, spec.conv]
    spec.update("conv", {"num_output": 7})
    assert spec.to_proto().layer[1].convolution_param.num_output == 7
    assert not hasattr(spec, "none")
    with pytest.raises(KeyError, match="no top 'none'"):
        _ = spec.none


def test_modules_of_a_forks_python_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    folder = tmp_path / "python" / "caffe" / "layers" / "somenet"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "targets.py").write_text("from caffe import layers as L\nWIDTH = 3\n")
    (tmp_path / "python" / "caffe" / "own_libs.py").write_text("from caffe.proto import caffe_pb2\nNAME = 'own'\n")
    monkeypatch.syspath_prepend(str(tmp_path / "python"))
    import caffe.layers.somenet.targets
    from caffe.own_libs import NAME

    assert (NAME, caffe.layers.somenet.targets.WIDTH, caffe.layers.ReLU.__name__) == ("own", 3, "make")
    for name in ("caffe.own_libs", "caffe.layers.somenet", "caffe.layers.somenet.targets"):
        del sys.modules[name]
