"""Databases that nobody here made: inspected, verified, exported, and compared with nets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from caffetools.cancel import CancelToken
from caffetools.cli.dataset import app
from caffetools.data.convert_imageset import ImagesetOptions, convert_imageset
from caffetools.data.databases import new_lmdb
from caffetools.data.datasets.export import export_database, safe_name
from caffetools.data.datasets.inspect import inspect_database
from caffetools.data.datasets.verify import Fault, verify_database
from caffetools.data.datum import array_to_datum, encoded_to_datum, parse_datum
from caffetools.data.images import read_image
from caffetools.errors import Cancelled, DataError
from caffetools.events import ArtifactWritten, Event, Finished, Progress, Started
from caffetools.proto.schema import message_class
from tests.data.drawing import names, rows
from tests.data.lmdb_builder import LmdbBuilder

IO = Path(__file__).parent.parent / "golden" / "io"
DB = IO / "db"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_what_only_reads_databases_does_not_wait_for_torch() -> None:
    names = ("inspect", "verify", "export", "hdf5", "bare")
    script = "".join(f"import caffetools.data.datasets.{name}\n" for name in names)
    script += "import caffetools.data.means, caffetools.data.convert_imageset, sys\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def write(path: Path, records: list[tuple[str, Any]]) -> Path:
    with new_lmdb(path) as writer:
        for key, value in records:
            writer.put(key.encode(), value if isinstance(value, bytes) else value.SerializeToString())
    return path


def noise(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256 if dtype == np.uint8 else 60000, shape).astype(dtype)


@pytest.fixture
def golden(tmp_path: Path) -> Callable[[str], Path]:
    """Copies of databases of Caffe's tool: LevelDB writes into the folder of a database that it reads."""

    def copy(name: str) -> Path:
        if name.startswith("leveldb"):
            pytest.importorskip("plyvel")
        return Path(shutil.copytree(DB / name, tmp_path / "golden" / name))

    return copy


def encoded(image: np.ndarray[Any, Any], suffix: str) -> bytes:
    return bytes(cv2.imencode(suffix, image)[1])


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """JPEG, 16-bit PNG, gray pixels, float_data, several channels, and a damaged record."""
    return write(
        tmp_path / "foreign",
        [
            ("00000000_a/x y.jpg", encoded_to_datum(encoded(noise(20, 30, 3), ".jpg"), 0)),
            ("00000001_b/deep.png", encoded_to_datum(encoded(noise(8, 9, dtype=np.uint16), ".png"), 1)),
            ("00000002_gray", array_to_datum(noise(1, 6, 5), 1)),
            ("00000003_float", array_to_datum(np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4), 3)),
            ("00000004_hyper", array_to_datum(noise(7, 4, 4), 3)),
            ("00000005_bad.jpg", encoded_to_datum(encoded(noise(20, 30, 3), ".jpg")[:-40], 0)),
        ],
    )


