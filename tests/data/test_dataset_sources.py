"""Datasets from lists and archives."""

from __future__ import annotations

import io
import json
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffetools.data.datasets.archives import list_archive
from caffetools.data.datasets.build import build_dataset
from caffetools.data.datasets.listing import list_pictures
from caffetools.data.datasets.lists import read_listing
from caffetools.errors import DataError
from tests.data.drawing import content, draw, draw_classes, names


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_classes(tmp_path / "my images", {"cat": 4, "big dog": 4})


ROWS = [(f"{name}/p {i}.png", name) for name in ("cat", "big dog") for i in range(4)]


def write_list(path: Path, kind: str) -> Path:
    """Write ROWS in one of the forms of a list."""
    labels = {"cat": 0, "big dog": 1}
    texts = {
        "txt": "".join(f"{name} {labels[label]}\n" for name, label in ROWS),
        "csv": "image,width,label\n" + "".join(f'"{name}",30,{label}\n' for name, label in ROWS),
        "tsv": "".join(f"{name}\t{label}\n" for name, label in ROWS),
        "json": json.dumps([{"file_name": name, "class": label} for name, label in ROWS]),
        "semicolons.csv": "path;label\r\n" + "".join(f"{name};{label}\r\n" for name, label in ROWS),
        "object.json": json.dumps(dict(ROWS)),
        "classes.json": json.dumps({label: [name for name, other in ROWS if other == label] for _, label in ROWS}),
        "jsonl": "".join(json.dumps({"path": name, "label": label}) + "\n" for name, label in ROWS),
    }
    path = path.with_suffix(f".{kind}")
    path.write_text(texts[kind], encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["txt", "csv", "semicolons.csv", "tsv", "json", "object.json", "classes.json", "jsonl"])
def test_every_form_of_list_gives_the_pictures_and_classes(images: Path, tmp_path: Path, kind: str) -> None:
    card = build_dataset(write_list(tmp_path / "list", kind), tmp_path / "out", size=8, root=images, val=0.25)
    # Numbers keep their meaning; names are sorted.
    assert card.classes == (["cat", "big dog"] if kind == "txt" else ["big dog", "cat"])
    assert (card.train_counts, card.val_counts) == ([3, 3], [1, 1])
    listed = lines(tmp_path / "out" / "train.txt") + lines(tmp_path / "out" / "val.txt")
    assert {(line.rpartition(" ")[0], card.classes[int(line.rpartition(" ")[2])]) for line in listed} == set(ROWS)
    assert card.pictures == str(images)


def test_the_root_is_the_lists_folder_or_the_working_directory(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    there, away = write_list(images / "list", "txt"), write_list(tmp_path / "elsewhere" / "list", "txt")
    assert read_listing(there).root == images
    with pytest.raises(DataError, match="its first picture 'cat/p 0.png' is neither in .* nor in"):
        read_listing(away)
    monkeypatch.chdir(images)
    assert read_listing(away).root == Path()
    with pytest.raises(DataError, match="is not a folder"):
        read_listing(there, root=tmp_path / "none")


def test_a_column_or_lists_of_their_own_give_the_split(images: Path, tmp_path: Path) -> None:
    rows = "".join(f"{name},{label},{part}\n" for (name, label), part in zip(ROWS, ["train", "valid", "testing", "train"] * 2, strict=True))
    (tmp_path / "all.csv").write_text("path,label,split\n" + rows)
    card = build_dataset(tmp_path / "all.csv", tmp_path / "a", size=8, root=images)
    assert (card.train_counts, card.val_counts, card.test_counts) == ([2, 2], [1, 1], [1, 1])
    assert lines(tmp_path / "a" / "test.txt") == ["big dog/p 2.png 0", "cat/p 2.png 1"]
    (tmp_path / "t.txt").write_text("cat/p 0.png 0\nbig dog/p 0.png 1\n")
    (tmp_path / "v.txt").write_text("big dog/p 1.png 1\ncat/p 1.png 0\n")
    card = build_dataset(tmp_path / "t.txt", tmp_path / "b", size=8, root=images, val_list=tmp_path / "v.txt")
    assert (card.train_counts, card.val_counts, card.test_counts, card.val) == ([1, 1], [1, 1], [], None)


def test_labels_file_names_numbers_also_without_pictures(images: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("chat\nchien\nlapin\n")
    card = build_dataset(write_list(tmp_path / "l", "txt"), tmp_path / "out", size=8, root=images, labels=tmp_path / "labels.txt")
    assert (card.classes, card.train_counts[2]) == (["chat", "chien", "lapin"], 0)
    assert "The class 'lapin' has no training picture." in card.notes


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("l.txt", "a.png 0\nb.png x\n", "l.txt:2: 'b.png x' does not end in a label"),
        ("l.txt", "a.png 0\nb.png -1\n", "the label -1 of 'b.png' is negative"),
        ("l.txt", "a.png 0\nb.png 2\n", "the highest label is 2, but no picture has the label 1"),
        ("l.txt", "a.png 0\nb.png 1\na.png 1\n", "l.txt:3: the picture 'a.png' is listed already in .*l.txt:1"),
        ("l.txt", "a.png 0\nb.png 0\n", "there is only one class"),
        ("l.csv", "", "the list is empty"),
        ("l.csv", "path,label\na.png,x\nb.png\n", "l.csv:3: it has 1 column"),
        ("l.csv", "path,label\na.png,\n", "l.csv:2: its label must be a number or the name"),
        ("l.csv", 'path,label\n"a.png,x\n', "it is not valid CSV"),
        ("l.csv", "path,label,split\na.png,x,train\nb.png,y,\n", "l.csv:3: it has no split"),
        ("l.csv", "path,label,split\na.png,x,holdout\n", "l.csv:2: the split 'holdout' is unknown"),
        ("l.csv", "a.png,x,7\n", "l.csv:1: the split '7' is unknown.*a first line can name the columns"),
        ("l.csv", "a.png,0\nb.png,1\nc.png,-1\n", "l.csv:3: the label -1 of 'c.png' is negative"),
        ("l.json", "[", "it is not valid JSON"),
        ("l.json", "[1, 2]", "l.json: entry 1: it names no picture"),
        ("l.json", '[["a.png", 1.5]]', "entry 1: its label must be"),
        ("l.json", "[" * 100_000, "it is not valid JSON"),
    ],
)
def test_bad_lists_are_errors_that_name_the_line(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=reason):
        build_dataset(tmp_path / name, tmp_path / "out", root=tmp_path)
    assert names(tmp_path) == [name]


