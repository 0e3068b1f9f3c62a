"""``caffetools trainable``: from the net that is used back to one that can be trained."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.models import complete_model, model_preprocessing, net_file
from caffetools.cli.numbers import TrainingSeed
from caffetools.cli.options import ADD_WEIGHTS, Dialect, Force, Plugin, Scale, Stage, not_standard_output
from caffetools.cli.show import console, note, print_json, print_next, print_table

_Deploy = Annotated[
    Path,
    typer.Argument(
        metavar="DEPLOY",
        help="The deploy prototxt; or a network of the zoo.",
        show_default=False,
        autocompletion=complete_model,
    ),
]


def trainable(
    deploy: _Deploy,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", callback=not_standard_output, help="The folder to write train_val.prototxt and solver.prototxt to."),
    ] = Path("trainable"),
    dataset: Annotated[
        Path | None, typer.Option(help="Folder made by `caffetools dataset build`: sets sources, mean and batch sizes.")
    ] = None,
    train_source: Annotated[str, typer.Option(help="Database of the training pictures.")] = "train_lmdb",
    val_source: Annotated[str, typer.Option(help="Database of the validation pictures.")] = "val_lmdb",
    mean: Annotated[str | None, typer.Option(help="Mean file (.binaryproto), or values as 104,117,123 (BGR).")] = None,
    scale: Scale = None,
    epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the training pictures; needs --dataset or an existing --train-source.")
    ] = 20,
    base_lr: Annotated[float | None, typer.Option(help="Base learning rate; by default 0.001.")] = None,
    seed: TrainingSeed = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what changed as JSON.")] = False,
    stage: Stage = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="Shape NAME=1x3x227x227 of a blob that no layer of the net produces. May be repeated.")
    ] = None,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Make a deploy net trainable again: write its train_val and solver prototxts, and list which layers replace which.

    Its Input becomes Data layers, its prob a loss and accuracies. For other classes, `caffetools retarget` what was written.
    """
    from caffetools.data.datasets.card import load_card
    from caffetools.graph.inputs import parse_shapes
    from caffetools.project.data_config import DataOptions
    from caffetools.project.next_step import get_model, has_published_weights
    from caffetools.project.trainable import make_trainable, write_trainable

    given, deploy = deploy, net_file(deploy, "deploy")
    weights = str(given) if get_model(given) and has_published_weights(str(given)) else ""
    card = load_card(dataset) if dataset is not None else None
    data = DataOptions(None if card else train_source, None if card else val_source, mean)
    made = make_trainable(
        deploy,
        out,
        data=data,
        dataset=card,
        scale=scale,
        epochs=epochs,
        base_lr=base_lr,
        seed=seed,
        stages=stage,
        input_shape=parse_shapes(input_shape or []),
        known=model_preprocessing(given),
    )
    files = write_trainable(made, out, force=force)
    if as_json:
        print_json({"changes": [asdict(change) for change in made.changes], "notes": made.notes, "files": [str(path) for path in files]})
        return
    print_table(("Layer", "What", "Was", "Is"), [(c.layer, c.what, c.before, c.after) for c in made.changes])
    for text in made.notes:
        note(f"{files[0]}: {text}")
    for path in files:
        console.print(f"Wrote {path}", markup=False)
    _print_next(given, files[1], weights)


def _print_next(net: Path, solver: Path, weights: str) -> None:
    """Print the command that trains: with ``weights``, else with those that are next to the net."""
    from caffetools.project.config import command
    from caffetools.project.next_step import find_weights

    weights = weights or str(find_weights(net) or "")
    if not weights:
        console.print(f"No weights are next to the net: {ADD_WEIGHTS}", markup=False)
    print_next(command("train", solver, *(["--weights", weights] if weights else [])))
