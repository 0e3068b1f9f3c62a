"""Every name that BVLC Caffe's Python module has is there, as is what forks add; ``pycaffe_names.json`` lists ``dir()`` of a real one."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
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
    "caffe.pycaffe": set() if importlib.util.find_spec("six") else {"six"},
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
    missing = [member for member in NAMES["classes"][path] if member not in _NOT_OF_CLASSES and not hasattr(found, member)]
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
    names = caffe._caffe.StringVec
    assert type(net._layer_names) is type(net._blob_names) is type(caffe.layer_type_list()) is names
    assert type(net._inputs) is type(net._outputs) is type(net._top_ids(0)) is type(net._bottom_ids(1)) is caffe._caffe.IntVec
    assert (net._inputs, net._outputs, net._bottom_ids(1), net._top_ids(1)) == ([0], [1], [0], [1])
    assert type(net._blob_loss_weights) is caffe._caffe.DtypeVec
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
    assert (caffe.proto.caffe_pb2.FLOAT16, caffe.proto.caffe_pb2.TEST) == (2, 1)
    assert caffe.io.caffe_pb2._V1LAYERPARAMETER_LAYERTYPE.values_by_number[4].name == "CONVOLUTION"
    assert {"CONVOLUTION", "RELU"} <= set(caffe.proto.caffe_pb2._V1LAYERPARAMETER_LAYERTYPE.values_by_name)


def test_small_additions_of_forks_are_there(tmp_path: Path) -> None:
    import caffe

    (tmp_path / "net.prototxt").write_text(
        'layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 1 dim: 3 } data_filler { value: 2 } } }\n'
        'layer { name: "y" type: "Power" bottom: "x" top: "y" power_param { scale: 3 } }\n'
    )
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)  # Intel's
    assert net.forward_simple() is None
    assert net.blobs["y"].data.tolist() == [[6, 6, 6]]
    with pytest.raises(AttributeError, match=r"belongs to a fork: caffetools\.visualize\.deconvnet computes it"):
        _ = net.deconv_from_layer
    flow = np.arange(12.0).reshape(1, 4, 3)  # LRCN's
    assert caffe.io.flip_image(flow, 255, True)[0, 0].tolist() == [255 - 9, 10, 11]
    assert caffe.io.flip_image(flow)[0, :, 0].tolist() == [9, 6, 3, 0]
    transformer = caffe.io.Transformer({"data": (1, 3, 4, 4)})
    transformer.set_is_flow("data", True)
    assert transformer.is_flow == {"data": True}
    (tmp_path / "solver.prototxt").write_text(
        f'net: "{tmp_path / "net.prototxt"}" base_lr: 1 lr_policy: "fixed" max_iter: 7 snapshot_prefix: "{tmp_path / "s"}"'
    )
    solver = caffe.SGDSolver(str(tmp_path / "solver.prototxt"))  # CTPN's
    assert (solver.max_iter, solver.snapshot_prefix) == (7, str(tmp_path / "s"))


def test_a_fork_switches_its_log_off(caplog: pytest.LogCaptureFixture) -> None:
    import caffe

    level = logging.getLogger("caffetools").level
    try:
        caffe.set_logging_disabled()
        caffe.log("not seen")
        assert caplog.text == ""
    finally:
        logging.getLogger("caffetools").setLevel(level)


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


def test_what_older_scripts_call_on_a_net_names_its_successor(tmp_path: Path) -> None:
    import caffe

    (tmp_path / "net.prototxt").write_text('layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n')
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    with pytest.raises(AttributeError, match=r"use set_mean of a caffe\.io\.Transformer"):
        net.set_mean("x", np.zeros(3))
    with pytest.raises(AttributeError, match=r"give the phase to caffe\.Net"):
        net.set_phase_test()
    with pytest.raises(AttributeError, match=r"use caffe\.set_mode_gpu"):
        net.set_mode_gpu()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'$"):
        _ = net.nothing
    assert not hasattr(net, "nothing")
    with pytest.raises(AttributeError, match="torchrun"):
        _ = caffe.MultiSolver


def test_arguments_have_caffes_names() -> None:
    import caffe.coord_map

    axis, scale, shift = caffe.coord_map.inverse(coord_map=(1, 2.0, 4.0))
    assert (axis, scale, shift) == (1, 0.5, -2.0)
    param = caffe.proto.caffe_pb2.LayerParameter()
    caffe.net_spec.assign_proto(proto=param, name="name", val="a")
    assert param.name == "a"
    vector = caffe.io.arraylist_to_blobprotovector_str([np.zeros((1, 2, 3, 4))])
    assert caffe.io.blobprotovector_str_to_arraylist(str=vector)[0].shape == (1, 2, 3, 4)
    small = caffe.io.resize(np.full((6, 6), 4, np.uint8), (3, 3), 1, "constant", 0, True, True)
    np.testing.assert_allclose(small, 4)


def test_deprocess_keeps_the_type_of_its_array() -> None:
    import caffe

    transformer = caffe.io.Transformer({"data": (1, 3, 2, 2)})
    transformer.set_raw_scale("data", 255)
    for given, found in (("float64", "float64"), ("float32", "float32"), ("int64", "float32")):
        assert transformer.deprocess("data", np.zeros((3, 2, 2), given)).dtype == found


def test_the_type_of_a_solvers_settings_and_names_by_number(tmp_path: Path) -> None:
    import caffe

    (tmp_path / "net.prototxt").write_text(
        'layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 dim: 3 } } }\n'
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 3 } }\n'
        'layer { name: "l" type: "EuclideanLoss" bottom: "y" bottom: "x" top: "l" }\n'
    )
    (tmp_path / "solver.prototxt").write_text(f'net: "{tmp_path}/net.prototxt" base_lr: 0.5 lr_policy: "fixed" max_iter: 7 display: 0')
    solver = caffe.SGDSolver(str(tmp_path / "solver.prototxt"))
    assert isinstance(solver.param, caffe._caffe.SolverParameter)
    assert not isinstance(caffe.proto.caffe_pb2.NetParameter(), caffe._caffe.SolverParameter)
    assert (solver.param.max_iter, solver.param.base_lr) == (7, 0.5)
    names = caffe.pycaffe._Net_get_id_name(caffe.Net._bottom_ids, "_kept_names")
    assert names.fget(solver.net) == solver.net.bottom_names == {"x": [], "ip": ["x"], "l": ["y", "x"]}
    assert caffe.pycaffe.caffe is caffe
