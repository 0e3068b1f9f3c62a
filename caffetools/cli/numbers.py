"""Numbers of the command line: what every option refuses, and the options that several commands have."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from caffetools.util.arguments import MOST_SEED

_INT64, _FLOAT32 = 2**63, 3.4028234663852886e38
# Numbers of Caffe's flags and prototxts.
INT32 = 2**31 - 1

TrainingSeed = Annotated[
    int | None, typer.Option("--seed", min=0, max=MOST_SEED, help="Random seed of the training; by default a different one in each run.")
]
# Of pixels from 0 to 255: beyond any net's range of values, within which sums of float32 stay finite.
MOST_SCALE = 1e6
# More than any machine runs.
MOST_PROCESSES = 1024


def check_numbers(context: typer.Context) -> None:
    """Refuse what no option can mean: floats that are NaN, infinite or beyond float32, and integers beyond 64 bits.

    Args:
        context: A command's context, after its arguments were parsed.

    Raises:
        typer.BadParameter: Names the option.
    """
    parameters: list[Any] = list(context.command.params)
    for parameter in parameters:
        values = context.params.get(parameter.name)
        for value in values if isinstance(values, list | tuple) else (values,):
            if problem := _problem(value):
                raise typer.BadParameter(problem, ctx=context, param=parameter)


def _problem(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"it must be a finite number, not {value}"
    if isinstance(value, float) and abs(value) > _FLOAT32:
        return f"{value:g} is beyond the range of float32"
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        return f"{value} is beyond 64 bits"
    return ""


def scale_factor(value: float | None) -> float | None:
    """Return a factor for pixels, for ``callback=``. Raises ``typer.BadParameter`` for 0, what is not finite, and more than 10^6."""
    if value is not None and (value == 0 or not math.isfinite(value)):
        raise typer.BadParameter(f"the scale must be a finite number other than 0, such as 0.00390625, not {value}")
    if value is not None and abs(value) > MOST_SCALE:
        raise typer.BadParameter(f"the scale must be at most {MOST_SCALE:g}, not {value:g}; pixels are from 0 to 255")
    return value
