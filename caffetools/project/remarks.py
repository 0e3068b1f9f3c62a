"""Remarks on data and results, in sentences: chance level, overfitting, a training that ended early, classes with few images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from caffetools.data.datasets.card import DatasetCard
from caffetools.layers.accuracy import Accuracy
from caffetools.layers.base import Layer
from caffetools.layers.registry import traits
from caffetools.layers.softmax import SoftmaxWithLoss
from caffetools.net.net import Net
from caffetools.net.phases import layer_included, make_state
from caffetools.proto.schema import TRAIN, NetParameter
from caffetools.results import Confusion, share_text
from caffetools.solver.callbacks import History
from caffetools.solver.logs.training_log import LogRow, TrainingLog

# Fewer training images of a class seldom suffice, even for fine-tuning.
FEW_IMAGES = 10
# A test loss that ends this much above its minimum, while the training loss falls, is overfitting.
_RISE = 1.25
_LEAST_TESTS = 4
# A test loss that fell by this share in the last quarter of a training, to a value that is not near 0, would fall further.
_FALL = 0.05
_LOW_LOSS = 0.05
# A network that is better than guessing by less than this share of what a perfect one is better, has learned next to nothing.
_LITTLE = 0.05


@dataclass(frozen=True)
class Advice:
    """What to change after a result that is not good, in the words of the command that trained.

    Attributes:
        chance: Where the accuracy is no better than guessing.
        overfits: Where the network overfits.
        early: Where the training ended too early.
    """

    chance: str
    overfits: str
    early: str


OF_FINETUNE = Advice(
    chance="Try more --epochs, another --base-lr, or another network (--model).",
    overfits="More images help, and fewer --epochs, or retarget with --dropout or --freeze and train.",
    early="More --epochs give a better network.",
)
OF_SCRATCH = replace(OF_FINETUNE, chance="Try more --epochs, published weights instead of --from-scratch, or another --base-lr.")
OF_TRAIN = Advice(
    chance="Try a larger max_iter, published weights (--weights), or another base_lr in the solver.",
    overfits="More images help, and a smaller max_iter, more Dropout, or a net retargeted with --freeze for the first layers.",
    early="A larger max_iter, and a larger stepsize with it, gives a better network.",
)


@dataclass(frozen=True)
class LossTrend:
    """The course of the loss on held-out images over a training.

    Attributes:
        iteration: Of the lowest test loss.
        lowest: That loss.
        last: The loss of the last test.
        earlier: The loss of the last test in the first three quarters of the training.
        train: Mean training loss before ``iteration``, and at the end; None without logged training losses.
    """

    iteration: int
    lowest: float
    last: float
    earlier: float
    train: tuple[float, float] | None

    @property
    def overfits(self) -> bool:
        """Whether the test loss rose, to a value that is not near 0, while the training loss fell."""
        rose = self.last > max(self.lowest * _RISE, _LOW_LOSS)
        return self.train is not None and rose and self.train[1] < self.train[0]

    @property
    def improving(self) -> bool:
        """Whether the test loss was still falling at the end."""
        return self.last == self.lowest and _LOW_LOSS < self.last < self.earlier * (1 - _FALL)


def remarks_on_run(
    confusion: Confusion, log: TrainingLog, card: DatasetCard, *, from_scratch: bool, loss: float | None = None
) -> list[str]:
    """Return all remarks on a run of ``finetune``.

    Args:
        confusion: The result on held-out images.
        log: The training's log.
        card: The dataset.
        from_scratch: Whether it was trained from random weights.
        loss: Mean cross-entropy of the held-out images, if it is known.
    """
    advice = OF_SCRATCH if from_scratch else OF_FINETUNE
    return [*remarks_on(confusion, advice, loss), *remarks_on_log(log, advice), *remarks_on_data(card)]


def remarks_on(confusion: Confusion, advice: Advice = OF_FINETUNE, loss: float | None = None) -> list[str]:
    """Return remarks on a result near chance level, on one class for all images, and on classes of too few images.

    Args:
        confusion: The result on held-out images.
        advice: What to change.
        loss: Mean cross-entropy of the images, if it is known.
    """
    remarks = remarks_on_accuracy(confusion.accuracy, len(confusion.names), confusion.total, advice, loss)
    scores = confusion.scores()
    if (
        not remarks
        and (only := next((score for score in scores if score.claimed == confusion.total), None))
        and only.right < confusion.total
    ):
        remarks.append(
            f"The network answers {only.name} for every held-out image; the accuracy of {share_text(confusion.accuracy)} is the share of that class."
        )
    unmeasured = [score.name for score in scores if score.pictures == 0]
    if unmeasured:
        remarks.append(f"{_classes(unmeasured, 'has', 'have')} no held-out image, so nothing is known about {_pronoun(unmeasured)}.")
    missed = [score.name for score in scores if score.pictures and not score.right]
    # Near chance level that holds for most classes and adds nothing.
    if missed and not has_learned_nothing(confusion.accuracy, len(confusion.names), confusion.total, loss):
        remarks.append(f"{_classes(missed, 'is', 'are')} never recognized on the held-out images.")
    return remarks


def _classes(names: Sequence[str], one: str, several: str) -> str:
    if len(names) == 1:
        return f"The class {names[0]} {one}"
    return f"{len(names)} classes ({', '.join(names[:5])}{', …' if len(names) > 5 else ''}) {several}"


def _pronoun(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"


def is_chance_level(accuracy: float, classes: int, images: int) -> bool:
    """Return whether guessing would reach an accuracy, too: at most two standard deviations above 1 / ``classes``.

    Args:
        accuracy: From 0 to 1.
        classes: Number of classes.
        images: Number of images it was measured on; without any, or with fewer than two classes, nothing is decided (False).
    """
    if classes < 2 or not images:
        return False
    chance = 1 / classes
    return accuracy <= chance + 2 * math.sqrt(chance * (1 - chance) / images)


def is_near_chance(accuracy: float, classes: int, loss: float | None) -> bool:
    """Return whether a network is hardly better than guessing, though more than luck: in accuracy and in cross-entropy.

    Guessing gives 1 / ``classes`` and log(``classes``), a perfect network 1 and 0; near is within 5 % of that distance. A network
    that overfits may have a loss above log(``classes``), but not such an accuracy.

    Args:
        accuracy: From 0 to 1.
        classes: Number of classes.
        loss: Mean cross-entropy; None where it is not known, and nothing is decided (False).
    """
    if classes < 2 or loss is None:
        return False
    return accuracy < 1 / classes + _LITTLE * (1 - 1 / classes) and loss > (1 - _LITTLE) * math.log(classes)


def has_learned_nothing(accuracy: float, classes: int, images: int, loss: float | None) -> bool:
    """Return whether a result is at chance level or near it.

    Args:
        accuracy: From 0 to 1.
        classes: Number of classes.
        images: Number of images it was measured on.
        loss: Mean cross-entropy, if it is known.
    """
    return is_chance_level(accuracy, classes, images) or is_near_chance(accuracy, classes, loss)


def accuracy_interval(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson 1927), within 0 and 1.

    Args:
        right: Images predicted correctly.
        total: Images, at least 1.
    """
    z = 1.96
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def remarks_on_accuracy(accuracy: float, classes: int, images: int, advice: Advice = OF_FINETUNE, loss: float | None = None) -> list[str]:
    """Return a remark on an accuracy that guessing would reach too, or nearly.

    Args:
        accuracy: From 0 to 1.
        classes: Number of classes.
        images: Number of images it was measured on.
        advice: What to change.
        loss: Mean cross-entropy of these images, if it is known.
    """
    if not is_chance_level(accuracy, classes, images):
        if loss is None or not is_near_chance(accuracy, classes, loss):
            return []
        return [
            f"The accuracy of {accuracy:.1%} is hardly better than guessing one of {classes} classes ({1 / classes:.1%}), and so is the loss "
            f"of {loss:.3g} (guessing: {math.log(classes):.3g}): the network has learned next to nothing. {advice.chance}"
        ]
    if is_chance_level(1.0, classes, images) or (accuracy > 1 / classes and images < FEW_IMAGES):
        counted = "1 held-out image" if images == 1 else f"{images} held-out images"
        return [f"{counted} cannot show whether the network is better than guessing one of {classes} classes; hold out more."]
    return [
        f"The accuracy of {accuracy:.1%} is no better than guessing one of {classes} classes ({1 / classes:.1%}): the network has not learned to "
        f"separate them. {advice.chance}"
    ]


