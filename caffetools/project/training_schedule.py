"""Training settings for a dataset of a given size: what an experienced user of Caffe would start with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from caffetools.errors import CaffeToolsError
from caffetools.project.data_config import whole_batch


@dataclass(frozen=True)
class ModelDefaults:
    """What suits a network on a small dataset.

    Attributes:
        batch: Images per batch.
        finetune_lr: Base learning rate from trained weights.
        scratch_lr: Base learning rate from random weights; None for the rate of the network's own solver.
    """

    batch: int = 32
    finetune_lr: float = 0.001
    scratch_lr: float | None = None


# SqueezeNet's own rate (0.04 with batches of 512) diverges with small batches.
MODEL_DEFAULTS = {
    "lenet": ModelDefaults(batch=64, finetune_lr=0.01),
    "squeezenet_v1.0": ModelDefaults(scratch_lr=0.005),
    "squeezenet_v1.1": ModelDefaults(scratch_lr=0.005),
}
# From random weights, for a network without a solver of its own.
SCRATCH_LR = 0.01

# Fewer leave a network half-trained, however small the dataset: from trained weights (True), and from random ones (False).
LEAST_UPDATES = {True: 300, False: 1000}
LEAST_EPOCHS = {True: 8, False: 30}
TEST_BATCH = 50


@dataclass(frozen=True)
class TrainingSchedule:
    """Settings chosen for one training run.

    Attributes:
        batch: Images per training batch.
        val_batch: Images per test batch.
        epoch: Iterations of one pass over the training images.
        epochs: Passes over the training images.
        base_lr: Base learning rate.
    """

    batch: int
    val_batch: int
    epoch: int
    epochs: int
    base_lr: float

    @property
    def updates(self) -> int:
        """Number of updates in the whole run."""
        return self.epoch * self.epochs

    def describe(self) -> str:
        """Return the settings in a sentence."""
        return f"{self.updates} updates of {self.batch} images, learning rate {self.base_lr:g}."


def plan_training(
    model: str,
    train_pictures: int,
    val_pictures: int,
    *,
    fine_tuning: bool,
    epochs: int | None = None,
    batch: int | None = None,
    base_lr: float | None = None,
    own_lr: float | None = None,
) -> TrainingSchedule:
    """Choose settings for ``model`` on a dataset of the given size.

    Args:
        model: Name of the network.
        train_pictures: Number of training images.
        val_pictures: Number of validation images.
        fine_tuning: Whether training starts from trained weights.
        epochs: By default enough for some hundred updates when fine-tuning, a thousand from scratch.
        batch: By default the network's usual, or less if that would leave fewer than four updates per epoch.
        base_lr: By default the network's usual.
        own_lr: Base learning rate of the solver that the network was published with, for training from scratch.

    Raises:
        CaffeToolsError: There are no images, a number is below its minimum, or a batch is larger than the dataset.
    """
    if train_pictures < 1 or val_pictures < 1:
        raise CaffeToolsError(
            f"{train_pictures} training and {val_pictures} held-out pictures: at least one of each is needed",
            hint="a class needs two pictures or more, one of them to be held out",
        )
    for name, value in (("epochs", epochs), ("batch", batch)):
        if value is not None and value < 1:
            raise CaffeToolsError(f"--{name} must be at least 1, not {value}")
    if batch is not None and batch > train_pictures:
        raise CaffeToolsError(f"--batch {batch} is more than the {train_pictures} training pictures")
    if base_lr is not None and not 0 < base_lr < math.inf:
        raise CaffeToolsError(f"--base-lr must be a positive number, not {base_lr:g}")
    defaults = MODEL_DEFAULTS.get(model, ModelDefaults())
    batch = batch or max(1, min(defaults.batch, train_pictures // 4))
    epoch = math.ceil(train_pictures / batch)
    epochs = epochs or max(LEAST_EPOCHS[fine_tuning], math.ceil(LEAST_UPDATES[fine_tuning] / epoch))
    # A test then scores every image once, unless only tiny batches divide their number.
    most = min(TEST_BATCH, val_pictures)
    val_batch = whole_batch(val_pictures, most, math.ceil(most / 4))
    usual = defaults.finetune_lr if fine_tuning else defaults.scratch_lr or own_lr or SCRATCH_LR
    return TrainingSchedule(batch, val_batch, epoch, epochs, base_lr or usual)