@pytest.mark.parametrize("name", ["lmdb_raw", "leveldb_raw", "lmdb_encoded_same", "leveldb_encoded", "lmdb_gray"])
def test_statistics_are_those_of_all_pixels(name: str, golden: Callable[[str], Path]) -> None:
    database = golden(name)
    summary, found = inspect_database(database), rows(database)
    assert (summary.records, summary.damaged, summary.backend) == (len(found), 0, name.partition("_")[0])
    assert (summary.first_key, summary.last_key) == (found[0][0], found[-1][0])
    assert summary.labels == {label: sum(row[1] == label for row in found) for label in sorted({row[1] for row in found})}
    pixels = np.concatenate([row[2].reshape(len(row[2]), -1) for row in found], axis=1).astype(np.float64)
    (statistics,) = summary.statistics.values()
    np.testing.assert_allclose(statistics.mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(statistics.deviation, pixels.std(axis=1), rtol=1e-12)
    assert (statistics.minimum, statistics.maximum) == (pixels.min(axis=1).tolist(), pixels.max(axis=1).tolist())


def test_every_kind_of_record_is_counted(foreign: Path) -> None:
    summary = inspect_database(foreign)
    assert (summary.records, summary.damaged) == (6, 1)
    assert summary.encodings == {"raw": 2, "JPEG": 1, "PNG uint16": 1, "float_data": 1}
    assert set(summary.shapes) == {"3x20x30", "1x8x9", "1x6x5", "2x3x4", "7x4x4"}
    assert summary.labels == {0: 1, 1: 2, 3: 2}
    assert set(summary.statistics) == {"3 uint8", "1 uint16", "1 uint8", "2 float32", "7 uint8"}
    assert summary.statistics["2 float32"].maximum == [pytest.approx(-1 + 22 / 23), 1.0]


def test_annotated_datum_of_ssd_is_read(tmp_path: Path) -> None:
    annotated = message_class("AnnotatedDatum")()
    annotated.datum.CopyFrom(encoded_to_datum(encoded(noise(5, 6, 3), ".png"), 0))
    summary = inspect_database(write(tmp_path / "db", [("0", annotated)]))
    assert (summary.annotated, summary.shapes) == (1, {"3x5x6": 1})


def boxed(boxes: list[tuple[int, tuple[float, float, float, float]]], key: int) -> tuple[str, Any]:
    annotated = message_class("AnnotatedDatum")(type=0)
    annotated.datum.CopyFrom(encoded_to_datum(encoded(noise(40, 50, 3, seed=key), ".png"), -1))
    for label, corners in boxes:
        box = annotated.annotation_group.add(group_label=label).annotation.add(instance_id=0).bbox
        box.xmin, box.ymin, box.xmax, box.ymax = corners
    return f"{key:08d}_dir/p{key}.png", annotated


def test_labels_of_pictures_with_boxes_are_those_of_the_boxes(tmp_path: Path) -> None:
    records = [
        boxed([(1, (0, 0, 0.5, 0.5)), (2, (0.1, 0.2, 0.4, 0.6)), (1, (0.5, 0.5, 1, 1))], 0),
        boxed([(2, (0, 0, 1, 1))], 1),
        boxed([], 2),
    ]
    database = write(tmp_path / "db", records)
    summary = inspect_database(database, sheet=tmp_path / "sheet.png")
    assert (summary.labels, summary.boxes, summary.unlabelled, summary.annotated) == ({1: 1, 2: 2}, 4, 1, 3)
    assert verify_database(database).faults == [] == verify_database(database, classes=3).faults
    assert export_database(database, tmp_path / "out").count == 3
    assert (tmp_path / "out/boxes.csv").read_text().splitlines()[:3] == [
        "path,label,xmin,ymin,xmax,ymax",
        "pictures/p0.png,1,0,0,25,20",
        "pictures/p0.png,2,5,8,20,24",
    ]
    assert (tmp_path / "out/pictures/p1.png").read_bytes() == records[1][1].datum.data
    with pytest.raises(DataError, match="is a picture with boxes"):
        parse_datum(records[0][1].SerializeToString(), "it")


def test_bad_boxes_are_faults(tmp_path: Path) -> None:
    boxes = [
        (1, (0.0, 0.0, 1.5, 0.5)),
        (3, (0.0, 0.0, 0.5, 0.5)),
        (-1, (0.0, 0.0, 0.5, 0.5)),
        (2, (0.6, 0.0, 0.5, 0.5)),
        (2, (0.0, 0.0, float("nan"), 1.0)),
    ]
    result = verify_database(write(tmp_path / "db", [boxed(boxes, 0)]), classes=3)
    assert [(fault.kind, fault.message) for fault in result.faults] == [
        ("values", "box 1 is not within the picture"),
        ("label", "box 2: its label 3 is not below the number of classes, 3"),
        ("label", "box 3: its label -1 is negative"),
        ("values", "box 4 has its corners in the wrong order"),
        ("values", "box 5 is not within the picture"),
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="damage within a JPEG is known there")
def test_a_jpeg_that_decodes_in_part_is_a_fault(tmp_path: Path) -> None:
    data = bytearray(encoded(noise(40, 60, 3), ".jpg"))
    middle = (data.index(b"\xff\xda") + len(data)) // 2
    data[middle : middle + 40] = bytes(40)
    database = write(tmp_path / "db", [("00000000_a.jpg", encoded_to_datum(bytes(data), 0))])
    [fault] = verify_database(database).faults
    assert fault.kind == "damaged" and "the picture is damaged, and decoded as far as that goes (Corrupt JPEG data: " in fault.message
    assert export_database(database, tmp_path / "out").count == 1


def test_inspect_prints_json_and_draws_a_sheet(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    result = run("inspect", foreign, "-o", tmp_path / "sheet.png", "--labels", tmp_path / "labels.txt")
    assert result.exit_code == 0 and "6 records, 1 of them damaged" in result.output and "JPEG (1)" in result.output
    assert read_image(tmp_path / "sheet.png").shape[0] == 3 * 102 + 6
    answer = json.loads(run("inspect", foreign, "--json").output)
    assert answer["labels"] == {"0": 1, "1": 2, "3": 2} and answer["shapes"]["7x4x4"] == 1


def test_verify_lists_each_fault_by_key(foreign: Path) -> None:
    result = verify_database(foreign, allow=("size",))
    assert [(fault.kind, fault.key) for fault in result.faults] == [("damaged", "00000005_bad.jpg"), ("gap", "")]
    assert "truncated" in result.faults[0].message
    assert result.faults[1].message == "no record has the label(s) 2; the highest label is 3"
    assert {fault.kind for fault in verify_database(foreign).faults} == {"damaged", "gap", "size"}


def test_verify_finds_labels_values_and_sizes(tmp_path: Path) -> None:
    stated = encoded_to_datum(encoded(noise(5, 5, 3), ".png"), 0)
    stated.channels, stated.height, stated.width = 3, 5, 6
    database = write(
        tmp_path / "db",
        [
            ("0", array_to_datum(noise(3, 5, 5), 0)),
            ("1", array_to_datum(noise(3, 5, 5), -1)),
            ("2", array_to_datum(noise(3, 5, 5), 2_000_000_000)),
            ("3", array_to_datum(np.full((3, 5, 5), np.nan, np.float32), 1)),
            ("4", array_to_datum(noise(3, 5, 5))),
            ("5", stated),
            ("6", array_to_datum(noise(3, 5, 4), 2)),
        ],
    )
    assert verify_database(database, classes=5).faults == [
        Fault("label", "1", "its label -1 is negative"),
        Fault("label", "2", "its label 2000000000 is not below the number of classes, 5"),
        Fault("values", "3", "75 of its values are not finite (NaN or infinite)"),
        Fault("label", "4", "it has no label, which Caffe reads as 0"),
        Fault("size", "5", "its picture is 3x5x5, but its Datum states 3x5x6"),
        Fault("size", "6", "its size is 3x5x4, but that of 6 record(s) is 3x5x5"),
        Fault("gap", "", "no record has the label(s) 3-4; the number of classes is 5"),
    ]
    gap = verify_database(database).faults[-1]
    assert gap.message == "no record has the label(s) 3-1999999999; the highest label is 2000000000"


def test_keys_out_of_order_are_found(tmp_path: Path) -> None:
    records = [(f"{number}_x", array_to_datum(noise(1, 2, 2), 0)) for number in range(12)]
    (fault,) = verify_database(write(tmp_path / "db", records)).faults
    assert (fault.kind, fault.key) == ("order", "1_x") and "comes after 11" in fault.message
    hashes = [(key, array_to_datum(noise(1, 2, 2), 0)) for key in ("10ab", "9f", "f0")]
    assert verify_database(write(tmp_path / "hashes", hashes)).faults == []


def test_keys_out_of_order_in_a_page_are_damage(tmp_path: Path) -> None:
    value = array_to_datum(noise(1, 2, 2), 0).SerializeToString()
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "data.mdb").write_bytes(LmdbBuilder().build([(key, value) for key in (b"a", b"c", b"b")]))
    (fault,) = verify_database(tmp_path / "db").faults
    assert fault.kind == "damaged" and "out of order" in fault.message


def test_exit_codes_of_verify(foreign: Path) -> None:
    assert run("verify", foreign).exit_code == 1
    result = run("verify", DB / "lmdb_raw", "--allow", "gap")
    assert (result.exit_code, result.output) == (0, "7 records, 0 fault(s)\n")
    assert isinstance(run("verify", foreign, "--allow", "sizes").exception, DataError)


@pytest.mark.parametrize("name", ["lmdb_raw", "lmdb_encoded", "leveldb_encoded", "lmdb_gray"])
def test_an_export_converts_back_to_the_same_records(name: str, tmp_path: Path, golden: Callable[[str], Path]) -> None:
    database = golden(name)
    result = export_database(database, tmp_path / "out")
    before = rows(database)
    assert (result.count, result.arrays, result.skipped) == (len(before), 0, [])
    options = ImagesetOptions(gray=name == "lmdb_gray")
    convert_imageset(tmp_path / "out", tmp_path / "out" / "list.txt", tmp_path / "again", options)
    for (_, label, pixels), (_, label_again, again) in zip(before, rows(tmp_path / "again"), strict=True):
        assert label == label_again
        if len(pixels) == len(again):
            np.testing.assert_array_equal(pixels, again)


def test_exported_files_are_the_stored_ones_and_arrays(foreign: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    result = export_database(foreign, tmp_path / "out", names=["cat", "../dog"], events=events.append)
    assert (result.count, result.arrays, len(result.skipped)) == (5, 2, 1)
    assert (tmp_path / "out" / "list.txt").read_text().splitlines() == [
        "cat/x y.jpg 0",
        "_dog/deep.png 1",
        "_dog/gray.png 1",
        "3/float.npy 3",
        "3/hyper.npy 3",
    ]
    assert (tmp_path / "out" / "cat" / "x y.jpg").read_bytes() == encoded(noise(20, 30, 3), ".jpg")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "3" / "hyper.npy"), noise(7, 4, 4))
    assert [type(event) for event in (events[0], events[-2], events[-1])] == [Started, ArtifactWritten, Finished]
    with pytest.raises(DataError, match=r"00000005_bad\.jpg.*truncated"):
        export_database(foreign, tmp_path / "strict", strict=True)
    assert "strict" not in names(tmp_path)


