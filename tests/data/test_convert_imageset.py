"""convert-imageset makes the databases that Caffe's tool makes, key for key and Datum for Datum."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from caffetools.cancel import CancelToken
from caffetools.data.convert_imageset import ImagesetOptions, convert_imageset
from caffetools.data.databases import open_database
from caffetools.data.datum import parse_datum
from caffetools.errors import Cancelled, DataError
from caffetools.events import Event, Finished, Progress, Warned
from tests.children import run_child
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "io"
DATABASES: dict[str, Any] = json.loads((FOLDER / "index.json").read_text())["databases"]


def options_of(flags: list[str]) -> ImagesetOptions:
    values: dict[str, Any] = {}
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        values[name] = int(value) if value.isdigit() else value or True
    return ImagesetOptions(**values)


def read(path: Path | str) -> list[tuple[bytes, bytes]]:
    database = open_database(path)
    records = list(database.records())
    database.close()
    return records


@pytest.mark.parametrize("name", [name for name in DATABASES if name != "lmdb_shuffle"])
def test_a_list_becomes_the_database_of_caffes_tool(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = DATABASES[name]
    if "leveldb" in name:
        pytest.importorskip("plyvel")
    monkeypatch.chdir(FOLDER)
    result = convert_imageset("images/", case["list"], tmp_path / "db", options_of(case["flags"]))
    ours, rows, arrays = read(tmp_path / "db"), case["rows"], np.load("databases.npz")
    assert result.count == len(ours) == len(rows) and not result.skipped
    for index, ((key, value), row) in enumerate(zip(ours, rows, strict=True)):
        datum = parse_datum(value, "ours")
        assert (key.decode(), datum.label, datum.encoded) == (row["key"], row["label"], row["encoded"])
        if "encode_type=png" in str(case["flags"]) and "resize" in name:
            # Another build of OpenCV may compress otherwise; PNG loses nothing.
            stored = arrays[f"{name}:{index}:file"]
            np.testing.assert_array_equal(_decoded(datum.data), _decoded(stored.tobytes()))
        elif datum.encoded:
            assert datum.data == arrays[f"{name}:{index}:file"].tobytes()
        else:
            assert (datum.channels, datum.height, datum.width) == arrays[f"{name}:{index}"].shape
            assert datum.data == arrays[f"{name}:{index}"].tobytes()
    if "leveldb" not in name and "resize_png" not in name:
        assert ours == read(f"db/{name}")


def _decoded(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_a_shuffled_list_has_the_same_pictures_numbered_in_their_new_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    plain, databases = read("db/lmdb_raw"), []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        convert_imageset("images", "list_same.txt", tmp_path / name, ImagesetOptions(shuffle=True, seed=seed))
        databases.append(read(tmp_path / name))
    assert databases[0] == databases[1] != databases[2]
    assert [key[:8] for key, _ in databases[0]] == [key[:8] for key, _ in plain]
    assert {(key[9:], value) for key, value in databases[0]} == {(key[9:], value) for key, value in plain}
    assert databases[0] != plain


def test_a_picture_that_cannot_be_read_is_left_out_and_leaves_a_gap_in_the_keys(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((4, 5, 3), 7, np.uint8))
    (tmp_path / "b.png").write_text("not a picture")
    (tmp_path / "list").write_text("a.png 0\nb.png 1\nc.png 2\n")
    result = convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db")
    assert [key for key, _ in read(tmp_path / "db")] == [b"00000000_a.png", b"00000002_c.png"]
    assert [error.message or str(error) for error in result.skipped] and "b.png" in str(result.skipped[0])
    with pytest.raises(DataError, match=r"b\.png"):
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / "strict", ImagesetOptions(strict=True))
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize("encoded", [False, True])
def test_a_truncated_jpeg_is_stored_as_caffes_tool_stores_it(tmp_path: Path, encoded: bool) -> None:
    whole = bytes(cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))[1])
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "list").write_text("a.jpg 3\n")
    result = convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db", ImagesetOptions(encoded=encoded))
    assert [str(error).partition(": its")[0] for error in result.truncated] == [f"{tmp_path}/a.jpg: the picture is truncated"]
    [(_, value)] = read(tmp_path / "db")
    datum = parse_datum(value, "ours")
    if encoded:
        assert datum.data == (tmp_path / "a.jpg").read_bytes() and datum.label == 3 and not result.skipped
    else:
        pixels = cv2.imread(str(tmp_path / "a.jpg"))
        assert pixels is not None and (pixels[-1] == 128).all() and datum.data == pixels.transpose(2, 0, 1).tobytes()
    with pytest.raises(DataError, match=r"a\.jpg: the picture is truncated"):
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / "strict", ImagesetOptions(encoded=encoded, strict=True))
    assert not (tmp_path / "strict").exists()


def test_the_type_of_a_stored_file_is_what_follows_the_last_dot_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "set.1").mkdir()
    data = bytes(cv2.imencode(".png", np.zeros((4, 5, 3), np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 0])[1])
    for name in ("set.1/a", "b.png", "c."):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "list").write_text("set.1/a 0\nb.png 1\nc. 2\n")
    result = convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db", ImagesetOptions(encoded=True))
    found = {key[9:].decode(): parse_datum(value, "ours") for key, value in read(tmp_path / "db")}
    assert not found["c."].encoded and found["c."].data == bytes(60)
    assert found["set.1/a"].data == found["b.png"].data == data and not result.skipped
    # One side alone does not resize, yet the files are encoded again. "1/a" is not a type: Caffe's tool ends there with an exception.
    with pytest.raises(DataError, match=r"set\.1/a: OpenCV cannot write pictures of type '\.1/a'"):
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / "again", ImagesetOptions(encoded=True, resize_width=9))
    (tmp_path / "list").write_text("b.png 1\n")
    convert_imageset(tmp_path, tmp_path / "list", tmp_path / "again", ImagesetOptions(encoded=True, resize_width=9))
    datum = parse_datum(read(tmp_path / "again")[0][1], "ours")
    assert datum.encoded and datum.data != data
    np.testing.assert_array_equal(_decoded(datum.data), np.zeros((4, 5, 3), np.uint8))


def test_an_empty_root_leaves_the_names_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 5, 3), np.uint8))
    (tmp_path / "list").write_text("a.png 2\n")
    monkeypatch.chdir(tmp_path)
    assert convert_imageset("", "list", "db").count == 1


def test_empty_lines_count_in_the_keys_as_in_caffes_tool(tmp_path: Path) -> None:
    for name in ("a", "b c", "d"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((4, 5, 3), np.uint8))
    for ending in ("\n", "\r\n"):
        (tmp_path / "list").write_bytes(ending.join(["", "a.png 2", "", "  ", "b c.png 1", "d.png 0", "", ""]).encode())
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db", ImagesetOptions(force=True))
        assert [key for key, _ in read(tmp_path / "db")] == [b"00000001_a.png", b"00000004_b c.png", b"00000005_d.png"]


def test_one_side_alone_does_not_resize_and_a_warning_says_so(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 5, 3), np.uint8))
    (tmp_path / "list").write_text("a.png 0\n")
    seen: list[Event] = []
    convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db", ImagesetOptions(resize_width=9), events=seen.append)
    datum = parse_datum(read(tmp_path / "db")[0][1], "ours")
    assert (datum.height, datum.width) == (4, 5)
    assert [event.message for event in seen if isinstance(event, Warned)] == [
        "resize_width alone has no effect (the pictures keep their sizes), as in Caffe's tool"
    ]


def test_sizes_below_0_are_0_as_in_caffes_tool(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 5, 3), np.uint8))
    (tmp_path / "list").write_text("a.png 0\n")
    for number, (width, height) in enumerate([(-1, -1), (-1, 7), (7, -2)]):
        seen: list[Event] = []
        options = ImagesetOptions(resize_width=width, resize_height=height)
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / f"db{number}", options, events=seen.append)
        datum = parse_datum(read(tmp_path / f"db{number}")[0][1], "ours")
        assert (datum.height, datum.width) == (4, 5)
        told = [event.message for event in seen if isinstance(event, Warned)]
        assert len(told) == (width < 0) + (height < 0) and all("is taken as 0 (the pictures keep their sizes)" in text for text in told)
    convert_imageset(tmp_path, tmp_path / "list", tmp_path / "file", ImagesetOptions(resize_width=-1, resize_height=-1, encoded=True))
    assert parse_datum(read(tmp_path / "file")[0][1], "ours").data == (tmp_path / "a.png").read_bytes()


def test_pictures_of_a_list_without_labels_get_those_of_caffes_tool(tmp_path: Path) -> None:
    names = ["a.png", "7.png", "-3x.png", "+12_b.png", "4294967297.png", "99999999999999999999.png"]
    for name in names:
        cv2.imwrite(str(tmp_path / name), np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "list").write_text("\n".join(names))
    seen: list[Event] = []
    convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db", events=seen.append)
    # What atoi makes of each line, which the C library computes with 64 bits and cuts to 32.
    assert [parse_datum(value, "ours").label for _, value in read(tmp_path / "db")] == [0, 7, -3, 12, 1, -1]
    assert [event.message for event in seen if isinstance(event, Warned)] == [
        "the list has no labels: the label is the number that a name begins with, else 0, as in Caffe's tool"
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.png\na.png 1\n", "list:2: 'a.png 1' has a label, but line 1 has none"),
        ("a.png 1\na.png\n", "list:2: 'a.png' does not end in a label"),
        ("a.png\nmy a.png\n", "list:2: 'my a.png' does not end in a label"),
        ("a.png,1\n", "list:1: 'a.png,1' does not end in a label"),
        ("a.png\t1\n", "does not end in a label"),
        ("\x89PNG\r\n\x1a\n", "list: .*not a list of pictures|list: .*picture"),
    ],
)
def test_a_list_with_labels_here_and_there_or_of_another_form_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "list").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=reason):
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db")
    assert not (tmp_path / "db").exists()


def test_check_size_compares_the_pictures_of_stored_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, shape in (("a", (4, 5, 3)), ("b", (5, 4, 3)), ("c", (4, 6, 3))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), rng.integers(0, 256 if name == "a" else 2, shape, np.uint8))
    options = ImagesetOptions(check_size=True, encoded=True)
    (tmp_path / "list").write_text("a.png 0\nb.png 1\n")
    assert convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db", options).count == 2
    (tmp_path / "list").write_text("a.png 0\nc.png 1\n")
    with pytest.raises(DataError, match=r"c\.png: the picture has 72 values .*, the first one 60"):
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / "other", options)


def test_a_type_that_cannot_be_written_names_the_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 5, 3), np.uint8))
    (tmp_path / "b.png").rename(tmp_path / "b.pcx")
    (tmp_path / "list").write_text("a.png 0\nb.pcx 1\n")
    options = ImagesetOptions(encoded=True, resize_width=2, resize_height=2)
    with pytest.raises(DataError) as failure:
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db", options)
    assert (
        str(failure.value)
        == f"{tmp_path}/b.pcx: OpenCV cannot write pictures of type '.pcx'; .png and .jpg are possible; give --encode_type"
    )
    assert not (tmp_path / "db").exists()


def test_check_size_compares_the_number_of_values(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 5, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "list").write_text("a.png 0\nb.png 1\n")
    with pytest.raises(DataError, match=r"b\.png: the picture has 72 values .*, the first one 60"):
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db", ImagesetOptions(check_size=True))


def test_files_are_stored_as_they_are_only_where_their_type_is_asked_for(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.PNG"), np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    (tmp_path / "list").write_text("a.PNG 0\n")
    source = (tmp_path / "a.PNG").read_bytes()
    for name, options, same in (
        ("guess", {"encoded": True}, True),
        ("png", {"encode_type": "png"}, True),
        ("jpg", {"encode_type": "jpg"}, False),
    ):
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / name, ImagesetOptions(**options))
        datum = parse_datum(read(tmp_path / name)[0][1], "record")
        assert datum.encoded and (datum.data == source) == same
        assert datum.data.startswith(b"\xff\xd8" if name == "jpg" else b"\x89PNG")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("2147483648", "does not fit into the 32 bits"),
        ("-2147483649", "32 bits"),
        ("1_0", "does not end in a label"),
        ("\u0663", "a label"),
    ],
)
def test_a_label_that_a_datum_cannot_hold_is_named_with_its_line(tmp_path: Path, label: str, reason: str) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "list").write_text(f"a.png 2147483647\na.png -2147483648\na.png {label}\n", "utf-8")
    with pytest.raises(DataError, match=f"list:3: .*{label}.*{reason}"):
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db")
    (tmp_path / "list").write_text("a.png 2147483647\na.png -2147483648\n")
    convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db")
    assert [parse_datum(value, "ours").label for _, value in read(tmp_path / "db")] == [2147483647, -2147483648]


def test_a_list_of_absolute_paths_under_another_root_names_the_root_to_give(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "list").write_text(f"{tmp_path}/a.png 1\n")
    with pytest.raises(DataError) as failure:
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db")
    assert failure.value.hint is not None and failure.value.hint.endswith("the list's paths are absolute, so ROOT must be /")
    with pytest.raises(DataError) as failure:
        convert_imageset("nowhere", tmp_path / "list", tmp_path / "db")
    assert failure.value.hint is not None and failure.value.hint.endswith("the list's paths are absolute, so ROOT must be /")
    (tmp_path / "relative").write_text("a.png 1\n")
    with pytest.raises(DataError) as failure:
        convert_imageset(tmp_path / "nowhere", tmp_path / "relative", tmp_path / "db")
    assert failure.value.hint is not None and failure.value.hint.endswith("; ROOT '" + f"{tmp_path}/nowhere' is not a folder")
    for number, root in enumerate(("/", "")):
        assert convert_imageset(root, tmp_path / "list", tmp_path / f"db{number}").count == 1


@pytest.mark.parametrize("gray", [False, True])
def test_fast_decoding_is_chosen_by_its_flag_only(tmp_path: Path, gray: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.jpg"), noise)
    (tmp_path / "list").write_text("a.jpg 0\n")
    for fast, reduced in ((False, 0), (True, cv2.IMREAD_REDUCED_GRAYSCALE_4)):
        options = ImagesetOptions(resize_width=16, resize_height=16, gray=gray, fast_decode=fast)
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / str(fast), options)
        source: Any = cv2.imread(str(tmp_path / "a.jpg"), reduced | (cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR))
        pixels = cv2.resize(source, (16, 16), interpolation=cv2.INTER_LINEAR)
        assert parse_datum(read(tmp_path / str(fast))[0][1], "ours").data == pixels.reshape(16, 16, -1).transpose(2, 0, 1).tobytes()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"backend": "rocksdb"}, "backend 'rocksdb' is unknown"),
        ({"resize_width": 65536}, "size 65536x0 is impossible"),
        ({"encode_type": "docx"}, "cannot write pictures of type '.docx'"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    (tmp_path / "list").write_text("a.png 0\n")
    with pytest.raises(DataError, match=reason):
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db", ImagesetOptions(**options))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list"]


def test_cancelling_leaves_nothing_and_the_events_end_with_finished(tmp_path: Path) -> None:
    for number in range(9):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((4, 5, 3), number, np.uint8))
    (tmp_path / "list").write_text("".join(f"{number}.png 0\n" for number in range(9)))
    events: list[Event] = []
    cancel = CancelToken()

    def sink(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.done == 4:
            cancel.cancel()

    with pytest.raises(Cancelled):
        convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db", events=sink, cancel=cancel)
    assert not (tmp_path / "db").exists()
    assert isinstance(events[-1], Finished) and events[-1].status == "cancelled"
    convert_imageset(tmp_path, tmp_path / "list", tmp_path / "db", events=events.append)
    assert isinstance(events[-1], Finished) and events[-1].status == "done" and len(read(tmp_path / "db")) == 9


KILLED = """
import os, signal, sys
from caffetools.data.convert_imageset import ImagesetOptions, convert_imageset
from caffetools.events import Progress

