"""``caffetools deploy``: from the net that was trained to the net that is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.models import complete_model, model_shapes, net_file
from caffetools.cli.options import Dialect, Force, Plugin, Stage, refuse_standard_output
from caffetools.cli.show import console, note, print_json, print_next
from caffetools.proto.schema import NetParameter

if TYPE_CHECKING:
    from caffetools.graph.passes.fold_batch_norm import FoldResult
    from caffetools.graph.summary import Summary


TrainVal = Annotated[
    Path | None,
    typer.Argument(
        metavar="TRAIN_VAL",
        help="The prototxt of the net for training, or a network of the zoo.",
        show_default=False,
        autocompletion=complete_model,
    ),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        help="Shape of the net's input, 1x3x227x227, or NAME=SHAPE for one of several; by default the crop of the data layer. May be repeated."
    ),
]


Model = Annotated[
    str | None,
    typer.Option("--model", help="A network of the zoo in place of TRAIN_VAL.", show_default=False, autocompletion=complete_model),
]

Heads = Annotated[
    list[str] | None, typer.Option(help="Losses to keep, or all; by default that with the largest loss_weight. May be repeated.")
]
FoldBn = Annotated[
    bool, typer.Option("--fold-bn", help="Fold BatchNorm and Scale into the layers before them, in --weights too; verified.")
]


def deploy(
    train_val: TrainVal = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The deploy prototxt to write.", show_default=False)],
    model: Model = None,
    input_shape: InputShape = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of the deploy net's input.")] = 1,
    heads: Heads = None,
    drop_dropout: Annotated[bool, typer.Option("--drop-dropout", help="Remove Dropout layers; they do nothing at inference.")] = False,
    fold_bn: FoldBn = False,
    weights: Annotated[Path | None, typer.Option(help="The .caffemodel for --fold-bn; the folded one is written next to OUT.")] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the net's inputs and outputs as JSON.")] = False,
    stage: Stage = None,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Write the deploy net of TRAIN_VAL: an Input for its data, prob for its loss, nothing that only training needs.

    Layers keep their names, so the same weights load. Of several losses the one that counts most is kept.
    """
    from caffetools.graph.inputs import parse_shapes
    from caffetools.graph.stages import choose_stages
    from caffetools.graph.summary import summarize
    from caffetools.net.net import error_context
    from caffetools.project.next_step import after_deploy
    from caffetools.proto.binary import write_caffemodel
    from caffetools.proto.file_names import read_net_near_files
    from caffetools.proto.text import format_text
    from caffetools.proto.upgrades.v1 import upgrade_net
    from caffetools.surgery.deploy import batch_statistics, deploy_from, left_out
    from caffetools.util.files import atomic_files

    given = _given(train_val, model)
    _check_fold(fold_bn, weights)
    train_val = net_file(given, "train_val")
    written = [out, *([out.with_suffix(".caffemodel")] if fold_bn else [])]
    _check_outputs(written, [train_val, weights], force=force)
    shapes = parse_shapes(input_shape or []) or model_shapes(given)
    param = read_net_near_files(train_val)
    with error_context(train_val):
        chosen = choose_stages(upgrade_net(param), stage, shapes, deploy=True)
        param = chosen.net
        net = deploy_from(param, batch=batch, input_shape=shapes, heads=heads or None, drop_dropout=drop_dropout)
        folded = _folded(net, weights) if weights is not None else None
        net = folded.net if folded is not None else net
        summary = summarize(net)
    with atomic_files() as write:
        write(out, f"# Deploy net, written by caffetools deploy from {train_val.name}.\n{format_text(net)}".encode())
        if folded is not None:
            # The prototxt gets its name when the weights have theirs.
            write_caffemodel(written[1], folded.weights)
    _write_preprocessing(train_val, upgrade_net(param), net, out)
    if chosen.stages and not stage:
        note(f"{train_val}: deployed in the stages {', '.join(chosen.stages)}; choose others by --stage")
    _note(out, left_out(param, heads or None), batch_statistics(net), summary)
    _show(written, net, summary, folded, as_json=as_json)
    if not as_json:
        print_next(after_deploy(out, given))


