"""Dialects: one schema in memory, each fork's numbers in its binary files, and finding out which fork wrote one."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffetools.errors import CaffeToolsError, ModelFileError, PrototxtError
from caffetools.layers.registry import layer_types
from caffetools.proto import wire
from caffetools.proto.binary import read_caffemodel, write_caffemodel
from caffetools.proto.forks.dialect import bvlc_types, decode_net, dialect_of, encode
from caffetools.proto.forks.tables import DIALECTS, FIRST_PRIVATE_NUMBER, fork_schema
from caffetools.proto.model import Caffemodel
from caffetools.proto.options import ReadOptions, override_dialect, read_options
from caffetools.proto.schema import POOL, LayerParameter, NetParameter, is_repeated, message_class
from caffetools.proto.text import format_text, parse


def net(text: str) -> Any:
    return parse(text, NetParameter)


def layer_numbers(data: bytes) -> list[int]:
    """The field numbers of the first layer in a serialized net."""
    (layer, *_) = [item for item in wire.walk(memoryview(data)) if item.number == 100]
    return [item.number for item in wire.walk(memoryview(data)[layer.value : layer.end])]


def test_every_field_of_bvlc_caffe_has_its_number_and_type_next_to_the_forks_fields(golden: Path) -> None:
    with (golden / "schema.tsv").open(newline="") as stream:
        for row in csv.DictReader(stream, delimiter="\t"):
            owner = row["message_or_enum"]
            if row["kind"] == "field":
                field = POOL.FindMessageTypeByName(owner).fields_by_name[row["name"]]
                assert (field.number, is_repeated(field)) == (int(row["number"]), row["label"] == "repeated"), row
            else:
                assert POOL.FindEnumTypeByName(owner).values_by_name[row["name"]].number == int(row["number"]), row


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_fact_of_a_fork_is_in_the_schema(dialect: str) -> None:
    for fact in fork_schema(dialect).fields:
        field = message_class(fact.message).DESCRIPTOR.fields_by_name[fact.name]
        kind = field.message_type or field.enum_type
        assert kind is None or kind.full_name == f"caffe.{fact.type}"
    for fact in fork_schema(dialect).values:
        assert fact.name in POOL.FindEnumTypeByName(f"caffe.{fact.message}").values_by_name


def filled(message: Any, names: set[str], depth: int = 0) -> Any:
    """``message`` with a value in each of the fields ``names``; messages in it get a few of theirs."""
    for name in sorted(names):
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.message_type is not None:
            inner = getattr(message, name).add() if is_repeated(field) else getattr(message, name)
            inner.SetInParent()
            if depth < 1:
                filled(
                    inner,
                    {f.name for f in field.message_type.fields if f.number < FIRST_PRIVATE_NUMBER and f.message_type is None} & SCALARS,
                    depth + 1,
                )
        elif is_repeated(field):
            getattr(message, name).extend([value_of(field)] * 2)
        else:
            setattr(message, name, value_of(field))
    return message


def value_of(field: Any) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    return {field.TYPE_STRING: "s", field.TYPE_BYTES: b"b", field.TYPE_BOOL: True}.get(field.type, 3)


SCALARS = {"num_output", "kernel_h", "pool", "sigma", "order", "min_size", "variance", "scale", "pooled_w", "bias_term", "unpool"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_fields_of_a_fork_are_written_under_its_numbers_and_read_back(dialect: str) -> None:
    own = {fact.name: fact.number for fact in fork_schema(dialect).fields if fact.message == "LayerParameter"}
    if not own:
        own = {"convolution_param": 106}
    param = NetParameter(name="n")
    filled(param.layer.add(name="l", type="X"), set(own))
    data = encode(param, dialect)
    assert sorted(layer_numbers(data)) == sorted([1, 2, *own.values()])
    assert layer_numbers(data) == sorted(layer_numbers(data))
    read, found = decode_net(data, dialect)
    assert (read, found) == (param, dialect)


DETECTED = {
    "ssd": 'layer { name: "a" type: "Permute" permute_param { order: 0 order: 2 } }',
    "rfcn": 'layer { name: "a" type: "ROIPooling" roi_pooling_param { pooled_h: 6 pooled_w: 6 } }',
    "pspnet": 'layer { type: "BN" bn_param { slope_filler { value: 1 } } } layer { type: "Interp" interp_param { zoom_factor: 2 } }',
    "segnet": 'layer { type: "Upsample" upsample_param { scale: 2 } } layer { type: "BN" bn_param { bn_mode: INFERENCE } }',
    "shufflenet": 'layer { type: "ShuffleChannel" shuffle_channel_param { group: 3 } }',
    "ceil": 'layer { type: "Pooling" pooling_param { kernel_size: 3 ceil_mode: false } }',
    "centerface": 'layer { type: "CenterLoss" center_loss_param { num_output: 7 } }',
    "yolo": 'layer { type: "ReLU6" } layer { type: "Reorg" reorg_param { stride: 2 } }',
    "nvcaffe": 'default_forward_type: FLOAT16 layer { type: "BatchNorm" batch_norm_param { scale_bias: true } }',
    "ssd+shufflenet": 'layer { permute_param { order: 1 } type: "Permute" } layer { type: "ShuffleChannel" shuffle_channel_param { } }',
    "": 'layer { type: "Pooling" pooling_param { kernel_size: 3 round_mode: FLOOR } } layer { type: "Swish" swish_param { beta: 2 } }',
}


@pytest.mark.parametrize("dialect", DETECTED)
def test_the_fork_that_wrote_a_net_is_found_from_its_fields_and_types(dialect: str, tmp_path: Path) -> None:
    param = net(DETECTED[dialect])
    assert dialect_of(param) == dialect
    write_caffemodel(tmp_path / "m", Caffemodel(param))
    read = read_caffemodel(tmp_path / "m")
    assert (read.net, read.dialect) == (param, dialect)


def test_numbers_that_clash_are_read_as_the_fork_defines_them() -> None:
    interp = b"".join([wire.bytes_key(2, 6), b"Interp", wire.bytes_key(143, 2), b"\x18\x02"])
    data = wire.bytes_key(100, len(interp)) + interp
    read, dialect = decode_net(data)
    assert (dialect, read.layer[0].interp_param.zoom_factor) == ("pspnet", 2)
    assert encode(read, dialect) == data


def test_a_dialect_may_be_forced() -> None:
    data = encode(net(DETECTED["segnet"]), "segnet")
    as_ssd, dialect = decode_net(data, "ssd")
    assert dialect == "ssd" and not as_ssd.layer[0].HasField("upsample_param")
    assert encode(as_ssd, "ssd") == data
    with override_dialect("ssd"):
        assert read_options().dialect == "ssd"
        assert decode_net(data) == (as_ssd, "ssd")
        with pytest.raises(PrototxtError, match="the dialect 'ssd' has no field LayerParameter.interp_param"):
            net("layer { interp_param { } }")
        net("layer { permute_param { } }")
    assert read_options().dialect is None


def test_an_unknown_dialect_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CaffeToolsError, match=r"the dialect 'sdd' is unknown; known are bvlc, ssd, .*, and any"):
        ReadOptions("sdd")


def test_weights_of_a_net_whose_fields_no_dialect_has_together_are_written_without_some_of_them(tmp_path: Path) -> None:
    mixed = net("layer { interp_param { } bn_param { bn_mode: LEARN frozen: true } input_param { } swish_param { } center_loss_param { } }")
    mixed.layer[0].name = "all"
    weights = np.arange(3, dtype=np.float32)
    with pytest.raises(ModelFileError, match="cannot be written together"):
        dialect_of(mixed)
    write_caffemodel(tmp_path / "m", Caffemodel(mixed, {"all": [weights]}))
    read = read_caffemodel(tmp_path / "m")
    assert [layer.name for layer in read.net.layer] == ["all"]
    np.testing.assert_array_equal(read.blobs["all"][0], weights)
    with pytest.raises(ModelFileError, match="the dialect 'ssd' has no field LayerParameter.interp_param"):
        encode(net("layer { interp_param { } }"), "ssd")


@pytest.mark.parametrize("number", [13, 99, 149, 210, 5000, 8266711, 2**28 + 6, 2**29 - 3])
def test_fields_that_no_fork_has_are_kept_and_never_taken_for_anothers(number: int) -> None:
    content = b"".join([wire.bytes_key(1, 1), b"l", wire.bytes_key(2, 10), b"CropCenter", wire.bytes_key(number, 4), b"\x08\x00\x08\x02"])
    data = wire.bytes_key(100, len(content)) + content
    read, dialect = decode_net(data)
    assert encode(read, dialect) == data
    copy = NetParameter()
    copy.layer.add().CopyFrom(read.layer[0])
    assert encode(copy, dialect) == data
    assert "unknown" not in format_text(read)


def test_old_layers_of_a_fork_are_read() -> None:
    old = net("layers { name: 'r' type: RELU6 relu6_param { } } layers { name: 'u' type: UNPOOLING unpooling_param { kernel_size: 2 } }")
    data = encode(old)
    assert decode_net(data)[0] == old


def test_every_layer_type_that_is_computed_and_not_bvlc_caffes_belongs_to_a_fork() -> None:
    of_forks = frozenset().union(*(fork_schema(dialect).layers for dialect in DIALECTS))
    others = set(layer_types()) - bvlc_types() - of_forks
    assert [name for name in others if not layer_types()[name].TRAITS.fork] == []


def test_a_layer_message_has_no_number_twice() -> None:
    numbers = [field.number for field in LayerParameter.DESCRIPTOR.fields]
    assert len(numbers) == len(set(numbers))