def remarks_on_data(card: DatasetCard) -> list[str]:
    """Return a remark on the classes with very few training images.

    Args:
        card: The dataset.
    """
    few = [(name, count) for name, count in zip(card.classes, card.train_counts, strict=True) if count < FEW_IMAGES]
    if not few:
        return []
    shown = few if len(few) <= 6 else few[:5]  # "and 1 others" is never said
    named = ", ".join(f"{name} ({count})" for name, count in shown) + (f" and {len(few) - 5} others" if len(few) > 6 else "")
    have = "has" if len(few) == 1 else "have"
    return [
        f"{len(few)} of {len(card.classes)} classes {have} fewer than {FEW_IMAGES} training images: {named}. More images help most there."
    ]


def remarks_on_log(log: TrainingLog, advice: Advice = OF_FINETUNE) -> list[str]:
    """Return a remark on a training that overfits, or that ended while its test loss was still falling.

    Args:
        log: The training's log.
        advice: What to change.
    """
    trend = loss_trend(log)
    if trend is None:
        return []
    if trend.overfits and trend.train is not None:
        return [
            f"The network overfits: its loss on held-out images was lowest at iteration {trend.iteration} ({trend.lowest:.3g}) and is "
            f"{trend.last:.3g} at the end, while its training loss fell from {trend.train[0]:.3g} to {trend.train[1]:.3g}. "
            f"{advice.overfits}"
        ]
    if trend.improving:
        return [
            f"The training ended early: the loss on held-out images was still falling, from {trend.earlier:.3g} to {trend.last:.3g} in the last "
            f"quarter. {advice.early}"
        ]
    return []


