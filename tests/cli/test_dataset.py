"""`caffetools dataset build`: what it makes and prints, and how it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from caffetools.cli.dataset import app
from caffetools.data.datasets.build import load_card
from caffetools.errors import DataError
from tests.children import run_child
from tests.cli.inprocess import without_next
from tests.data.drawing import draw_classes, names


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = draw_classes(tmp_path / "pictures", {"cats": 4, "große Hunde": 5})
    (folder / "cats" / "[bad].jpg").write_text("words")
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["build", *map(str, arguments)])


def test_it_reports_what_it_made_and_what_it_left_out(pictures: Path, tmp_path: Path) -> None:
    result = run(pictures, tmp_path / "out", "--size", "8")
    assert result.exit_code == 0
    assert without_next(result.output) == [
        "2 classes, 7 pictures for training and 2 for validation, 8 x 8",
        f"      0       3       1  {'█' * 18:<24}  cats",
        f"      1       4       1  {'█' * 24}  große Hunde",
        "  left out: cats/[bad].jpg: not a picture that OpenCV can decode, or a damaged one (it is text)",
        f"Wrote {tmp_path / 'out'}: train_lmdb, val_lmdb, labels.txt, train.txt, val.txt, mean.binaryproto, samples.png, dataset.json",
    ]


def test_json_is_the_card(pictures: Path, tmp_path: Path) -> None:
    result = run(pictures, tmp_path / "out", "--size", "8x6", "--gray", "--val", "0.5", "--seed", "3", "--json")
    answer = json.loads(result.output)
    assert answer == {"folder": str(tmp_path / "out"), **json.loads((tmp_path / "out" / "dataset.json").read_text())}
    assert (answer["classes"], answer["width"], answer["height"], answer["channels"]) == (["cats", "große Hunde"], 8, 6, 1)
    assert (answer["val"], answer["seed"]) == (0.5, 3)


def test_force_replaces_and_strict_stops(pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path / "out", "--size", "8")
    assert isinstance(run(pictures, tmp_path / "out", "--size", "9").exception, DataError)
    assert load_card(tmp_path / "out").width == 8
    assert isinstance(run(pictures, tmp_path / "out", "--size", "9", "--strict", "--force").exception, DataError)
    assert load_card(tmp_path / "out").width == 8
    assert run(pictures, tmp_path / "out", "--size", "9", "--force").exit_code == 0
    assert load_card(tmp_path / "out").width == 9


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    done = run_child(["-m", "caffetools", "dataset", "build", tmp_path / "pictures", tmp_path / "out"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("caffetools: error: ") and done.stderr.count("\n") == 1
    assert names(tmp_path) == ["pictures"]


def test_add_merge_and_subset_show_the_new_dataset(pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path / "data", "--size", "8")
    draw_classes(tmp_path / "more", {"zebra": 3}, seed=900)
    command = CliRunner().invoke
    added = command(app, ["add", str(tmp_path / "data"), str(tmp_path / "more"), "-o", str(tmp_path / "added")])
    assert added.exit_code == 0 and added.output.startswith("3 classes, 9 pictures for training and 3 for validation, 8 x 8\n")
    small = command(
        app, ["subset", str(tmp_path / "added"), str(tmp_path / "small"), "-c", "zebra", "-c", "cats", "--per-class", "1", "--json"]
    )
    assert (json.loads(small.output)["classes"], json.loads(small.output)["train_counts"]) == (["cats", "zebra"], [1, 1])
    (tmp_path / "two.txt").write_text("zebra\ncats\n")
    same = command(app, ["subset", str(tmp_path / "added"), str(tmp_path / "small2"), "--classes", str(tmp_path / "two.txt"), "--json"])
    assert json.loads(same.output)["classes"] == ["cats", "zebra"]
    merged = command(app, ["merge", str(tmp_path / "all"), str(tmp_path / "small"), str(tmp_path / "data")])
    assert merged.exit_code == 0 and "cats" in merged.output
    assert load_card(tmp_path / "all").classes == ["cats", "zebra", "große Hunde"]


def test_options_reach_the_build(pictures: Path, tmp_path: Path) -> None:
    result = run(
        *(pictures, tmp_path / "out", "--size", "8", "--test", "0.2", "--group-by", r"p (\d)", "--resize-mode", "fill", "--encode", "png"),
        *("--min-per-class", "2", "--drop-similar", "--fast-decode", "--resume", "--json"),
    )
    answer = json.loads(result.output)
    assert answer["settings"] == {
        "encode": "png", "resize_mode": "fill", "test": 0.2, "group_by": r"p (\d)", "min_per_class": 2, "dropped": "similar",
        "fast_decode": True,
    }  # fmt: skip
    assert sum(answer["test_counts"]) > 0 and answer["encoded"]


def test_a_dataset_is_looked_at_as_a_whole(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(pictures, out, "--size", "8", "--encode", "png", "--test", "0.2").exit_code == 0
    command = CliRunner().invoke
    sizes = {"train": 5, "val": 2, "test": 2}
    sheet = tmp_path / "sheet.png"
    shown = command(app, ["inspect", str(out), "--json", "-o", str(sheet)])
    assert {part: values["records"] for part, values in json.loads(shown.output).items()} == sizes and sheet.is_file()
    assert "große Hunde" in command(app, ["inspect", str(out)]).output
    assert json.loads(command(app, ["inspect", str(out / "val_lmdb"), "--json"]).output)["records"] == 2
    # A database in a dataset has its class names, one beside it has not.
    assert "█ große Hunde" in command(app, ["inspect", str(out / "val_lmdb")]).output
    (tmp_path / "dataset.json").write_text((out / "dataset.json").read_text())
    shutil.copytree(out / "val_lmdb", tmp_path / "val_lmdb.copy")
    assert "█ große Hunde" not in command(app, ["inspect", str(tmp_path / "val_lmdb.copy")]).output

    assert {part: values["faults"] for part, values in json.loads(command(app, ["verify", str(out), "--json"]).output).items()} == {
        "train": [], "val": [], "test": []
    }  # fmt: skip
    exported = command(app, ["export", str(out), str(tmp_path / "files"), "--json"])
    assert {part: values["files"] for part, values in json.loads(exported.output).items()} == sizes
    assert {path.parent.parent.name for path in (tmp_path / "files").rglob("*.png")} == set(sizes)
    assert {path.parent.name for path in (tmp_path / "files" / "train").rglob("*.png")} == {"cats", "große Hunde"}

    damaged = out / "val_lmdb" / "data.mdb"
    damaged.write_bytes(damaged.read_bytes().replace(b"\x89PNG", b"\x89PNX"))
    done = command(app, ["verify", str(out)])
    assert done.exit_code == 1
    assert f"{out / 'train_lmdb'}: 5 records, 0 fault(s)" in done.output and f"{out / 'val_lmdb'}: 2 records, 2 fault(s)" in done.output


def test_verify_lists_no_fault_that_the_card_of_a_dataset_states(tmp_path: Path) -> None:
    """Pictures of their own sizes, and classes without validation pictures; the number of classes is the card's."""
    draw_classes(tmp_path / "p" / "train", {"a": 3, "b": 2, "c": 3, "d": 2})
    draw_classes(tmp_path / "p" / "val", {"a": 2, "c": 2}, seed=50)
    out = tmp_path / "out"
    assert run(tmp_path / "p", out, "--size", "0").exit_code == 0
    command = CliRunner().invoke
    for place in (out, f"file://{out}", out / "train_lmdb", out / "val_lmdb"):
        done = command(app, ["verify", str(place)])
        assert (done.exit_code, done.output.splitlines()[-1][-10:]) == (0, "0 fault(s)"), done.output
    (tmp_path / "dataset.json").write_text((out / "dataset.json").read_text())
    shutil.copytree(out / "val_lmdb", tmp_path / "copy")
    faults = {fault["kind"] for fault in json.loads(command(app, ["verify", str(tmp_path / "copy"), "--json"]).output)["faults"]}
    assert faults == {"size", "gap"}
    card = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps({**card, "classes": card["classes"][:-1]}))
    assert "its label 3 is not below the number of classes, 3" in command(app, ["verify", str(out)]).output


