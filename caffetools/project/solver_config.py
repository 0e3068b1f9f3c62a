"""A solver for fine-tuning: small steps from weights that are good already, a fast new classifier, and an end in sight."""

from __future__ import annotations

import math

from caffetools.errors import CaffeToolsError
from caffetools.proto.schema import SolverParameter
from caffetools.util.arguments import MOST_SEED

# What the fields of a SolverParameter hold.
_MOST_ITERATIONS = 2**31 - 1
# Where the number of pictures is unknown.
_ITERATIONS, _TEST_BATCHES, _TEST_INTERVAL = 10000, 100, 500


def solver_for(
    net: str,
    *,
    train_count: int | None = None,
    val_count: int | None = None,
    train_batch: int = 32,
    val_batch: int = 32,
    epochs: int = 20,
    like: SolverParameter | None = None,
    base_lr: float | None = None,
    snapshot_prefix: str = "snapshot",
    seed: int | None = None,
    tested: bool = True,
) -> SolverParameter:
    """Return a ``SolverParameter`` for fine-tuning the net file ``net`` by SGD with momentum, with a learning rate that is divided by ten in steps.

    The first two thirds run at the base rate. With the number of images known the length is ``epochs`` passes over them,
    with a test of all validation images after each; without, it is 10,000 iterations, with 100 test batches after every 500.

    Args:
        net: The train_val prototxt, as the solver is to name it.
        train_count: Number of images for training.
        val_count: Number of images for testing.
        train_batch: Images per batch in the TRAIN phase.
        val_batch: Images per batch in the TEST phase.
        epochs: Passes over the training images, where their number is known.
        like: The solver that the net was trained with: momentum and weight decay are kept, the base rate is a tenth of its own.
        base_lr: The base rate, where not a tenth of ``like``'s or 0.001.
        snapshot_prefix: The start of the snapshots' names.
        seed: The random seed; None: nondeterministic.
        tested: Whether the net has a TEST phase.

    Raises:
        CaffeToolsError: A number is out of its range.
    """
    per_epoch = math.ceil(train_count / train_batch) if train_count else _TEST_INTERVAL
    max_iter = per_epoch * epochs if train_count else _ITERATIONS
    if max_iter > _MOST_ITERATIONS:
        raise CaffeToolsError(f"{epochs} epochs are {max_iter} iterations, more than the {_MOST_ITERATIONS} that a solver counts to")
    if seed is not None and not 0 <= seed <= MOST_SEED:
        raise CaffeToolsError(f"the seed must be from 0 to {MOST_SEED}, not {seed}")
    if base_lr is not None and not 0 < base_lr < math.inf:
        raise CaffeToolsError(f"the learning rate must be above 0, not {base_lr:g}")
    if base_lr is None:
        base_lr = like.base_lr / 10 if like is not None and like.base_lr else 0.001
    solver = SolverParameter(
        net=net,
        base_lr=float(f"{base_lr:.6g}"),
        lr_policy="step",
        gamma=0.1,
        stepsize=max(1, math.ceil(max_iter * 2 / 3)),
        display=max(1, min(20, per_epoch)),
        max_iter=max_iter,
        momentum=like.momentum if like is not None and like.HasField("momentum") else 0.9,
        weight_decay=like.weight_decay if like is not None and like.HasField("weight_decay") else 0.0005,
        snapshot=max(1, per_epoch * max(1, epochs // 4) if train_count else _TEST_INTERVAL * 4),
        snapshot_prefix=snapshot_prefix,
    )
    if tested:
        solver.test_iter.append(math.ceil(val_count / val_batch) if val_count else _TEST_BATCHES)
        solver.test_interval = max(1, min(per_epoch, max_iter))
    if seed is not None:
        solver.random_seed = seed
    return solver
