"""``caffetools deploy``: from the net that was trained to the net that is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caffetools.cli.options import Dialect, Plugin, Stage
from caffetools.cli.show import console, note, print_json

if TYPE_CHECKING:
    from caffetools.surgery.folding import Folded
    from caffetools.surgery.inspection.summary import Summary


def deploy(
    train_val: Annotated[Path, typer.Argument(metavar="TRAIN_VAL", help="The prototxt of the net for training.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The deploy prototxt to write.", show_default=False)],
    input_shape: Annotated[
        list[str] | None,
        typer.Option(
            help="The input's shape, 1x3x227x227, or NAME=SHAPE for a certain blob; repeatable; by default as the data layer crops."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="How many pictures the net takes at once.")] = 1,
    heads: Annotated[
        list[str] | None, typer.Option(help="Of several losses the ones to keep, by name, or all; by default the one that counts most.")
    ] = None,
    drop_dropout: Annotated[bool, typer.Option("--drop-dropout", help="Take Dropout layers out; they do nothing in use.")] = False,
    fold_bn: Annotated[
        bool, typer.Option("--fold-bn", help="Fold BatchNorm and Scale into the layers before them, in --weights too; checked.")
    ] = False,
    weights: Annotated[Path | None, typer.Option(help="The .caffemodel to fold; written beside OUT as .caffemodel.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the net's inputs and outputs as JSON.")] = False,
    stage: Stage = None,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Write the deploy net of TRAIN_VAL: an Input for its data, prob for its loss, nothing that only training needs.

    Layers keep their names, so the same weights load. Of several losses the one that counts most is kept.
    """
    from caffetools.errors import CaffeToolsError
    from caffetools.net.net import located
    from caffetools.net.state import with_stages
    from caffetools.proto.binary import write_caffemodel
    from caffetools.proto.text import read_net, write_prototxt
    from caffetools.proto.upgrade import upgrade_net
    from caffetools.surgery.deploy import deploy_from, left_out
    from caffetools.surgery.inputs import parse_shapes
    from caffetools.surgery.inspection.summary import summarize

    if fold_bn != (weights is not None):
        raise CaffeToolsError("--fold-bn and --weights go together: the weights are folded too")
    written = [out, *([out.with_suffix(".caffemodel")] if fold_bn else [])]
    for path in written:
        if path.exists() and not force:
            raise CaffeToolsError(f"{path} exists; give another name, or --force to replace it")
    shapes = parse_shapes(input_shape or [])
    param = read_net(train_val)
    with located(train_val):
        param = with_stages(upgrade_net(param), stage) if stage else param
        net = deploy_from(param, batch=batch, input_shape=shapes, heads=heads or None, drop_dropout=drop_dropout)
        folded = _folded(net, weights) if weights is not None else None
        net = folded.net if folded is not None else net
        summary = summarize(net)
    if folded is not None:
        write_caffemodel(written[1], folded.weights)
    write_prototxt(out, net, comment=f"Deploy net, written by caffetools deploy from {train_val.name}.")
    if others := left_out(param, heads or None):
        note(f"{out}: left out what the losses {', '.join(others)} read alone (--heads to choose)")
    for row in summary.unknown_types:
        note(f"{out}: layer '{row.name}': {row.note}; it stays as it is")
    _show(written, net, summary, folded, as_json=as_json)


def _show(written: list[Path], net: Any, summary: Summary, folded: Folded | None, *, as_json: bool) -> None:
    read = {bottom for layer in net.layer for bottom in layer.bottom}
    blobs = {top: made for row in summary.layers for top, made in zip(row.tops, row.shapes, strict=True)}
    inputs = {top: blobs[top] for layer in net.layer if layer.type == "Input" for top in layer.top}
    outputs = {top: shape for top, shape in blobs.items() if top not in read}
    if as_json:
        answer = {"deploy": str(written[0]), "layers": len(net.layer), "inputs": inputs, "outputs": outputs}
        more = {"weights": str(written[1]), "folded": folded.layers, "difference": folded.difference} if folded is not None else {}
        print_json(answer | more)
        return
    for name, some in (("input", inputs), ("output", outputs)):
        for blob, size in some.items():
            console.print(f"{name} {blob}: {'?' if size is None else ' x '.join(map(str, size))}", markup=False)
    console.print(f"Wrote {written[0]}: {len(net.layer)} layers.", markup=False)
    if folded is not None:
        count = sum(len(names) for names in folded.layers.values())
        console.print(
            f"Wrote {written[1]}: {count} layers folded into {len(folded.layers)}; scores differ by {folded.difference:.1e} of the largest",
            markup=False,
        )


def _folded(net: Any, weights: Path) -> Folded:
    from caffetools.net.weights import read_weights
    from caffetools.proto.upgrade import upgrade_caffemodel
    from caffetools.surgery.folding import fold_batch_norm

    return fold_batch_norm(net, upgrade_caffemodel(read_weights(weights)))
