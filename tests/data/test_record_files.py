"""Files of many examples, of other tools: WebDataset's tars, TFRecords, and the Parquet and Arrow files of Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffetools.data.formats.convert import convert_dataset
from caffetools.data.formats.examples import ConvertOptions
from caffetools.data.formats.tfrecord import read_records
from caffetools.errors import DataError
from caffetools.util.checksums import crc32c
from tests.data.foreign import RNG, arrays, hugging_face_table, png, records, tfrecord_of, write_tar

# WebDataset


def test_webdataset_reads_labels_of_cls_and_json_and_braces(tmp_path: Path) -> None:
    images = [RNG.integers(0, 256, (4, 5, 3), np.uint8) for _ in range(3)]
    write_tar(tmp_path / "s-0.tar", [("a/1.png", png(images[0])), ("a/1.cls", b"4\n"), ("a/1.txt", b"unused")])
    json_label = json.dumps({"label": 7, "name": "x"}).encode()
    write_tar(tmp_path / "s-1.tar", [("2.json", json_label), ("2.png", png(images[1])), ("3.v2.png", b""), ("3.png", png(images[2]))])
    convert_dataset("webdataset", tmp_path / "s-{0..1}.tar", tmp_path / "out")
    found = arrays(tmp_path / "out")
    assert [label for _, label in found] == [4, 7, 0]
    assert list(records(tmp_path / "out")) == ["00000000_a/1", "00000001_2", "00000002_3"]
    for (array, _), image in zip(found, images, strict=True):
        assert np.array_equal(array.transpose(1, 2, 0), image)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.png", b"not a picture"), ("1.cls", b"1")], "s.tar: 1: not a picture"),
        ([("1.png", png(np.zeros((2, 2, 3), np.uint8))), ("1.cls", b"cat")], "s.tar: 1: its label 'cat' is not an integer"),
        ([("1.cls", b"1")], "s.tar: 1: it has no picture but cls"),
        ([], "no examples"),
    ],
)
def test_bad_webdatasets_name_the_example(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    write_tar(tmp_path / "s.tar", members)
    with pytest.raises(DataError, match=message):
        convert_dataset("webdataset", tmp_path / "s.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("size", "reason"),
    [(1000, "unexpected end"), (1024, "without the block of zeros"), (1300, "without the block of zeros"), (0, "bad checksum")],
    ids=["in a file", "between files", "in a header", "damaged header"],
)
def test_a_truncated_or_damaged_tar_is_refused(tmp_path: Path, size: int, reason: str) -> None:
    picture = png(RNG.integers(0, 256, (4, 4, 3)).astype(np.uint8))
    assert len(picture) < 512
    write_tar(tmp_path / "s.tar", [("1.png", picture), ("2.png", picture), ("3.png", picture)])
    data = bytearray((tmp_path / "s.tar").read_bytes())
    data[1124] ^= 1  # the mode in the header of 2.png
    (tmp_path / "s.tar").write_bytes(data[: size or None])
    with pytest.raises(DataError, match=f"s.tar: the tar file is truncated or damaged: .*{reason}"):
        convert_dataset("webdataset", tmp_path / "s.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# TFRecord


@given(st.binary(max_size=5000))
def test_crc32c_is_that_of_a_plain_loop(data: bytes) -> None:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(data) == crc ^ 0xFFFFFFFF


def test_crc32c_of_the_check_string() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_tfrecords_of_another_writer_are_read(tmp_path: Path) -> None:
    tfrecord_of(tmp_path / "x.tfrecord", [b"", b"abc", bytes(100_000)])
    assert [len(record) for record in read_records(tmp_path / "x.tfrecord")] == [0, 3, 100_000]


@pytest.mark.parametrize(
    ("place", "message"),
    [(3, "not a TFRecord file"), (9, "not a TFRecord file"), (13, "record 0 fails its checksum"), (16, "record 0 fails its checksum")],
)
def test_a_changed_byte_of_a_tfrecord_is_found(tmp_path: Path, place: int, message: str) -> None:
    tfrecord_of(tmp_path / "x.tfrecord", [b"abcd"])
    data = bytearray((tmp_path / "x.tfrecord").read_bytes())
    data[place] ^= 1
    (tmp_path / "x.tfrecord").write_bytes(bytes(data))
    with pytest.raises(DataError, match=message):
        list(read_records(tmp_path / "x.tfrecord"))


def test_a_truncated_tfrecord_is_refused(tmp_path: Path) -> None:
    tfrecord_of(tmp_path / "x.tfrecord", [b"abcd", b"efgh"])
    data = (tmp_path / "x.tfrecord").read_bytes()
    for size in (len(data) - 1, len(data) - 5, len(data) // 2 + 3):
        (tmp_path / "x.tfrecord").write_bytes(data[:size])
        with pytest.raises(DataError, match="truncated within"):
            list(read_records(tmp_path / "x.tfrecord"))


# Hugging Face


def test_parquet_of_hugging_face_with_splits(tmp_path: Path) -> None:
    images, table = hugging_face_table(3)
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "in/data").mkdir(parents=True)
    for split in ("train", "test"):
        parquet.write_table(table, tmp_path / f"in/data/{split}-00000-of-00001.parquet")
    convert_dataset("huggingface", tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/labels.txt").read_text() == "cat\ndog\n"
    found = arrays(tmp_path / "out/train_lmdb")
    assert [label for _, label in found] == [0, 1, 0]
    assert np.array_equal(found[2][0].transpose(1, 2, 0), images[2])
    assert records(tmp_path / "out/train_lmdb") == records(tmp_path / "out/test_lmdb")


def test_arrow_files_of_save_to_disk(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    images, table = hugging_face_table(3)
    (tmp_path / "in").mkdir()
    with arrow.ipc.new_stream(str(tmp_path / "in/data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    convert_dataset("huggingface", tmp_path / "in", tmp_path / "out")
    assert np.array_equal(arrays(tmp_path / "out")[1][0].transpose(1, 2, 0), images[1])


def test_bad_parquet_is_refused(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    _, table = hugging_face_table(2)
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column 'photo'; it has: picture, kind"):
        convert_dataset("huggingface", tmp_path / "x.parquet", tmp_path / "out", ConvertOptions(data="photo"))
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"x.parquet: the file is truncated or damaged"):
        convert_dataset("huggingface", tmp_path / "x.parquet", tmp_path / "out")