def test_lists_in_other_encodings(tmp_path: Path) -> None:
    for name in ("一.png", "二.png"):
        draw(tmp_path / name, len(name), (9, 9)).rename(tmp_path / name.encode("gbk").decode("utf-8", "surrogateescape"))
    (tmp_path / "gbk.txt").write_bytes("一.png 0\n二.png 1\n".encode("gbk"))
    card = build_dataset(tmp_path / "gbk.txt", tmp_path / "out", size=8)
    assert card.train_counts == [1, 1] and (tmp_path / "out" / "train.txt").read_bytes().count("一.png".encode("gbk")) == 1
    (tmp_path / "gbk.csv").write_bytes("path,label\n一.png,狗\n".encode("gbk"))
    with pytest.raises(DataError, match=r"gbk.csv: the list is not UTF-8; save it as UTF-8"):
        build_dataset(tmp_path / "gbk.csv", tmp_path / "out2")


def test_options_of_lists_are_refused_for_folders(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is not a list"):
        build_dataset(images, tmp_path / "out", root=tmp_path)


def archive(path: Path, members: list[tuple[Any, bytes]]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, data in members:
                opened.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as opened_tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                opened_tar.addfile(info, io.BytesIO(data))
    return path


def members_of(folder: Path, prefix: str = "") -> list[tuple[Any, bytes]]:
    return [(f"{prefix}{path.relative_to(folder).as_posix()}", path.read_bytes()) for path in sorted(folder.rglob("*.png"))]


@pytest.mark.parametrize("suffix", ["zip", "tar", "tgz"])
def test_an_archive_gives_the_records_of_its_folder(images: Path, tmp_path: Path, suffix: str) -> None:
    build_dataset(images, tmp_path / "plain", size=8)
    junk: list[tuple[Any, bytes]] = [("top/__MACOSX/cat/._p 0.png", b"x"), ("top/README.md", b"words"), ("top/cat/.hidden.png", b"x")]
    packed = archive(tmp_path / f"p.{suffix}", members_of(images, "top/") + junk)
    card = build_dataset(packed, tmp_path / "packed", size=8)
    assert card.pictures == str(packed) and card.skipped == []
    one, other = content(tmp_path / "plain"), content(tmp_path / "packed")
    assert {name for name in one if one[name] != other.get(name)} == {"dataset.json"} and one.keys() == other.keys()


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize("name", ["a/../../../evil.png", "/evil.png", "a\\..\\..\\evil.png", "C:/evil.png"])
def test_paths_that_lead_out_of_an_archive_are_refused(images: Path, tmp_path: Path, suffix: str, name: str) -> None:
    packed = archive(tmp_path / f"p.{suffix}", [*members_of(images), (name, b"x")])
    with pytest.raises(DataError, match="leads out of the archive's folder"):
        build_dataset(packed, tmp_path / "out", size=8)
    assert names(tmp_path) == ["my images", packed.name] and not list(tmp_path.parent.glob("evil*"))


def test_links_out_of_an_archive_are_not_followed_and_listed(images: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tar", "w") as opened:
        for name, data in members_of(images):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"cat/link{kind!r}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            opened.addfile(info)
    card = build_dataset(tmp_path / "p.tar", tmp_path / "out", size=8)
    assert card.train_count + card.val_count == 8 and len(card.skipped) == 3


def test_an_archive_that_unpacks_to_too_much_stops_also_if_it_states_less(images: Path, tmp_path: Path) -> None:
    bomb = archive(tmp_path / "p.zip", [*members_of(images), ("cat/zeros.png", bytes(3_000_000))])
    with pytest.raises(DataError, match="unpack to more than 1,000,000 bytes"):
        list_archive(bomb, tmp_path / "work", most_bytes=1_000_000)
    # The sizes that the archive states are in its directory, and in the header of each member.
    data = bomb.read_bytes().replace((3_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    (tmp_path / "liar.zip").write_bytes(data)
    with pytest.raises(DataError, match="unpack to more than|damaged"):
        list_archive(tmp_path / "liar.zip", tmp_path / "work", most_bytes=1_000_000)
    assert sum(path.stat().st_size for path in (tmp_path / "work").rglob("*") if path.is_file()) < 1_100_000


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("suffix", ["zip", "tgz"])
def test_a_truncated_archive_is_one_error_that_names_it(images: Path, tmp_path: Path, suffix: str, keep: float) -> None:
    packed = archive(tmp_path / f"p.{suffix}", members_of(images))
    data = packed.read_bytes()
    packed.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=rf"p.{suffix}: the archive (is damaged|holds no dataset)") as caught:
        build_dataset(packed, tmp_path / "out", size=8)
    assert "\n" not in str(caught.value) and names(tmp_path) == ["my images", packed.name]


def test_a_tar_that_ends_between_two_pictures_is_refused(images: Path, tmp_path: Path) -> None:
    packed = archive(tmp_path / "p.tar", members_of(images))
    with tarfile.open(packed) as opened:
        end = opened.getmembers()[-1].offset
    packed.write_bytes(packed.read_bytes()[:end])
    with pytest.raises(DataError, match=r"p.tar: the archive is damaged.*without the block of zeros"):
        build_dataset(packed, tmp_path / "out", size=8)


def test_names_in_gbk_of_a_zip_are_read(images: Path, tmp_path: Path) -> None:
    class GbkInfo(zipfile.ZipInfo):
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # as Windows' Explorer of Chinese systems writes names
            return self.filename.encode("gbk"), self.flag_bits & ~0x800

    renamed = [(GbkInfo(name.replace("cat/", "猫/").replace("big dog/", "狗/")), data) for name, data in members_of(images)]
    card = build_dataset(archive(tmp_path / "p.zip", renamed), tmp_path / "out", size=8)
    # "猫" in GBK is also valid UTF-8, for another letter; the other name decides.
    assert set(card.classes) == {"猫", "狗"}


def test_an_unusable_picture_of_an_archive_is_named_by_the_archive(images: Path, tmp_path: Path) -> None:
    packed = archive(tmp_path / "p.zip", [*members_of(images), ("cat/bad.png", b"x")])
    with pytest.raises(DataError, match=r"p.zip/cat/bad.png: not a picture"):
        build_dataset(packed, tmp_path / "out", size=8, strict=True)


def _spoiled(data: bytes, rng: np.random.Generator) -> bytes:
    """Return ``data`` with some bytes changed, removed or added."""
    result = bytearray(data)
    for _ in range(int(rng.choice([1, 2, 5, 20]))):
        at, kind = int(rng.integers(len(result))), rng.random()
        if kind < 0.6:
            result[at] = int(rng.integers(256))
        elif kind < 0.8 and len(result) > 50:
            del result[at : at + int(rng.integers(1, 40))]
        else:
            result[at:at] = rng.bytes(int(rng.integers(1, 9)))
    return bytes(result)


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz", "csv", "tsv", "json", "jsonl", "txt"])
def test_spoiled_sources_are_read_or_give_one_line_of_error(images: Path, tmp_path: Path, kind: str) -> None:
    packed = kind in ("zip", "tar", "tgz")
    source = archive(tmp_path / f"p.{kind}", members_of(images)) if packed else write_list(tmp_path / "l", kind)
    good, rng = source.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        source.write_bytes(_spoiled(good, rng))
        try:
            list_archive(source, tmp_path / "work", most_bytes=1 << 20) if packed else read_listing(source, root=images)
        except DataError as error:
            assert "\n" not in str(error)


def test_links_to_folders_above_are_not_followed_and_listed(tmp_path: Path) -> None:
    for name in ("a/one.png", "b/two.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "three.png").write_bytes(b"x")
    (tmp_path / "pictures" / "a" / "root").symlink_to("..")
    (tmp_path / "pictures" / "a" / "above").symlink_to("../..")
    (tmp_path / "pictures" / "a" / "itself").symlink_to(".")
    (tmp_path / "pictures" / "b" / "far").symlink_to(tmp_path / "elsewhere")
    listing = list_pictures(tmp_path / "pictures")
    assert [[picture.path for picture in pictures] for pictures in listing.pictures] == [["a/one.png"], ["b/far/three.png", "b/two.png"]]
    assert sorted(skipped.path for skipped in listing.skipped) == ["a/above", "a/itself", "a/root"]
    assert {skipped.reason for skipped in listing.skipped} == {"it is a link to a folder that contains it; it is not followed"}


def test_links_in_a_tar_are_followed_inside_of_it_only(tmp_path: Path) -> None:
    data = b"first picture"
    links = {
        "set/a/hard.png": (tarfile.LNKTYPE, "set/a/one.png"),
        "set/b/soft.png": (tarfile.SYMTYPE, "../a/one.png"),
        "set/b/out.png": (tarfile.SYMTYPE, "/etc/hostname"),
        "set/b/up.png": (tarfile.SYMTYPE, "../../../etc/hostname"),
        "set/b/round.png": (tarfile.SYMTYPE, "round.png"),
        "set/b/pipe.png": (tarfile.FIFOTYPE, ""),
        "set/b/device.png": (tarfile.CHRTYPE, ""),
        "set/b/more": (tarfile.SYMTYPE, "../a"),
        "set/b/far": (tarfile.SYMTYPE, "/home/pictures"),
        "set/b/note": (tarfile.SYMTYPE, "../a/one.png"),
    }
    with tarfile.open(tmp_path / "pictures.tar.gz", "w:gz") as archive:
        for name in ("set/a/one.png", "set/b/two.png"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, (kind, target) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    listing = list_archive(tmp_path / "pictures.tar.gz", tmp_path / "unpacked")
    paths = [picture.path for picture in listing.all_pictures]
    assert paths == ["a/hard.png", "a/one.png", "b/soft.png", "b/two.png"]
    assert {(listing.root / path).read_bytes() for path in paths} == {data}
    assert {skipped.path: skipped.reason.split(",")[0] for skipped in listing.skipped} == {
        "set/b/out.png": "it is a link to '/etc/hostname'",
        "set/b/up.png": "it is a link to '../../../etc/hostname'",
        "set/b/round.png": "it is a link to 'round.png'",
        "set/b/pipe.png": "it is not a regular file but a pipe or device",
        "set/b/device.png": "it is not a regular file but a pipe or device",
        "set/b/more": "it is a link to the folder '../a'; links to folders in archives are not followed",
        "set/b/far": "it is a link to '/home/pictures'",
    }


def test_links_in_a_zip_are_followed_inside_of_it_only(images: Path, tmp_path: Path) -> None:
    links = {
        "set/a/same.png": "one.png",
        "set/b/far.png": "../a/same.png",
        "set/b/out.png": "/etc/hostname",
        "set/b/up.png": "../../../etc/hostname",
        "set/b/round.png": "round.png",
        "set/b/more": "../a",
        "set/b/readme": "../readme.txt",
    }
    content = next(images.rglob("*.png")).read_bytes()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("set/a/one.png", content)
        archive.writestr("set/b/two.png", content)
        for name, target in links.items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    listing = list_archive(tmp_path / "set.zip", tmp_path / "unpacked")
    assert [picture.path for picture in listing.all_pictures] == ["a/one.png", "a/same.png", "b/far.png", "b/two.png"]
    assert all((listing.root / picture.path).read_bytes() == content for picture in listing.all_pictures)
    assert {skipped.path: skipped.reason for skipped in listing.skipped} == {
        name: f"it is a link to '{links[name]}', which is not a file in the archive"
        for name in ("set/b/out.png", "set/b/up.png", "set/b/round.png", "set/b/readme")
    } | {"set/b/more": "it is a link to the folder '../a'; links to folders in archives are not followed"}
