"""Training settings for a data set of a given size: what an experienced user of Caffe would start with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from caffetools.errors import CaffeToolsError
from caffetools.project.dataset_config import whole_batch


@dataclass(frozen=True)
class Recipe:
    """What suits a network: pictures a batch, and learning rates for fine-tuning and from scratch."""

    batch: int = 32
    finetune_lr: float = 0.001
    scratch_lr: float = 0.01


# From the papers and published solvers; the learning rates for small data sets are lower than ImageNet's.
RECIPES = {
    "lenet": Recipe(batch=64, finetune_lr=0.01),
    "squeezenet_v1.0": Recipe(scratch_lr=0.005),
    "squeezenet_v1.1": Recipe(scratch_lr=0.005),
}

# Fewer than these leave a network half-trained, however small the data set: fine-tuning, and from scratch.
LEAST_UPDATES = {True: 300, False: 1000}
LEAST_EPOCHS = {True: 8, False: 30}
TEST_BATCH = 50


@dataclass(frozen=True)
class Plan:
    """Settings chosen for one training run.

    Attributes:
        batch, val_batch: Pictures a batch. epochs: Passes over the training pictures, of ``epoch`` iterations each.
        base_lr: The learning rate to begin with.
    """

    batch: int
    val_batch: int
    epoch: int
    epochs: int
    base_lr: float

    @property
    def updates(self) -> int:
        """Updates in the whole run."""
        return self.epoch * self.epochs


def plan_training(
    model: str, train_pictures: int, val_pictures: int, *, fine_tuning: bool, epochs: int | None = None, batch: int | None = None
) -> Plan:
    """Choose settings for ``model`` on a data set of the given size.

    Args:
        epochs: By default enough for some hundred updates when fine-tuning, a thousand from scratch.
        batch: By default the network's usual, or less where that would leave fewer than four updates an epoch.

    Raises:
        CaffeToolsError: there are no pictures, epochs or batch are below 1, or a batch is more than all pictures.
    """
    if train_pictures < 1 or val_pictures < 1:
        raise CaffeToolsError(f"{train_pictures} training and {val_pictures} held-out pictures: at least one of each is needed")
    for name, value in (("epochs", epochs), ("batch", batch)):
        if value is not None and value < 1:
            raise CaffeToolsError(f"--{name} must be at least 1, not {value}")
    if batch is not None and batch > train_pictures:
        raise CaffeToolsError(f"--batch {batch} is more than the {train_pictures} training pictures")
    # Each test then sees each picture once, unless only tiny batches would do that.
    most = min(TEST_BATCH, val_pictures)
    recipe = RECIPES.get(model, Recipe())
    batch = batch or max(1, min(recipe.batch, train_pictures // 4))
    epoch = math.ceil(train_pictures / batch)
    epochs = epochs or max(LEAST_EPOCHS[fine_tuning], math.ceil(LEAST_UPDATES[fine_tuning] / epoch))
    return Plan(
        batch, whole_batch(val_pictures, most, math.ceil(most / 4)), epoch, epochs, recipe.finetune_lr if fine_tuning else recipe.scratch_lr
    )
