from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

import caffetools.proto
from caffetools.proto import schema
from caffetools.proto.schema import POOL, TEST, TRAIN, LayerParameter, enum_name, message_class

FOLDER = Path(caffetools.proto.__file__).parent
Field = descriptor_pb2.FieldDescriptorProto


def test_the_shipped_descriptor_is_what_caffe_proto_compiles_to() -> None:
    pytest.importorskip("grpc_tools")
    from caffetools.proto.compile import compile_descriptor

    fresh = descriptor_pb2.FileDescriptorSet.FromString(compile_descriptor())
    shipped = descriptor_pb2.FileDescriptorSet.FromString((FOLDER / "caffe.desc").read_bytes())
    assert fresh == shipped


def test_every_message_field_and_enum_is_caffes(golden: Path) -> None:
    with (golden / "schema.tsv").open(newline="") as stream:
        expected = {(row["message_or_enum"], row["name"]): row for row in csv.DictReader(stream, delimiter="\t")}
    (file,) = descriptor_pb2.FileDescriptorSet.FromString((FOLDER / "caffe.desc").read_bytes()).file
    found = dict(rows(file, file.package))
    assert found.keys() == expected.keys()
    for key, row in found.items():
        wanted = expected[key]
        assert row["default"] == default(wanted, row["kind"]), key
        for column in ("kind", "number", "type", "label", "packed"):
            assert row[column] == wanted[column], (key, column)


def default(wanted: dict[str, str], kind: str) -> Any:
    text = wanted["default"]
    return float(text) if kind == "field" and wanted["type"] in ("float", "double") and text else text


def rows(scope: Any, name: str) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    messages = scope.message_type if isinstance(scope, descriptor_pb2.FileDescriptorProto) else scope.nested_type
    for enum in scope.enum_type:
        for value in enum.value:
            yield (
                (f"{name}.{enum.name}", value.name),
                {"kind": "enum_value", "number": str(value.number), "type": "", "label": "", "default": "", "packed": ""},
            )
    for message in messages:
        for field in message.field:
            yield (f"{name}.{message.name}", field.name), field_row(field)
        yield from rows(message, f"{name}.{message.name}")


def field_row(field: Any) -> dict[str, Any]:
    kind = Field.Type.Name(field.type).removeprefix("TYPE_").lower()
    named = field.type_name.removeprefix(".")
    number = kind in ("float", "double") and field.default_value
    return {
        "kind": "field",
        "number": str(field.number),
        "type": {"message": named, "enum": f"enum {named}"}.get(kind, kind),
        "label": Field.Label.Name(field.label).removeprefix("LABEL_").lower(),
        "default": float(field.default_value) if number else field.default_value,
        "packed": "packed" if field.options.packed else "",
    }


def test_the_messages_live_in_a_pool_of_their_own() -> None:
    from google.protobuf import descriptor_pool

    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("caffe.NetParameter")
    assert POOL.FindMessageTypeByName("caffe.NetParameter").full_name == "caffe.NetParameter"


def test_enums_are_known_by_name() -> None:
    assert (TRAIN, TEST) == (0, 1)
    layer = LayerParameter()
    assert enum_name(layer.pooling_param, "pool") == "MAX"
    layer.pooling_param.pool = 1
    assert enum_name(layer.pooling_param, "pool") == "AVE"
    assert message_class("PoolingParameter") is type(layer.pooling_param)


def test_the_stubs_are_those_of_the_schema() -> None:
    from caffetools.proto.compile import stubs

    written = (Path(schema.__file__).parent / "schema.pyi").read_text(encoding="utf-8")
    assert written == stubs(), "run python -m caffetools.proto.compile --stubs"


def test_every_message_is_a_name_of_the_schema() -> None:
    for name in schema.POOL.FindFileByName("caffe.proto").message_types_by_name:
        assert getattr(schema, name).DESCRIPTOR.name == name
    assert schema.SolverStateMessage is schema.SolverState
