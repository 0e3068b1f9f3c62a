from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caffetools.errors import ModelFileError
from caffetools.proto import wire
from caffetools.proto.binary import (
    read_binaryproto,
    read_caffemodel,
    read_solverstate,
    write_binaryproto,
    write_caffemodel,
    write_solverstate,
)
from caffetools.proto.blobs import array_to_blob, blob_to_array, encode_blob
from caffetools.proto.encoding import decode_text
from caffetools.proto.model import Caffemodel, SolverState
from caffetools.proto.schema import BlobProto, NetParameter, SolverStateMessage
from tests.conftest import GOLDEN

CAFFEMODELS = sorted(GOLDEN.glob("*/*.caffemodel"))
SOLVERSTATES = sorted(GOLDEN.glob("*/*.solverstate"))
MEANS = sorted(GOLDEN.glob("io/mean_*.binaryproto"))

ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)


def same(a: Any, b: Any) -> bool:
    """Equal bit by bit (NaNs too), in equal shapes."""
    return a.dtype == np.float32 and a.shape == b.shape and a.tobytes() == np.asarray(b).tobytes()


def small_model() -> Caffemodel:
    net = NetParameter(name="small")
    for name, type_ in (("data", "Input"), ("conv", "Convolution"), ("ip", "InnerProduct")):
        net.layer.add(name=name, type=type_, top=[name])
    rng = np.random.default_rng(0)
    blobs = {
        "conv": [rng.standard_normal((2, 1, 3, 3)).astype(np.float32), rng.standard_normal(2).astype(np.float32)],
        "ip": [rng.standard_normal((3, 8)).astype(np.float32)],
    }
    return Caffemodel(net, blobs)


def test_there_are_golden_files() -> None:
    assert len(CAFFEMODELS) >= 3 and len(SOLVERSTATES) >= 2 and len(MEANS) >= 5


@pytest.mark.parametrize("path", CAFFEMODELS, ids=lambda p: p.name)
def test_a_caffemodel_of_caffe_is_written_byte_by_byte_the_same(tmp_path: Path, path: Path) -> None:
    write_caffemodel(tmp_path / "again", read_caffemodel(path))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", CAFFEMODELS, ids=lambda p: p.name)
def test_a_caffemodel_has_the_blobs_that_protobuf_reads(path: Path) -> None:
    model = read_caffemodel(path)
    message = NetParameter()
    message.ParseFromString(path.read_bytes())
    assert {layer.name: len(layer.blobs) for layer in message.layer if layer.blobs} == {n: len(a) for n, a in model.blobs.items()}
    for layer in message.layer:
        for array, blob, other in zip(model.blobs.get(layer.name, ()), layer.blobs, map(blob_to_array, layer.blobs), strict=True):
            assert same(array, np.array(blob.data, np.float32).reshape(blob.shape.dim)) and same(array, other)
        layer.ClearField("blobs")
    assert model.net == message


@pytest.mark.parametrize("path", SOLVERSTATES, ids=lambda p: p.name)
def test_a_solverstate_of_caffe_is_written_byte_by_byte_the_same(tmp_path: Path, path: Path) -> None:
    state = read_solverstate(path)
    message = SolverStateMessage.FromString(path.read_bytes())
    assert (state.iter, state.learned_net, state.current_step) == (message.iter, message.learned_net, message.current_step)
    assert all(same(array, blob_to_array(blob)) for array, blob in zip(state.history, message.history, strict=True))
    write_solverstate(tmp_path / "again", state)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", MEANS, ids=lambda p: p.name)
def test_a_mean_file_of_caffe_is_read_and_written_the_same(tmp_path: Path, path: Path) -> None:
    mean = read_binaryproto(path)
    assert same(mean, np.load(path.with_suffix(".npy")))
    write_binaryproto(tmp_path / "again", mean)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_blob_with_a_shape_is_read_as_a_mean_too(golden: Path) -> None:
    path = golden / "io" / "blobproto.binaryproto"
    array = read_binaryproto(path)
    assert array.shape == (2, 3, 4)
    with np.load(golden / "io" / "caffe_io.npz") as file:
        assert any(value.shape == array.shape and np.array_equal(value, array) for value in file.values())


def test_a_mean_without_four_axes_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="four axes, not 3"):
        write_binaryproto(tmp_path / "mean", np.zeros((3, 2, 2), np.float32))
    assert not list(tmp_path.iterdir())