def loss_trend(log: TrainingLog) -> LossTrend | None:
    """Return the course of the test loss; None for fewer than four tests with a finite loss.

    Args:
        log: The training's log.
    """
    tests = [(row.iteration, value) for row in log.test if row.net == 0 and (value := _loss(row)) is not None]
    if len(tests) < _LEAST_TESTS:
        return None
    best, lowest = min(tests, key=lambda test: test[1])
    train = [(row.iteration, value) for row in log.train if (value := _loss(row)) is not None]
    before = [value for iteration, value in train if iteration <= best][-_LEAST_TESTS:]
    after = [value for _, value in train][-_LEAST_TESTS:]
    end = tests[-1][0]
    earlier = [value for iteration, value in tests if iteration <= 0.75 * end][-1:] or [tests[0][1]]
    return LossTrend(best, lowest, tests[-1][1], earlier[0], (_mean(before), _mean(after)) if before else None)


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
    """Return remarks on a training: its last test near chance level, and overfitting.

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
        outputs = {output.name: output.value for output in tests[-1].outputs}
        value = outputs.get(accuracy.tops[0])
        loss = next((outputs.get(layer.tops[0]) for layer in layers if _is_cross_entropy(layer, accuracy.bottoms[0])), None)
        if value is not None and len(scores) > 1:
            remarks += remarks_on_accuracy(value, scores[1], scores[0] * batches, OF_TRAIN, loss)
    return remarks + (remarks_on_log(log, OF_TRAIN) if log is not None else [])


def _is_cross_entropy(layer: Layer, scores: str) -> bool:
    """Return whether a layer's top is the mean cross-entropy of the blob ``scores``."""
    return isinstance(layer, SoftmaxWithLoss) and layer.bottoms[0] == scores and layer.normalization != "NONE"


def _loss(row: LogRow) -> float | None:
    found = [value for name, value in row.outputs.items() if "loss" in name.lower()]
    value = found[0] if len(found) == 1 else row.loss
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