def test_keys_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    keys = ["../../evil.png", "/etc/x", "A", "a", "con.png", "..", "nul\0.png"]
    database = write(tmp_path / "db", [(key, array_to_datum(noise(3, 2, 2), 0)) for key in keys])
    export_database(database, tmp_path / "out")
    assert names(tmp_path) == ["db", "out"] and names(tmp_path / "out") == ["0", "list.txt"]
    assert sorted(names(tmp_path / "out" / "0")) == sorted(["_.png", "evil.png", "x.png", "A.png", "a_2.png", "_con.png", "nul_.png"])
    assert safe_name("a/b\\c:d") == "a_b_c_d" and safe_name("...") == "_" and len(safe_name("日" * 500).encode()) <= 240


def test_cancelling_an_export_leaves_nothing(tmp_path: Path) -> None:
    token = CancelToken()

    def sink(event: Event) -> None:
        if isinstance(event, Progress):
            token.cancel()

    with pytest.raises(Cancelled):
        export_database(DB / "lmdb_raw", tmp_path / "out", events=sink, cancel=token)
    assert "out" not in names(tmp_path)


def net_text(source: Path, crop: int, classes: int, channels: str = "") -> str:
    return f"""
    name: "n"
    layer {{ name: "d" type: "Data" top: "data" top: "label" data_param {{ source: "{source}" batch_size: 2 backend: LMDB }}
             transform_param {{ crop_size: {crop} {channels} }} }}
    layer {{ name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param {{ num_output: {classes} }} }}
    layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" }}
    """