@SHARED_FOLDER
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.lists(ARRAYS, min_size=1, max_size=3), min_size=1, max_size=3
    )
)
def test_arrays_of_any_shape_come_back_from_a_caffemodel(tmp_path: Path, blobs: dict[str, list[Any]]) -> None:
    net = NetParameter(name="n")
    for name in blobs:
        net.layer.add(name=name, type="Any")
    write_caffemodel(tmp_path / "m", Caffemodel(net, blobs))
    model = read_caffemodel(tmp_path / "m")
    assert model.net == net and list(model.blobs) == list(blobs)
    for name, arrays in blobs.items():
        assert all(same(a, b) for a, b in zip(model.blobs[name], arrays, strict=True))
    # Protobuf itself reads the same.
    message = NetParameter.FromString((tmp_path / "m").read_bytes())
    assert [[list(blob.shape.dim) for blob in layer.blobs] for layer in message.layer] == [
        [list(array.shape) for array in arrays] for arrays in blobs.values()
    ]


@SHARED_FOLDER
@given(st.lists(ARRAYS, max_size=4), st.integers(0, 2**31 - 1), st.integers(0, 100))
def test_a_solverstate_comes_back(tmp_path: Path, history: list[Any], iteration: int, step: int) -> None:
    write_solverstate(tmp_path / "s", SolverState(iteration, "a.caffemodel", history, step))
    state = read_solverstate(tmp_path / "s")
    assert (state.iter, state.learned_net, state.current_step) == (iteration, "a.caffemodel", step)
    assert all(same(a, b) for a, b in zip(state.history, history, strict=True))


def of_no_fork(number: int) -> bool:
    known = {*NetParameter.DESCRIPTOR.fields_by_number, *NetParameter().layer.add().DESCRIPTOR.fields_by_number}
    return not 19000 <= number < 20000 and number not in known


@SHARED_FOLDER
@given(st.integers(200, 2**29 - 2).filter(of_no_fork), st.binary(max_size=20))
def test_unknown_fields_of_net_and_layer_are_kept(tmp_path: Path, number: int, value: bytes) -> None:
    unknown = wire.bytes_key(number, len(value)) + value
    model = small_model()
    model.net = NetParameter.FromString(model.net.SerializeToString() + unknown)
    model.net.layer[1].MergeFromString(unknown)
    write_caffemodel(tmp_path / "one", model)
    read = read_caffemodel(tmp_path / "one")
    write_caffemodel(tmp_path / "two", read)
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
    assert (tmp_path / "two").read_bytes().count(unknown) == 2
    assert same(read.blobs["conv"][0], model.blobs["conv"][0])


def test_arrays_that_are_not_contiguous_or_not_float32_are_written_by_value(tmp_path: Path) -> None:
    model = small_model()
    whole = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    model.blobs = {"conv": [whole.transpose(2, 0, 1), whole[:, ::2]], "ip": [np.float32(3.0)]}  # type: ignore[list-item]
    write_caffemodel(tmp_path / "m", model)
    read = read_caffemodel(tmp_path / "m").blobs
    assert same(read["conv"][0], np.ascontiguousarray(whole.transpose(2, 0, 1), np.float32))
    assert same(read["conv"][1], np.ascontiguousarray(whole[:, ::2], np.float32))
    assert read["ip"][0].shape == () and read["ip"][0].item() == 3.0


def test_arrays_are_views_that_cannot_be_written_to(tmp_path: Path) -> None:
    write_caffemodel(tmp_path / "m", small_model())
    array = read_caffemodel(tmp_path / "m").blobs["conv"][0]
    assert not array.flags.owndata and not array.flags.writeable


def test_a_later_layer_of_the_same_name_wins(tmp_path: Path) -> None:
    one, two = small_model(), small_model()
    two.blobs["conv"][1] = np.array([5, 6], np.float32)
    for name, model in (("one", one), ("two", two)):
        write_caffemodel(tmp_path / name, model)
    (tmp_path / "both").write_bytes((tmp_path / "one").read_bytes() + (tmp_path / "two").read_bytes())
    assert read_caffemodel(tmp_path / "both").blobs["conv"][1].tolist() == [5, 6]


BLOBS = {
    "floats one by one": (b"".join(b"\x2d" + np.float32(v).tobytes() for v in (1, 2, 3)), [1, 2, 3]),
    "two packed runs": (b"".join(wire.bytes_key(5, 4 * len(v)) + np.float32(v).tobytes() for v in ([1], [2, 3])), [1, 2, 3]),
    "doubles": (BlobProto(double_data=[1, 2.5, 3]).SerializeToString(), [1, 2.5, 3]),
}


@pytest.mark.parametrize("form", BLOBS)
def test_every_form_in_which_values_are_stored_is_read(tmp_path: Path, form: str) -> None:
    data, values = BLOBS[form]
    for shape in (BlobProto(num=1, channels=1, height=1, width=3), BlobProto(shape={"dim": [1, 1, 1, 3]})):
        (tmp_path / "b").write_bytes(shape.SerializeToString() + data)
        assert same(read_binaryproto(tmp_path / "b"), np.array(values, np.float32).reshape(1, 1, 1, 3))


