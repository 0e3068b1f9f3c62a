"""The demo in full: what it learns, what it reports, that it can be run again, and that the commands it prints do the same by hand."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from caffetools.cancel import CancelToken
from caffetools.errors import Cancelled
from caffetools.events import Event, Metrics
from caffetools.project.demo import run_demo
from caffetools.proto.binary import read_caffemodel
from tests.cli.inprocess import Done, error_of, run, run_well


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory."""
    path = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path


@pytest.fixture(scope="module")
def earlier(folder: Path) -> set[Path]:
    """An earlier demo in ``folder / "demo"``, of another seed, cancelled at the first display of its training and damaged; its files."""
    token = CancelToken()

    def cancel_at_display(event: Event) -> None:
        if isinstance(event, Metrics):
            token.cancel()

    with pytest.raises(Cancelled):
        run_demo(Path("demo"), cancel_at_display, seed=2, device="cpu", cancel=token)
    (folder / "demo" / "digits-0-4" / "net" / "train_val.prototxt").write_text("broken")
    return {path for path in (folder / "demo").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def demo(earlier: set[Path]) -> Done:
    """The demo, in ``folder / "demo"`` in place of the earlier one."""
    return run_well("demo", "-o", "demo", "--device", "cpu")


def accuracies(done: Done) -> list[tuple[float, int]]:
    """(share, pictures) of both phases, as the last lines say."""
    return [(float(a) / 100, int(n)) for a, n in re.findall(r"^digits \d to \d: ([\d.]+)% of (\d+) held-out", done.stdout, re.MULTILINE)]


def test_both_phases_classify_the_digits(demo: Done) -> None:
    assert [pictures for _, pictures in accuracies(demo)] == [180, 179]
    assert all(accuracy >= 0.97 for accuracy, _ in accuracies(demo))


def test_the_report_is_one_file_with_the_right_numbers(folder: Path, demo: Done) -> None:
    report = (folder / "demo" / "report.html").read_text(encoding="utf-8")
    assert f"Report: {(folder / 'demo' / 'report.html').as_uri()}" in demo.stdout
    assert "LeNet recognizes " in report and "lenet recognizes" not in report
    for accuracy, pictures in accuracies(demo):
        assert f"{accuracy:.1%}" in report and f"{round(accuracy * pictures)} of {pictures} held-out images" in report
    assert not re.search(r"(src|href)=\"(?!data:|#)", report), "nothing is loaded from elsewhere"
    assert report.count("data:image/") > 20


def test_the_onnx_files_agree_with_the_nets(demo: Done) -> None:
    agreeing = re.findall(r"the same class for (\d+) of all (\d+) held-out pictures", demo.stdout)
    assert agreeing == [("180", "180"), ("179", "179")]


def test_the_second_phase_starts_from_the_weights_of_the_first(demo: Done) -> None:
    (line,) = [line for line in commands(demo) if line[1] == "train" and "--weights" in line]
    assert line[line.index("--weights") + 1] == "demo/digits-0-4/net/snapshot_iter_240.caffemodel"


def commands(done: Done) -> list[list[str]]:
    """The commands that were printed, in words."""
    return [shlex.split(line.strip().removeprefix("$ ")) for line in done.stdout.splitlines() if line.strip().startswith("$ caffetools")]


def test_the_printed_commands_do_the_same_by_hand_in_another_folder(folder: Path, demo: Done) -> None:
    """Every path in the folder ``demo`` becomes one in ``hand``, where at first there is nothing but the pictures."""
    printed = commands(demo)
    assert [words[1] for words in printed[:8]] == ["dataset", "retarget", "train", "deploy", "classify", "export", "visualize", "visualize"]
    assert len(printed) == 16
    shutil.copytree(folder / "demo" / "pictures", folder / "hand" / "pictures")
    for words in printed:
        assert words[0] == "caffetools"
        command = [re.sub(r"^demo/", "hand/", word) for word in words[1:]]
        if command[0] == "train" and "--weights" not in command:
            run_well(*command, "--max-iter", "60")
            take_over_the_first_phase(folder)
        else:
            run_well(*command)
    for phase in ("digits-0-4", "digits-5-9"):
        ours, theirs = folder / "hand" / phase, folder / "demo" / phase
        for name in ("data/mean.binaryproto", "data/train.txt", "data/labels.txt", "figures/filters.png"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()
        expect_equal_weights(ours / "net" / "snapshot_iter_240.caffemodel", theirs / "net" / "snapshot_iter_240.caffemodel")


def expect_equal_weights(*files: Path) -> None:
    first, second = (read_caffemodel(file).blobs for file in files)
    assert first.keys() == second.keys()
    for layer, blobs in first.items():
        for blob, other in zip(blobs, second[layer], strict=True):
            np.testing.assert_array_equal(blob, other)


def take_over_the_first_phase(folder: Path) -> None:
    """Compare the weights after 60 of its 240 iterations by hand with the demo's, and take the demo's last ones for what follows."""
    ours, theirs = (folder / place / "digits-0-4" / "net" for place in ("hand", "demo"))
    expect_equal_weights(ours / "snapshot_iter_60.caffemodel", theirs / "snapshot_iter_60.caffemodel")
    for path in theirs.glob("snapshot*"):
        shutil.copy(path, ours)


def test_it_replaces_its_own_folder_and_no_other(folder: Path, earlier: set[Path], demo: Done) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "mine.txt").write_text("mine")
    assert "other holds files that are not the demo's" in error_of(run("demo", "-o", "other"))
    assert [path.name for path in (folder / "other").iterdir()] == ["mine.txt"]
    # The demo's weights are those of its commands in another folder (above), so that nothing of the earlier one was used.
    states = [path for path in earlier if path.suffix == ".solverstate"]
    assert states and not any(path.exists() for path in states)
    assert "broken" not in (folder / "demo" / "digits-0-4" / "net" / "train_val.prototxt").read_text()