def test_classes_of_a_subset_may_be_written_with_commas(pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path / "data", "--size", "8")
    done = CliRunner().invoke(app, ["subset", str(tmp_path / "data"), str(tmp_path / "small"), "--classes", "große Hunde, cats", "--json"])
    assert json.loads(done.output)["classes"] == ["cats", "große Hunde"]
    wrong = CliRunner().invoke(app, ["subset", str(tmp_path / "data"), str(tmp_path / "small2"), "--classes", "cats,mice"])
    assert isinstance(wrong.exception, DataError) and "mice" in str(wrong.exception)


def test_the_commands_take_urls_and_print_them_as_they_are(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{tmp_path}"
    monkeypatch.chdir(tmp_path / "pictures")

    def last(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments])
        assert result.exit_code == 0, result.output
        return result.output.splitlines()[-1]

    assert last("build", f"{url}/pictures", f"{url}/data", "--size", "8").startswith(f"Wrote {url}/data: train_lmdb,")
    assert last("subset", f"{url}/data", f"{url}/small", "--per-class", "1").startswith(f"Wrote {url}/small: train_lmdb,")
    assert last("merge", f"{url}/both", f"{url}/data", f"{url}/small").startswith(f"Wrote {url}/both: train_lmdb,")
    assert last("export", f"{url}/data", f"{url}/files") == f"Wrote 2 files and list.txt to {url}/files/val"
    assert sorted(path.name for path in (tmp_path / "files/train").iterdir()) == ["cats", "große Hunde", "list.txt"]
    assert last("verify", f"{url}/data") == f"{url}/data/val_lmdb: 2 records, 0 fault(s)"
    # No folder called "file:" in the working folder.
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["cats", "große Hunde"]