def _check_fold(fold_bn: bool, weights: Path | None) -> None:
    from caffetools.errors import CaffeToolsError

    if fold_bn and weights is None:
        raise CaffeToolsError("--fold-bn needs --weights: the weights are folded too")
    if weights is not None and not fold_bn:
        raise CaffeToolsError(
            f"--weights {weights} is read with --fold-bn only: without it the weights are used as they are, so leave --weights out"
        )


def _given(train_val: Path | None, model: str | None) -> Path:
    """Return the net to deploy: the file or name that was given, or the model of ``--model``.

    Raises:
        CaffeToolsError: Neither or both are given, or the zoo does not have the model.
    """
    from caffetools.errors import CaffeToolsError
    from caffetools.zoo.names import get_name

    if (train_val is None) == (model is None):
        raise CaffeToolsError(
            "deploy needs either a train_val prototxt or --model NAME, for example: caffetools deploy train_val.prototxt -o deploy.prototxt"
        )
    return train_val if train_val is not None else Path(get_name(model or ""))


def _write_preprocessing(train_val: Path, param: NetParameter, net: NetParameter, out: Path) -> None:
    from caffetools.infer.data_preprocessing import known_preprocessing, missing_sources, update_preprocessing

    known = known_preprocessing(train_val, param, net)
    update_preprocessing(out, known)
    if known is None:
        return
    if not known.mean_known:
        note(f"{out}: the mean file of {train_val} does not exist here, so deploy.json has no mean; classify and export need --mean")
    lost = [what for what, value in (("the pictures' size before the crop", known.resize), ("the labels", known.labels)) if not value]
    missing = missing_sources(param)
    if missing and lost:
        options = " and ".join(option for option, value in (("--resize", known.resize), ("--labels", known.labels)) if not value)
        note(f"{out}: {missing[0]} is not here, so deploy.json lacks {' and '.join(lost)}; give classify {options}")


def _check_outputs(written: list[Path], read: list[Path | None], *, force: bool) -> None:
    """Raise :class:`CaffeToolsError` where a file is there already, or would be written over another one of this run."""
    from caffetools.errors import CaffeToolsError
    from caffetools.util.files import check_not_read

    if len({path.resolve() for path in written}) < len(written):
        raise CaffeToolsError(f"{written[0]}: the weights are written next to it as .caffemodel; give the prototxt another ending (--out)")
    for path in written:
        refuse_standard_output(path)
        check_not_read(path, read)
        if path.exists() and not force:
            raise CaffeToolsError("already exists", path=path, hint="give another name, or --force to replace it")


def _note(out: Path, others: list[str], batched: list[str], summary: Summary) -> None:
    if batched:
        note(
            f"{out}: {', '.join(batched)}: use_global_stats: false, so the mean and variance of each batch are taken; "
            "for those that training stored, remove that line"
        )
    if others:
        note(f"{out}: left out what the losses {', '.join(others)} read alone (--heads to choose)")
    for row in summary.unknown_types:
        note(f"{out}: layer '{row.name}': {row.note}; it is left unchanged")


def _show(written: list[Path], net: NetParameter, summary: Summary, folded: FoldResult | None, *, as_json: bool) -> None:
    from caffetools.graph.graph import Graph
    from caffetools.graph.inputs import is_input
    from caffetools.proto.schema import TEST

    blobs = {top: made for row in summary.layers for top, made in zip(row.tops, row.shapes, strict=True)}
    inputs = {top: blobs[top] for layer in net.layer if is_input(layer) for top in layer.top}
    outputs = {top: blobs[top] for _, top in Graph(net, TEST).outputs()}
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


def _folded(net: NetParameter, weights: Path) -> FoldResult:
    from caffetools.graph.passes.fold_batch_norm import fold_batch_norm
    from caffetools.net.weights import read_weights
    from caffetools.proto.upgrades.v1 import upgrade_caffemodel

    return fold_batch_norm(net, upgrade_caffemodel(read_weights(weights)))