@pytest.mark.parametrize(("kind", "dtype"), [(0, "<f8"), (1, "<f4"), (2, "<f2")])
def test_blobs_of_nvcaffe_hold_their_values_as_bytes(kind: int, dtype: str) -> None:
    blob = BlobProto(shape={"dim": [2]}, raw_data_type=kind, raw_data=np.array([1.5, -2], dtype).tobytes())
    blob.raw_diff_type, blob.raw_diff = kind, np.array([3, 4], dtype).tobytes()
    assert blob_to_array(blob).tolist() == [1.5, -2] and blob_to_array(blob, diff=True).tolist() == [3, 4]
    with pytest.raises(wire.WireError, match="a blob of NVCaffe's type 5 holds no weights"):
        blob_to_array(BlobProto(raw_data_type=5, raw_data=b"x"))


def test_diffs_are_read_where_asked_for() -> None:
    blob = BlobProto(shape={"dim": [2]}, data=[1, 2], diff=[3, 4])
    assert blob_to_array(blob).tolist() == [1, 2] and blob_to_array(blob, diff=True).tolist() == [3, 4]


@given(ARRAYS)
def test_a_blob_message_holds_the_array(array: Any) -> None:
    assert same(blob_to_array(array_to_blob(array)), array)
    assert b"".join(bytes(piece) for piece in encode_blob(array)) == b"".join(encode_blob(array))


@pytest.mark.wild
@pytest.mark.parametrize("name", ["mtcnn_det1", "mtcnn_det2", "mtcnn_det3", "ultraface_rfb_320", "waifu2x_upresnet10"])
def test_a_published_caffemodel_is_read(name: str, wild_golden: Path) -> None:
    path = wild_golden / "models" / f"{name}.caffemodel"
    model = read_caffemodel(path)
    message = NetParameter()
    message.ParseFromString(path.read_bytes())
    layers: dict[str, Any] = {layer.name: layer for layer in [*cast(Any, message).layer, *cast(Any, message).layers] if layer.blobs}
    assert layers.keys() == model.blobs.keys() and layers
    for key, arrays in model.blobs.items():
        assert all(
            same(array, np.array(blob.data, np.float32).reshape(array.shape)) for array, blob in zip(arrays, layers[key].blobs, strict=True)
        )


READ = """
import sys
import numpy
from caffetools.proto.binary import read_caffemodel

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

before = peak()
model = read_caffemodel(sys.argv[1])
total = sum(float(array.ravel()[::512].sum()) for arrays in model.blobs.values() for array in arrays)
print(peak() - before, total)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure")
def test_a_large_caffemodel_takes_at_most_1_3_times_its_size_of_memory(tmp_path: Path) -> None:
    shapes = [
        (96, 3, 11, 11),
        (256, 48, 5, 5),
        (384, 256, 3, 3),
        (384, 192, 3, 3),
        (256, 192, 3, 3),
        (4096, 9216),
        (4096, 4096),
        (1000, 4096),
    ]
    net = NetParameter(name="AlexNet-like")
    blobs = {}
    for index, shape in enumerate(shapes):
        net.layer.add(name=f"layer{index}", type="InnerProduct")
        # Views of one number: only the file is large.
        blobs[f"layer{index}"] = [np.broadcast_to(np.float32(1), shape), np.broadcast_to(np.float32(1), shape[:1])]
    path = tmp_path / "large.caffemodel"
    write_caffemodel(path, Caffemodel(net, blobs))
    size = path.stat().st_size
    assert size > 240e6
    # The peak of a process of its own (getrusage would also count the parent's, from before exec).
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    run = subprocess.run([sys.executable, "-c", READ, str(path)], env=environment, capture_output=True, text=True, check=True)
    path.unlink()
    extra, total = map(float, run.stdout.split())
    assert total > 100_000
    assert extra <= 1.3 * size


def test_a_layer_whose_name_is_not_utf_8_keeps_its_weights(tmp_path: Path) -> None:
    write_caffemodel(tmp_path / "m", small_model())
    data = (tmp_path / "m").read_bytes().replace(b"\n\x02ip\x12", b"\n\x02i\xdf\x12")
    (tmp_path / "m").write_bytes(data)
    model = read_caffemodel(tmp_path / "m")
    assert list(model.blobs) == ["conv", decode_text(b"i\xdf")]
    write_caffemodel(tmp_path / "again", model)
    assert (tmp_path / "again").read_bytes() == data


def test_a_model_without_a_field_that_must_be_given_is_damaged(tmp_path: Path) -> None:
    net = NetParameter()
    net.layer.add(name="c", type="Clip").clip_param.min = 1
    (tmp_path / "m").write_bytes(net.SerializePartialToString())
    with pytest.raises(ModelFileError, match=r"damaged: layer\[0\].clip_param.max is missing"):
        read_caffemodel(tmp_path / "m")
