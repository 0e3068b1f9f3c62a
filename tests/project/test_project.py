"""``Project`` and ``FinetuneConfig``: the same run from Python and from the command line, stopped anywhere and resumed."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import caffetools as ct
from caffetools.project.config import FinetuneConfig
from caffetools.project.remarks import remarks_on
from caffetools.project.training_schedule import plan_training
from caffetools.proto.binary import read_caffemodel
from caffetools.results import Confusion
from tests.cli.inprocess import run, run_well
from tests.project.shapes import TRAIN_VAL, draw_shapes


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with images and a net."""
    monkeypatch.chdir(tmp_path)
    draw_shapes(tmp_path / "pictures")
    (tmp_path / "shapes.prototxt").write_text(TRAIN_VAL)
    return tmp_path


def config_of(out: str, **more: object) -> FinetuneConfig:
    values = {"pictures": "pictures", "out": out, "model": "shapes.prototxt", "from_scratch": True, "epochs": 1, "device": "cpu", **more}
    return FinetuneConfig.from_dict(values)


def weights_of(folder: Path) -> dict[str, list[bytes]]:
    path = max(folder.glob("*iter*.caffemodel"), key=lambda found: int(found.stem.rpartition("_")[2]))
    return {layer: [np.asarray(blob).tobytes() for blob in blobs] for layer, blobs in read_caffemodel(path).blobs.items()}


def test_the_settings_round_trip_through_json_and_the_command_line(place: Path) -> None:
    config = config_of("run", val=0.25, seed=7, base_lr=0.002, gray=False, size="32x24")
    assert FinetuneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert shlex.split(config.command())[:4] == ["caffetools", "finetune", "pictures", "-o"]
    assert "--val 0.25 --seed 7" in config.command() and "--from-scratch" in config.command() and "--gray" not in config.command()
    form = {item["name"]: item for item in FinetuneConfig.form()}
    assert form["epochs"]["type"] == "int" and form["epochs"]["minimum"] == 1 and form["pictures"]["required"]
    options = run_well("finetune", "--help").stdout
    assert all(f"--{name.replace('_', '-')}" in options for name in form if name not in ("pictures", "out"))


def test_what_has_the_name_of_the_nets_own_database_by_chance_is_of_no_concern(place: Path) -> None:
    (place / "none").mkdir()  # the source that TRAIN_VAL names
    run_well("retarget", "shapes.prototxt", "--classes", "5", "-o", "net")
    assert 'source: "none"' in (place / "net" / "train_val.prototxt").read_text()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"out": "run"}, "the setting 'pictures' is missing"),
        ({"pictures": "a", "out": "b", "epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'"),
        ({"pictures": "a", "out": "b", "epochs": "many"}, "the setting 'epochs' must be of type int, not 'many'"),
        ({"pictures": "a", "out": "b", "gray": "yes"}, "the setting 'gray' must be of type bool, not 'yes'"),
        ({"pictures": "a", "out": "b", "seed": 1.5}, "the setting 'seed' must be of type int, not 1.5"),
    ],
)
def test_settings_of_a_form_are_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(ct.CaffeToolsError, match=message):
        FinetuneConfig.from_dict(values)


CANCELLED_AT = ("dataset:progress", "retarget:artifact", "train:progress", "train:tested", "train:checkpoint", "classify:progress")


def test_a_run_cancelled_at_each_kind_of_event_is_resumed_to_the_same_weights(place: Path) -> None:
    seen: list[str] = []
    whole, _ = ct.finetune(config_of("whole"), lambda event: seen.append(f"{event.task}:{event.kind}"))
    expected = weights_of(place / "whole" / "net")
    kinds = list(dict.fromkeys(seen))
    assert set(CANCELLED_AT) <= set(kinds)
    for number, kind in enumerate(CANCELLED_AT):
        out, token = f"run{number}", ct.CancelToken()

        def sink(event: ct.events.Event, token: ct.CancelToken = token, kind: str = kind) -> None:
            if f"{event.task}:{event.kind}" == kind:
                token.cancel()

        try:
            ct.finetune(config_of(out), sink, token)
        except ct.Cancelled:
            result, _ = ct.finetune(config_of(out))
            assert result.evaluation.predicted == whole.evaluation.predicted, kind
        assert weights_of(place / out / "net") == expected, kind
        shutil.rmtree(place / out)


