"""``caffetools retarget``: a trained network's classifiers made anew for the user's own classes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caffetools.cli.show import console, print_json
from caffetools.cli.tables import print_table

if TYPE_CHECKING:
    from caffetools.surgery.comparison import Comparison
    from caffetools.surgery.retarget import Retargeted


def retarget(
    *,
    net: Annotated[Path | None, typer.Argument(help="The train_val prototxt of a trained net.", show_default=False)] = None,
    classes: Annotated[int, typer.Option(help="How many classes there are to be.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="A network of the zoo in the place of NET, such as squeezenet_v1.1.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write to.")] = Path("retargeted"),
    weights: Annotated[Path | None, typer.Option(help="The trained .caffemodel, to tell which layers take theirs from it.")] = None,
    train_source: Annotated[str | None, typer.Option(help="Database of the pictures to train on.")] = None,
    val_source: Annotated[str | None, typer.Option(help="Database of the pictures to test on.")] = None,
    mean: Annotated[str | None, typer.Option(help="Mean file (.binaryproto), or values as 104,117,123 (BGR).")] = None,
    train_batch: Annotated[int | None, typer.Option(min=1, help="Pictures a batch in training.")] = None,
    val_batch: Annotated[int | None, typer.Option(min=1, help="Pictures a batch in testing.")] = None,
    crop: Annotated[int | None, typer.Option(min=1, help="Cut a square of this side out of each picture, at random in training.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pictures, where --train-source is there to be counted.")] = 20,
    base_lr: Annotated[float | None, typer.Option(help="Learning rate to begin with; by default a tenth of the net's own.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed of the training; else each run is another one.")] = None,
    lr_mult: Annotated[float, typer.Option(min=0, help="How many times as fast as the rest the new classifiers learn.")] = 10.0,
    head: Annotated[list[str] | None, typer.Option(help="A classifier layer's name, where the graph does not show it; repeatable.")] = None,
    input_shape: Annotated[str | None, typer.Option(help="The deployed net's input, 1x3x227x227; by default as the data crops.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what changed as JSON.")] = False,
) -> None:
    """Make a net tell other classes: write its train_val, solver and deploy prototxts, and say what changed.

    The classifiers are found from what the losses read. They get new names, so that they start anew where the old weights are loaded,
    and learn faster than the rest. Everything else stays as it was.
    """
    from caffetools.surgery import project

    source, trained_by, shape = _source(net, model, input_shape)
    project.check_free(out, force=force)
    made = project.make_project(
        source,
        classes,
        out,
        trained_by=trained_by,
        head_lr_mult=lr_mult,
        heads=head or None,
        data=project.DataOptions(train_source, val_source, mean, train_batch, val_batch, crop),
        epochs=epochs,
        base_lr=base_lr,
        seed=seed,
        input_shape=shape,
    )
    comparison = project.compare(made, weights) if weights is not None else None
    files = project.write_project(made, out)
    if as_json:
        print_json(_as_json(made.retargeted, comparison, files))
        return
    changes = [(change.layer, change.what, change.before, change.after) for change in made.retargeted.changes]
    print_table(("Layer", "What", "Was", "Is"), changes)
    if comparison is not None:
        _show_weights(comparison)
    for path in files:
        console.print(f"Wrote {path}", markup=False)
    start = f" --weights {weights}" if weights else ""
    console.print(f"Next: caffetools train {out / 'solver.prototxt'}{start}", markup=False)


def _source(net: Path | None, model: str | None, input_shape: str | None) -> tuple[Path, Path | None, Any]:
    """The net's file, the solver that it was trained with, and the shape of the deployed input, as far as they are known."""
    from caffetools.errors import CaffeToolsError
    from caffetools.proto.text import read_net
    from caffetools.surgery.inputs import parse_shapes
    from caffetools.surgery.summary import summarize
    from caffetools.zoo.networks import prototxt_path

    if (net is None) == (model is None):
        raise CaffeToolsError("give either the prototxt of a NET, or the name of one of the zoo's networks by --model")
    shape = parse_shapes([input_shape] if input_shape else []).get("")
    if net is not None:
        return net, None, shape
    name = str(model)
    if shape is None:
        # LeNet's train_val does not say how large its pictures are; its deploy net does.
        made = summarize(read_net(prototxt_path(name, "deploy"))).layers[0].shapes[0]
        shape = made[1:] if made else None
    return prototxt_path(name), prototxt_path(name, "solver"), shape


def _show_weights(comparison: Comparison) -> None:
    loaded, fresh = comparison.named("fits") + comparison.named("unchecked"), comparison.named("fresh")
    console.print(f"{len(loaded)} layers take their weights from the file; {len(fresh)} start anew: {', '.join(fresh)}", markup=False)
    if comparison.unused:
        console.print(f"The file also has {', '.join(comparison.unused)}, which the net has no more.", markup=False)


def _as_json(retargeted: Retargeted, comparison: Comparison | None, files: list[Path]) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "renamed": retargeted.renamed,
        "changes": [asdict(change) for change in retargeted.changes],
        "files": [str(path) for path in files],
    }
    if comparison is not None:
        loaded = comparison.named("fits") + comparison.named("unchecked")
        answer["weights"] = {"loaded": loaded, "fresh": comparison.named("fresh"), "unused": comparison.unused}
    return answer
