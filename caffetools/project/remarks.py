"""Remarks on data and results, in sentences: chance level, overfitting, classes with few images, a solver that does not fit its start."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffetools.data.datasets.card import DatasetCard
from caffetools.layers.accuracy import Accuracy
from caffetools.layers.registry import traits
from caffetools.net.net import Net
from caffetools.net.phases import layer_included, make_state
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.results import Confusion
from caffetools.solver.callbacks import History
from caffetools.solver.logs.training_log import LogRow, TrainingLog

# Fewer training images of a class seldom suffice, even for fine-tuning.
FEW_IMAGES = 10
# A test loss that ends this much above its minimum, while the training loss falls, is overfitting.
_RISE = 1.25
_LEAST_TESTS = 4


def remarks_on(confusion: Confusion) -> list[str]:
    """Return remarks on a result at chance level, or with classes of too few images.

    Args:
        confusion: The result on held-out images.
    """
    remarks = remarks_on_accuracy(confusion.accuracy, len(confusion.names), confusion.total)
    few = [score.name for score in confusion.scores() if score.pictures == 0]
    if few:
        remarks.append(f"{len(few)} class(es) have no held-out image, so nothing is known about them: {', '.join(few[:5])}.")
    return remarks


def remarks_on_accuracy(accuracy: float, classes: int, images: int) -> list[str]:
    """Return a remark on an accuracy that guessing would reach too.

    Args:
        accuracy: From 0 to 1.
        classes: Number of classes.
        images: Number of images it was measured on.
    """
    chance = 1 / max(classes, 1)
    # Two standard deviations above chance.
    noise = 2 * (chance * (1 - chance) / images) ** 0.5 if images else 0.0
    if classes < 2 or not images or accuracy > chance + noise:
        return []
    return [
        f"The accuracy of {accuracy:.1%} is no better than guessing one of {classes} classes ({chance:.1%}): the network has not learned to "
        "separate them. Try more --epochs, published weights instead of --from-scratch, or another --base-lr."
    ]


def remarks_on_data(card: DatasetCard) -> list[str]:
    """Return a remark on the classes with very few training images.

    Args:
        card: The dataset.
    """
    few = [(name, count) for name, count in zip(card.classes, card.train_counts, strict=True) if count < FEW_IMAGES]
    if not few:
        return []
    named = ", ".join(f"{name} ({count})" for name, count in few[:5]) + (", …" if len(few) > 5 else "")
    return [
        f"{len(few)} of {len(card.classes)} classes have fewer than {FEW_IMAGES} training images: {named}. More images help most there."
    ]


def remarks_on_log(log: TrainingLog) -> list[str]:
    """Return a remark on a training whose test loss rose while its training loss fell.

    Args:
        log: The training's log.
    """
    tests = [(row.iteration, value) for row in log.test if row.net == 0 and (value := _loss(row)) is not None]
    if len(tests) < _LEAST_TESTS:
        return []
    best, lowest = min(tests, key=lambda test: test[1])
    train = [(row.iteration, value) for row in log.train if (value := _loss(row)) is not None]
    before = [value for iteration, value in train if iteration <= best][-_LEAST_TESTS:]
    after = [value for _, value in train][-_LEAST_TESTS:]
    last = tests[-1][1]
    if last <= lowest * _RISE or not before or _mean(after) >= _mean(before):
        return []
    return [
        f"The network overfits: its loss on held-out images was lowest at iteration {best} ({lowest:.3g}) and is {last:.3g} at the end, while "
        f"its training loss fell from {_mean(before):.3g} to {_mean(after):.3g}. More images help, and fewer --epochs, more --dropout, or "
        "--freeze of the first layers."
    ]


def is_set_up_for_finetuning(net: NetParameter) -> bool:
    """Return whether some layers, the classifiers, learn several times as fast as most others.

    Such a net, trained from random weights with the low base learning rate of its solver, learns little.

    Args:
        net: A ``NetParameter`` in today's form.
    """
    state = make_state(TRAIN)
    filled = [layer for layer in net.layer if layer_included(layer, state) and (layer.param or traits(layer).weight_filler)]
    rates = sorted(max((spec.lr_mult for spec in layer.param), default=1.0) for layer in filled)
    return len(rates) > 1 and rates[-1] >= 5 * rates[len(rates) // 2]


def remarks_on_training(history: History, net: Net | None, batches: int, log: TrainingLog | None) -> list[str]:
    """Return remarks on a training: its last test at chance level, and overfitting.

    Args:
        history: What was tested.
        net: The first test net; None without one.
        batches: Batches of a test of it.
        log: The training's log, if there is one.
    """
    remarks: list[str] = []
    tests = [test for test in history.test if test.net == 0]
    layers = net.layers if net is not None and tests else []
    accuracy = next((layer for layer in layers if isinstance(layer, Accuracy) and layer.param.accuracy_param.top_k == 1), None)
    if net is not None and accuracy is not None:
        scores = net.blob_shapes[accuracy.bottoms[0]]
        value = next((output.value for output in tests[-1].outputs if output.name == accuracy.tops[0]), None)
        if value is not None and len(scores) > 1:
            remarks += remarks_on_accuracy(value, scores[1], scores[0] * batches)
    return remarks + (remarks_on_log(log) if log is not None else [])


def _loss(row: LogRow) -> float | None:
    found = [value for name, value in row.outputs.items() if "loss" in name.lower()]
    value = found[0] if len(found) == 1 else row.loss
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