def test_a_project_does_every_step(place: Path) -> None:
    project = ct.Project.create("own", "pictures", size="32")
    with pytest.raises(ct.CaffeToolsError, match="not trained yet"):
        project.export()
    assert project.status().next_command == "caffetools retarget cifar10_quick --dataset own/data -o own/net"
    result = project.retarget("shapes.prototxt", epochs=4, base_lr=0.01, seed=1)
    how = project.preprocessing
    assert how is not None and result.preprocessing is not None
    assert how.labels == result.preprocessing.labels and how.mean_known
    assert project.status().next_command == "caffetools train own/net/solver.prototxt"
    token = ct.CancelToken()
    stopped = project.train(device="cpu", cancel=token, events=lambda event: token.cancel() if event.kind == "metrics" else None)
    assert stopped.stopped
    done = project.train(device="cpu")
    assert not done.stopped
    evaluation = project.evaluate()
    assert evaluation.confusion.total == project.dataset.val_count
    (answer,) = project.classify(next((place / "pictures").rglob("*.png")), top=1)
    assert answer.guesses[0].label in project.dataset.classes
    project.export()
    status = ct.Project.open("own").status()
    assert status.iteration == status.max_iter and status.onnx == Path("own/model.onnx")
    assert status.next_command.startswith("caffetools classify own/model.onnx ") and Path(shlex.split(status.next_command)[-1]).is_file()
    assert f"trained    {status.iteration} of {status.max_iter} iterations" in run_well("status", "own").stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place / "pictures")
        elsewhere = ct.Project.open(place / "own").status()
        assert (elsewhere.iteration, elsewhere.scores) == (status.iteration, status.scores), "also from another folder"
    with pytest.raises(ct.CaffeToolsError, match="no project is here"):
        ct.Project.open(place / "pictures")


def test_from_scratch_takes_the_networks_own_learning_rate() -> None:
    assert plan_training("cifar10_quick", 960, 240, fine_tuning=False, own_lr=0.001).base_lr == 0.001
    assert plan_training("squeezenet_v1.1", 960, 240, fine_tuning=False, own_lr=0.04).base_lr == 0.005
    assert plan_training("cifar10_quick", 960, 240, fine_tuning=False, own_lr=0.001, base_lr=0.02).base_lr == 0.02
    with pytest.raises(ct.CaffeToolsError, match="--base-lr must be a positive number"):
        plan_training("lenet", 9, 9, fine_tuning=True, base_lr=0.0)


def confusion_of(right: int, total: int, classes: int) -> Confusion:
    true = [index % classes for index in range(total)]
    predicted = [label if index < right else (label + 1) % classes for index, label in enumerate(true)]
    return Confusion.from_labels(true, predicted, [str(n) for n in range(classes)])


@pytest.mark.parametrize(
    ("right", "total", "classes", "remarked"), [(40, 120, 3, True), (1, 120, 120, True), (120, 120, 3, False), (60, 120, 3, False)]
)
def test_a_result_at_chance_level_is_remarked(right: int, total: int, classes: int, remarked: bool) -> None:
    remarks = remarks_on(confusion_of(right, total, classes))
    assert bool(remarks) == remarked
    if remarked:
        assert "no better than guessing one of" in remarks[0] and "--base-lr" in remarks[0]


def test_a_finetune_that_learned_nothing_reports_it_in_terminal_and_report(place: Path) -> None:
    done = run("finetune", "pictures", "-o", "run", "--model", "shapes.prototxt", "--from-scratch", "--epochs", 1, "--base-lr", "1e-9")
    assert done.returncode == 0
    assert "no better than guessing" in done.stderr
    assert "no better than guessing" in (place / "run" / "report.html").read_text()
