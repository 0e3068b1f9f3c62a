"""Remarks on a result in words, each from data for which they hold and from data for which they do not; the report's next steps."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from caffetools.data.datasets.card import DatasetCard, load_card
from caffetools.infer.classifier import Classifier
from caffetools.net.net import Net
from caffetools.project.config import FinetuneConfig, flags_of
from caffetools.project.evaluate import Evaluation, evaluate, held_out
from caffetools.project.remarks import (
    OF_SCRATCH,
    OF_TRAIN,
    accuracy_interval,
    is_chance_level,
    is_near_chance,
    loss_trend,
    remarks_on,
    remarks_on_accuracy,
    remarks_on_data,
    remarks_on_log,
    remarks_on_training,
)
from caffetools.project.report import title_and_summary
from caffetools.project.report_steps import better_run
from caffetools.proto.blobs import Array
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse
from caffetools.results import Confusion
from caffetools.solver.callbacks import History
from caffetools.solver.control import Output, TestResult
from caffetools.solver.logs.training_log import LogRow, TrainingLog
from tests.cli.inprocess import run_well
from tests.project.shapes import TRAIN_VAL, draw_shapes


def log_of(train: list[float], test: list[float]) -> TrainingLog:
    """A log with a training and a test loss every ten iterations."""
    rows = [LogRow(10 * index, 0.0, loss=value) for index, value in enumerate(train)]
    return TrainingLog(rows, [LogRow(10 * index, 0.0, outputs={"loss": value}) for index, value in enumerate(test)])


FALLING = [2.0, 1.5, 1.0, 0.8, 0.6, 0.4, 0.3, 0.2]
OVERFITTING = [2.0, 1.6, 1.2, 1.0, 1.1, 1.3, 1.5, 1.9]


def test_overfitting_is_stated_with_both_losses() -> None:
    (remark,) = remarks_on_log(log_of(FALLING, OVERFITTING))
    assert remark.startswith("The network overfits: its loss on held-out images was lowest at iteration 30 (1) and is 1.9 at the end")
    assert "fewer --epochs" in remark


def test_the_remarks_on_caffetools_train_name_settings_of_the_solver_rather_than_options_that_train_lacks() -> None:
    advice = [remark for test in (FALLING, OVERFITTING) for remark in remarks_on_log(log_of(FALLING, test), OF_TRAIN)]
    assert len(advice) == 2 and all("max_iter" in remark and "--epochs" not in remark for remark in advice)
    (chance,) = remarks_on_accuracy(0.1, 10, 100, OF_TRAIN)
    assert "max_iter" in chance and "--epochs" not in chance and "--from-scratch" not in chance


def test_the_remarks_on_a_run_of_finetune_name_options_that_it_has_and_that_apply() -> None:
    (chance,) = remarks_on_accuracy(0.1, 10, 100)
    (scratch,) = remarks_on_accuracy(0.1, 10, 100, OF_SCRATCH)
    assert "--from-scratch" not in chance and "instead of --from-scratch" in scratch
    early = [remark for remark in remarks_on_log(log_of(FALLING, FALLING)) if "ended early" in remark]
    known = {flag for item in dataclasses.fields(FinetuneConfig) for flag in flags_of(item)}
    assert early and set(re.findall(r"--[a-z-]+", f"{chance} {scratch} {early[0]}")) <= known


def test_a_test_loss_that_rises_but_remains_near_0_is_not_overfitting() -> None:
    assert remarks_on_log(log_of(FALLING, [2.0, 1.0, 0.1, 0.001, 0.0001, 0.002, 0.004, 0.008])) == []


def test_a_test_loss_that_rises_with_the_training_loss_is_not_overfitting() -> None:
    assert remarks_on_log(log_of([0.5, 0.6, 0.8, 0.9, 1.0, 1.2, 1.4, 1.9], OVERFITTING)) == []


@pytest.mark.parametrize(
    ("test", "remarked"),
    [
        (FALLING, True),
        ([2.0, 1.0, 0.6, 0.5, 0.48, 0.47, 0.47, 0.46], False),  # flat in the last quarter
        ([2.0, 0.5, 0.2, 0.1, 0.08, 0.06, 0.05, 0.01], False),  # near 0
        ([2.0, 0.5, 0.4], False),  # too few tests
        ([2.0, math.nan, 1.0, math.nan], False),
    ],
)
def test_a_training_that_ended_while_its_test_loss_was_falling(test: list[float], remarked: bool) -> None:
    remarks = remarks_on_log(log_of(FALLING, test))
    assert [remark.startswith("The training ended early") for remark in remarks] == [True] * remarked
    if remarked:
        assert "from 0.4 to 0.2 in the last quarter. More --epochs" in remarks[0]


def test_the_trend_of_a_log_by_hand() -> None:
    trend = loss_trend(log_of(FALLING, OVERFITTING))
    assert trend is not None and (trend.iteration, trend.lowest, trend.last, trend.earlier) == (30, 1.0, 1.9, 1.3)
    assert trend.train == (pytest.approx(np.mean(FALLING[:4])), pytest.approx(np.mean(FALLING[-4:])))


def test_classes_that_are_never_recognized_or_never_measured_are_named() -> None:
    names = ["a", "b", "c", "d"]
    remarks = remarks_on(Confusion.from_labels([0] * 20 + [1] * 20 + [2] * 5, [0] * 20 + [1] * 20 + [0] * 5, names))
    assert remarks == [
        "The class d has no held-out image, so nothing is known about it.",
        "The class c is never recognized on the held-out images.",
    ]
    several = remarks_on(Confusion.from_labels([0] * 40 + [1, 2, 3], [0] * 43, names))
    assert several == [
        "The network answers a for every held-out image; the accuracy of 93.0% is the share of that class.",
        "3 classes (b, c, d) are never recognized on the held-out images.",
    ]


def test_a_result_that_is_hardly_better_than_guessing_is_remarked_with_its_loss() -> None:
    # 9 of 240 images: more than luck for 120 classes, but the loss is that of guessing, log(120) = 4.787.
    true = [index % 120 for index in range(240)]
    confusion = Confusion.from_labels(
        true, [label if index < 9 else (label + 1) % 120 for index, label in enumerate(true)], list(map(str, range(120)))
    )
    assert not is_chance_level(confusion.accuracy, 120, 240)
    (remark,) = remarks_on(confusion, OF_SCRATCH, 4.77)
    assert remark.startswith(
        "The accuracy of 3.8% is hardly better than guessing one of 120 classes (0.8%), and so is the loss of 4.77 (guessing: 4.79)"
    )
    assert "instead of --from-scratch" in remark
    (other,) = remarks_on(confusion, OF_SCRATCH, 4.5)
    assert "never recognized" in other


@pytest.mark.parametrize(
    ("accuracy", "classes", "loss", "near"),
    [
        (0.036, 120, 4.77, True),
        (0.036, 120, 4.4, False),  # the probabilities separate the classes already
        (0.158, 120, 6.71, False),  # it overfits, but has learned
        (0.52, 2, 0.69, True),
        (0.6, 2, 0.69, False),
        (0.036, 120, None, False),
        (0.036, 120, math.nan, False),
        (1.0, 1, 0.0, False),
    ],
)
def test_near_chance_by_hand(accuracy: float, classes: int, loss: float | None, near: bool) -> None:
    assert is_near_chance(accuracy, classes, loss) == near


def test_at_chance_level_only_that_is_stated() -> None:
    (remark,) = remarks_on(Confusion.from_labels([0, 1, 2, 3] * 5, [0] * 20, ["a", "b", "c", "d"]))
    assert remark.startswith("The accuracy of 25.0% is no better than guessing one of 4 classes (25.0%)")


@pytest.mark.parametrize(
    ("accuracy", "classes", "images", "start"),
    [
        (1.0, 2, 2, "2 held-out images cannot show whether the network is better than guessing one of 2 classes"),
        (1.0, 2, 1, "1 held-out image cannot show"),
        (2 / 3, 3, 3, "3 held-out images cannot show"),
        (0.0, 3, 6, "The accuracy of 0.0% is no better than guessing"),
    ],
)
def test_a_result_on_a_handful_of_images_is_not_called_chance_where_it_is_above_it(
    accuracy: float, classes: int, images: int, start: str
) -> None:
    (remark,) = remarks_on_accuracy(accuracy, classes, images)
    assert remark.startswith(start)


def test_chance_level_by_hand() -> None:
    # Two standard deviations above 1/4 for 48 images: 0.25 + 2 * sqrt(0.25 * 0.75 / 48) = 0.375.
    assert is_chance_level(0.37, 4, 48) and not is_chance_level(0.38, 4, 48)
    assert not is_chance_level(0.0, 1, 10) and not is_chance_level(0.0, 5, 0)


def test_the_interval_of_an_accuracy() -> None:
    low, high = accuracy_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert accuracy_interval(0, 5)[0] == 0.0 and accuracy_interval(5, 5)[1] == 1.0


def test_a_better_run_is_longer_or_shorter_or_none() -> None:
    config, good = FinetuneConfig(Path("photos"), Path("runs/run"), epochs=8), answers([0, 1] * 20, 0.2)
    longer = better_run(config, 8, log_of(FALLING, FALLING), good, 80, 8)
    assert longer is not None and longer.command == "caffetools finetune photos -o runs/run-16-epochs --epochs 16"
    shorter = better_run(config, 8, log_of(FALLING, OVERFITTING), good, 80, 8)
    assert shorter is not None and shorter.command == "caffetools finetune photos -o runs/run-3-epochs --epochs 3"
    flat = [2.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert better_run(config, 8, log_of(FALLING, flat), good, 80, 8) is None
    assert better_run(config, 8, log_of(FALLING, flat), answers([0, 0] * 20, 0.2), 80, 8) is not None
    assert better_run(config, 8, log_of(FALLING, flat), answers([0, 1, 0, 0] * 2000, 0.5), 80, 8) is None
    assert better_run(config, 8, log_of(FALLING, flat), answers([0, 1, 0, 0, *[0, 0] * 20] * 400, 0.69), 80, 8) is not None


@pytest.mark.parametrize(("normalization", "remarked"), [("VALID", True), ("NONE", False)])
def test_a_training_that_ends_hardly_above_chance_is_remarked_where_its_loss_is_a_mean(normalization: str, remarked: bool) -> None:
    net = Net(
        parse(
            f"""
        layer {{ name: "data" type: "Input" top: "scores" top: "label"
          input_param {{ shape {{ dim: 24 dim: 120 }} shape {{ dim: 24 }} }} }}
        layer {{ name: "accuracy" type: "Accuracy" bottom: "scores" bottom: "label" top: "accuracy" }}
        layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" top: "loss"
          loss_param {{ normalization: {normalization} }} }}""",
            NetParameter,
        )
    )
    history = History(test=[TestResult(0, 60, [Output("accuracy", 0.0375), Output("loss", 4.77, 1.0)])])
    remarks = remarks_on_training(history, net, 10, None)
    assert [remark.startswith("The accuracy of 3.8% is hardly better than guessing") for remark in remarks] == [True] * remarked


def answers(predicted: list[int], loss: float) -> Evaluation:
    """What better_run reads of an evaluation on images of two classes in turn."""
    confusion = Confusion.from_labels([0, 1] * (len(predicted) // 2), predicted, ["a", "b"])
    return cast(Evaluation, SimpleNamespace(confusion=confusion, loss=loss))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in it."""
    folder = tmp_path_factory.mktemp("run")
    draw_shapes(folder / "my pictures", each=12)
    (folder / "shapes.prototxt").write_text(TRAIN_VAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_well("finetune", "my pictures", "-o", "run", "--model", "shapes.prototxt", "--from-scratch", "--epochs", 3, "--device", "cpu")
    return folder


def test_loss_by_class_and_top_5_by_hand(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder)
    card = load_card(Path("run/data"))
    classifier = Classifier("run/net/deploy.prototxt", next(Path("run/net").glob("*.caffemodel")))
    evaluation = evaluate(classifier, card)
    assert evaluation.top_5 is None, "three classes"
    rows: dict[int, Array] = {}
    classifier.classify([path for path, _ in held_out(card)], observe=lambda index, row: rows.__setitem__(index, row))
    losses = [(label, -math.log(rows[index][label])) for index, (_, label) in enumerate(held_out(card))]
    assert evaluation.loss == pytest.approx(np.mean([loss for _, loss in losses]))
    for index, value in enumerate(evaluation.class_losses):
        assert value == pytest.approx(np.mean([loss for label, loss in losses if label == index]))


def test_few_images_of_a_class_are_remarked(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder)
    card: DatasetCard = load_card(Path("run/data"))
    (remark,) = remarks_on_data(replace(card, train_counts=(30, 9, 10)))
    assert remark.startswith(f"1 of 3 classes has fewer than 10 training images: {card.classes[1]} (9).")
    assert remarks_on_data(replace(card, train_counts=(10, 10, 10))) == []


@pytest.mark.parametrize(("few", "end"), [(5, "c4 (3). More"), (6, "c4 (3), c5 (3). More"), (7, "c4 (3) and 2 others. More")])
def test_many_classes_of_few_images_are_counted(few: int, end: str) -> None:
    card = SimpleNamespace(classes=[f"c{i}" for i in range(9)], train_counts=[3] * few + [50] * (9 - few))
    (remark,) = remarks_on_data(cast("DatasetCard", card))
    assert remark.startswith(f"{few} of 9 classes have fewer than 10 training images: c0 (3), c1 (3), c2 (3), c3 (3), ") and end in remark


@pytest.mark.parametrize(
    ("model", "title"), [("lenet", "LeNet"), ("squeezenet_v1.1", "SqueezeNet v1.1"), ("net/train_val.prototxt", "net/train_val.prototxt")]
)
def test_a_report_calls_a_model_of_the_zoo_by_its_name(model: str, title: str, tmp_path: Path) -> None:
    card = cast(DatasetCard, SimpleNamespace(classes=["a", "b"], train_count=10))
    named = title_and_summary(FinetuneConfig(Path("pictures"), tmp_path, model=model), card)
    assert named == (f"{title} on 2 classes", f"{title} was trained on 2 classes with 10 images.")
