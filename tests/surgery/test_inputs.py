"""Data layers become inputs of the shapes that they would give."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from caffetools.data.databases import new_lmdb
from caffetools.data.datum import array_to_datum
from caffetools.errors import CaffeToolsError, NetError
from caffetools.graph.inputs import data_layers_to_inputs, data_shape, parse_shapes
from caffetools.proto.binary import write_binaryproto
from tests.surgery.nets import TINY, net_of


def shapes_of(text: str, **options: object) -> list[list[int]]:
    layer = data_layers_to_inputs(net_of(text), **options).layer[0]
    assert layer.type == "Input"
    return [list(shape.dim) for shape in layer.input_param.shape]


def test_both_phases_keep_their_rules_names_and_batches() -> None:
    net = data_layers_to_inputs(net_of(TINY))
    first, second = net.layer[:2]
    assert (first.name, first.type, first.top, first.include[0].phase) == ("data", "Input", ["data", "label"], 0)
    assert second.include[0].phase == 1
    assert [list(s.dim) for s in first.input_param.shape] == [[4, 3, 8, 8], [4]]
    assert [list(s.dim) for s in second.input_param.shape] == [[2, 3, 8, 8], [2]]
    assert list(net.layer)[2:] == list(net_of(TINY).layer)[2:]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ('type: "Data" transform_param { crop_size: 9 force_gray: true } data_param { batch_size: 3 }', (3, 1, 9, 9)),
        ('type: "Data" transform_param { crop_size: 9 mean_value: 1 mean_value: 2 }', (1, 2, 9, 9)),
        ('type: "ImageData" image_data_param { new_height: 7 new_width: 5 batch_size: 2 is_color: false }', (2, 1, 7, 5)),
        ('type: "MemoryData" memory_data_param { batch_size: 2 channels: 4 height: 5 width: 6 }', (2, 4, 5, 6)),
        ('type: "WindowData" window_data_param { batch_size: 6 } transform_param { crop_size: 227 }', (6, 3, 227, 227)),
        ('type: "ForksOwnData" transform_param { crop_size: 9 }', (1, 3, 9, 9)),
    ],
)
def test_shapes_follow_from_the_layers_fields(layer: str, expected: tuple[int, ...]) -> None:
    assert data_shape(net_of(f'layer {{ name: "d" {layer} top: "data" top: "label" }}').layer[0]) == expected


def test_a_database_or_a_mean_file_that_is_there_gives_the_shape(tmp_path: Path) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        writer.put(b"0", array_to_datum(np.zeros((2, 6, 5), np.uint8), 1).SerializeToString())
    source = f'data_param {{ source: "{tmp_path / "db"}" batch_size: 3 backend: LMDB }}'
    layer = f'layer {{ name: "d" type: "Data" top: "data" top: "label" {source} '
    assert shapes_of(layer + "}") == [[3, 2, 6, 5], [3]]
    assert shapes_of(layer + "transform_param { crop_size: 4 } }") == [[3, 2, 4, 4], [3]]
    write_binaryproto(tmp_path / "mean.binaryproto", np.zeros((1, 1, 8, 8), np.float32))
    mean = f'layer {{ name: "d" type: "Data" top: "data" transform_param {{ mean_file: "{tmp_path / "mean.binaryproto"}" crop_size: 7 }} }}'
    assert shapes_of(mean) == [[1, 1, 7, 7]]


def test_the_first_rows_and_pictures_of_a_source_that_is_there_give_the_shapes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        for name, shape in (("data", (5, 2, 6, 7)), ("boxes", (5, 4)), ("label", (5,))):
            file[name] = np.zeros(shape, np.float32)
    (tmp_path / "rows.txt").write_text(f"{tmp_path / 'rows.h5'}\n")
    tops = 'top: "data" top: "boxes" top: "label"'
    rows = f'layer {{ name: "d" type: "HDF5Data" {tops} hdf5_data_param {{ source: "{tmp_path / "rows.txt"}" batch_size: 3 }} }}'
    assert shapes_of(rows) == [[3, 2, 6, 7], [3, 4], [3]]
    assert shapes_of(rows, shapes={"data": (9, 1)}, batch=2) == [[9, 1], [9, 4], [9]]
    cv2.imwrite(str(tmp_path / "one.png"), np.zeros((8, 9, 3), np.uint8))
    (tmp_path / "list.txt").write_text("one.png 0\n")
    settings = f'source: "{tmp_path / "list.txt"}" root_folder: "{tmp_path}/" batch_size: 4'
    pictures = f'layer {{ name: "d" type: "ImageData" top: "data" top: "label" image_data_param {{ {settings} }} }}'
    assert shapes_of(pictures) == [[4, 3, 8, 9], [4]]
    (tmp_path / "one.png").unlink()
    with pytest.raises(NetError, match=r"layer 'd': the size of its data is not known: .*one\.png.*; give --input-shape"):
        shapes_of(pictures)


def test_given_shapes_come_first_for_input_layers_too() -> None:
    assert shapes_of(TINY, shapes={"": (7, 3, 9, 9)}) == [[7, 3, 9, 9], [7]]
    assert shapes_of(TINY, shapes={"data": (7, 3, 9, 9), "label": (7, 1)}) == [[7, 3, 9, 9], [7, 1]]
    assert shapes_of(TINY, batch=5) == [[5, 3, 8, 8], [5]]
    inputs = 'layer { name: "in" type: "Input" top: "a" top: "b" input_param { shape { dim: 1 dim: 2 } } }'
    assert shapes_of(inputs, shapes={"b": (3,)}) == [[1, 2], [3]]


def test_unknown_sizes_and_names_are_errors() -> None:
    with pytest.raises(NetError, match="the net 'tiny' has no input 'dota'; its inputs are data, label"):
        data_layers_to_inputs(net_of(TINY), {"dota": (1,)})
    with pytest.raises(NetError, match="layer 'h': the size of its data is not known"):
        data_layers_to_inputs(net_of('layer { name: "h" type: "HDF5Data" top: "data" hdf5_data_param { source: "x" } }'))
    with pytest.raises(NetError, match="layer 'h': the shapes of its blobs are not known"):
        data_layers_to_inputs(net_of('layer { name: "h" type: "HDF5Data" top: "a" top: "b" top: "c" }'), {"a": (1, 2)})


def test_shapes_are_read_as_people_write_them() -> None:
    assert parse_shapes(["1x3x227x227", "label=4", "d=2,3"]) == {"": (1, 3, 227, 227), "label": (4,), "d": (2, 3)}
    for text in ("", "3x", "ax3", "0x3", "data="):
        with pytest.raises(CaffeToolsError, match="is not a shape; write 1x3x227x227"):
            parse_shapes([text])