def test_stats_compare_a_database_with_a_net(tmp_path: Path) -> None:
    summary = inspect_database(DB / "lmdb_raw")
    height, width = (int(n) for n in next(iter(summary.shapes)).split("x")[1:])
    classes = max(summary.labels) + 1
    (tmp_path / "net.prototxt").write_text(net_text(DB / "lmdb_raw", min(height, width), classes))
    result = run("stats", DB / "lmdb_raw", tmp_path / "net.prototxt")
    assert result.exit_code == 0 and result.output.endswith("It fits.\n")
    (tmp_path / "net.prototxt").write_text(net_text(DB / "lmdb_raw", min(height, width) + 1, classes - 1))
    result = run("stats", DB / "lmdb_raw", tmp_path / "net.prototxt", "--json")
    assert result.exit_code == 1
    problems = json.loads(result.output)["problems"]
    assert "7 record(s) are smaller" in problems[0] and f"has {classes - 1} outputs" in problems[1]


def test_stats_of_a_deploy_net_compare_channels(tmp_path: Path) -> None:
    text = (
        'layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 9 dim: 9 } } }'
        'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 50 } }'
        'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }'
    )
    (tmp_path / "deploy.prototxt").write_text(text)
    result = run("stats", DB / "lmdb_raw", tmp_path / "deploy.prototxt")
    assert result.exit_code == 1 and "The net takes 1 channel(s); there are records of 3." in result.output
    assert "must be cropped or resized" in result.output


def test_damage_of_the_file_itself_is_a_fault(tmp_path: Path) -> None:
    """A page of a large value that was overwritten: the records around it are still read."""
    records = [(f"{i:08d}", array_to_datum(noise(3, 40, 40, seed=i), 0)) for i in range(5)]
    database = write(tmp_path / "db", records)
    environment = lmdb.open(str(database), readonly=True, lock=False)
    with environment.begin() as transaction:
        value = bytes(transaction.get(b"00000002"))
    environment.close()
    content = bytearray((database / "data.mdb").read_bytes())
    start = content.index(value[:64]) // 4096 * 4096
    content[start : start + 16] = b"\xff" * 16
    (database / "data.mdb").write_bytes(content)
    result = verify_database(database)
    assert [(fault.kind, fault.key) for fault in result.faults] == [("damaged", "00000002")] and result.records == 5