def sink(event):
    if isinstance(event, Progress) and event.done == 700:
        os.kill(os.getpid(), signal.SIGKILL)

import caffetools.data.databases as databases
from tests.children import run_child
databases._COMMIT_RECORDS = 50
convert_imageset(sys.argv[1], sys.argv[2], sys.argv[3], ImagesetOptions(force=True), events=sink)
"""


def many_pictures(folder: Path, count: int = 1000) -> Path:
    folder.mkdir()
    for number in range(8):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((3, 4, 3), number, np.uint8))
    (folder / "list").write_text("".join(f"{number % 8}.png {number % 5}\n" for number in range(count)))
    return folder


def test_a_killed_build_leaves_the_old_database_whole_and_is_resumed(tmp_path: Path) -> None:
    folder = many_pictures(tmp_path / "pictures")
    convert_imageset(folder, folder / "list", tmp_path / "expected")
    shutil.copytree(tmp_path / "expected", tmp_path / "db")
    (folder / "short").write_text("0.png 1\n")
    convert_imageset(folder, folder / "short", tmp_path / "db", ImagesetOptions(force=True))
    old = read(tmp_path / "db")
    done = run_child(["-c", KILLED, folder, folder / "list", tmp_path / "db"])
    assert done.returncode == -signal.SIGKILL and read(tmp_path / "db") == old
    (folder / "other").write_text("0.png 1\n" * 2000)
    with pytest.raises(DataError, match="which is not of this list; run without --resume"):
        convert_imageset(folder, folder / "other", tmp_path / "db", ImagesetOptions(force=True, resume=True))
    events: list[Event] = []
    result = convert_imageset(folder, folder / "list", tmp_path / "db", ImagesetOptions(force=True, resume=True), events=events.append)
    progress = [event.done for event in events if isinstance(event, Progress)]
    assert 650 < progress[0] <= 701 and progress[-1] == 1000 and result.count == 1000
    assert read(tmp_path / "db") == read(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db", "expected", "pictures"]


def test_a_cancelled_build_is_resumed(tmp_path: Path) -> None:
    folder = many_pictures(tmp_path / "pictures", 40)
    cancel = CancelToken()
    with pytest.raises(Cancelled):
        convert_imageset(folder, folder / "list", tmp_path / "db", events=lambda event: cancel.cancel(), cancel=cancel)
    assert not (tmp_path / "db").exists()
    convert_imageset(folder, folder / "list", tmp_path / "db", ImagesetOptions(resume=True))
    assert len(read(tmp_path / "db")) == 40
