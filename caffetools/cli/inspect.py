"""``caffetools inspect``: what a network is made of, and how weights fit it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caffetools.cli.models import complete_model, is_stdin, prototxt
from caffetools.cli.options import Dialect, Plugin, Stage
from caffetools.cli.show import console, note, print_json, print_table, print_title, shortened

if TYPE_CHECKING:
    from caffetools.graph.summary import Summary
    from caffetools.graph.weights_diff import Comparison


Files = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="NET [WEIGHTS]",
        help="A net's prototxt (deploy, or train_val) or a network of the zoo, and a .caffemodel to compare it with. With --table, nets.",
        show_default=False,
        autocompletion=complete_model,
    ),
]


def inspect(
    files: Files = None,
    model: Annotated[
        list[str] | None, typer.Option(help="The train_val net of a network of the zoo. May be repeated with --table.")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Count the layers of each type, one column a net.")] = False,
    phase: Annotated[
        str | None, typer.Option(help="Phase whose layers to show: train or test; by default test if the net has it.", show_default=False)
    ] = None,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="Shape of the net's input, 1x3x227x227, or NAME=SHAPE for one of several. May be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    stage: Stage = None,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """List a net's layers: type, output shapes, parameters, multiply–accumulates and memory.

    Nothing is run, and data need not be there: sizes follow from the crop, or from --input-shape. With WEIGHTS, also which layers take
    their blobs from the file, and what the values are like. With --table, how many layers of each type several nets have.
    """
    from caffetools.graph.graph import phases_present
    from caffetools.graph.inputs import parse_shapes
    from caffetools.graph.stages import choose_stages
    from caffetools.graph.summary import summarize
    from caffetools.graph.weights_diff import compare_weights
    from caffetools.net.net import error_context
    from caffetools.net.weights import read_weights
    from caffetools.proto.file_names import read_net_near_files
    from caffetools.proto.upgrades.v1 import upgrade_net
    from caffetools.zoo.cards import get_card
    from caffetools.zoo.names import is_model

    model = [*(model or []), *(str(path) for path in files or [] if is_model(str(path)))]
    files = [path for path in files or [] if not is_model(str(path))]
    if table:
        _show_table(files, model, as_json=as_json)
        return
    net, weights = _net_and_weights(files, model)
    wanted = _phase(phase)
    param = read_net_near_files(net)
    shapes = parse_shapes(input_shape or [])
    with error_context(net):
        chosen = choose_stages(upgrade_net(param), stage, shapes)
        param = chosen.net
        shown = phases_present(param)[-1] if wanted is None else wanted
        summary = summarize(param, shown, shapes=shapes)
        if summary.unknown and model and not shapes:
            # A net that does not say how large its pictures are: its card does.
            shapes = {"": (1, *get_card(model[0]).input.shape)}
            summary = summarize(param, shown, shapes=shapes)
    if chosen.stages and not stage:
        note(f"{net}: shown in the stages {', '.join(chosen.stages)}; choose others by --stage")
    comparison = compare_weights(summary, read_weights(weights)) if weights is not None else None
    if as_json:
        print_json(_as_json(summary, comparison))
        return
    _show_layers(summary)
    if comparison is not None:
        _show_weights(comparison, Path("<stdin>") if weights is not None and is_stdin(str(weights)) else weights)


def _phase(name: str | None) -> int | None:
    from caffetools.proto.schema import TEST, TRAIN

    phases = {"train": TRAIN, "test": TEST}
    if name is not None and name.lower() not in phases:
        raise typer.BadParameter(f"'{name}' is neither train nor test", param_hint="--phase")
    return None if name is None else phases[name.lower()]


def _net_and_weights(files: list[Path], models: list[str]) -> tuple[Path, Path | None]:
    from caffetools.errors import CaffeToolsError
    from caffetools.zoo.networks import prototxt_path

    nets = [prototxt_path(name) for name in models]
    if len(nets) + len(files) > 2 or len(nets) > 1 or not (nets or files):
        raise CaffeToolsError("give one NET (or --model NAME), and one file of WEIGHTS if you like; several nets with --table")
    first, second = [*nets, *files, None][:2]
    return prototxt(str(first)), prototxt(second) if second is not None else None


def _show_table(files: list[Path], models: list[str], *, as_json: bool) -> None:
    """One column for each network of the zoo and for each file, by its whole path where several have its name."""
    from caffetools.errors import CaffeToolsError
    from caffetools.graph.counting import count_global_poolings, count_types, type_table
    from caffetools.net.net import error_context
    from caffetools.proto.text import read_net
    from caffetools.zoo.networks import prototxt_path

    paths = {name: prototxt_path(name) for name in models}
    for path in files:
        stems = [other.stem for other in files]
        paths[path.stem if stems.count(path.stem) == 1 and path.stem not in paths else str(path)] = path
    if not paths:
        raise CaffeToolsError("give the nets to count: prototxt files, or networks of the zoo by --model NAME (repeatable)")
    nets = {}
    for name, path in paths.items():
        nets[name] = read_net(path)
        with error_context(path):
            count_types(nets[name])
    if as_json:
        print_json({name: {"layers": count_types(net), "global_poolings": count_global_poolings(net)} for name, net in nets.items()})
        return
    print_table(("Type", *(f">{name}" for name in nets)), type_table(nets))


def _show_layers(summary: Summary) -> None:
    print_title(summary.name or "a net without a name", f" in the {summary.phase} phase")
    rows = []
    for row in summary.layers:
        made = [shape for top, shape in zip(row.tops, row.shapes, strict=True) if shape is not None and top not in row.bottoms]
        memory = shortened(4 * sum(map(math.prod, made)), "B") if made else ""
        parameters = "?" if row.parameters is None else f"{row.parameter_count:,}" if row.parameters else ""
        outputs = ", ".join(map(_shape, row.shapes))
        rows.append((row.name, row.type_name, outputs, parameters, shortened(row.macs) if row.macs else "", memory))
    print_table(("Layer", "Type", "Output", ">Parameters", ">MACs", ">Memory"), rows)
    known = "of what is known: " if summary.unknown else ""
    console.print(
        f"{len(summary.layers)} layers, {known}{summary.parameters:,} parameters ({shortened(summary.parameter_bytes, 'B')}), "
        f"{shortened(summary.macs)} multiply–accumulates{_each(summary)}, blobs {shortened(summary.blob_bytes, 'B')}"
    )
    causes = [row for row in summary.unknown if not row.unknown_bottoms]
    for row in causes:
        console.print(f"unknown: {row.name}: {row.note}", markup=False)


def _each(summary: Summary) -> str:
    """Return the multiply–accumulates of one picture, which is what tables of networks state; "" where that is the batch, or unknown."""
    batches = {shape[0] for row in summary.layers if not row.bottoms for shape in row.shapes if shape is not None and len(shape) == 4}
    batch = batches.pop() if len(batches) == 1 else 1
    return f" for a batch of {batch} ({shortened(summary.macs // batch)} each)" if batch > 1 else ""


def _show_weights(comparison: Comparison, weights: Path | None) -> None:
    console.print(f"\nParameters in {weights}", markup=False)
    rows = []
    for layer in comparison.layers:
        status = layer.status
        if status == "differs":
            status = f"differs: the net has {', '.join(map(_shape, layer.expected or []))}"
        if not layer.blobs:
            rows.append((layer.layer, "", "", "", "", status))
        for index, blob in enumerate(layer.blobs):
            values = (f"{blob.mean:.4g}", f"{blob.std:.4g}", f"{blob.absmax:.4g}")
            first = index == 0
            rows.append((layer.layer if first else "", _shape(blob.shape), *values, status if first else ""))
    print_table(("Layer", "Blob", ">Mean", ">Std", ">Largest", "In the net"), rows)
    names = {status: comparison.named(status) for status in ("fits", "fresh", "differs", "unchecked")}
    counts = [f"{len(layers)} {status}" for status, layers in names.items() if layers]
    console.print(", ".join([*counts, *([f"{len(comparison.unused)} not in the net"] if comparison.unused else [])]))
    if comparison.unused:
        console.print(f"not in the net: {', '.join(comparison.unused)}", markup=False)
    for name in comparison.ambiguous:
        console.print(
            f"several layers are called '{name}': they are compared in the order of the file, but Caffe, and loading here, gives all of "
            "them to one; give each layer a name of its own",
            markup=False,
        )


def _shape(shape: Iterable[int] | None) -> str:
    return "?" if shape is None else "x".join(map(str, shape)) or "scalar"


def _as_json(summary: Summary, comparison: Comparison | None) -> dict[str, Any]:
    answer = asdict(summary)
    for layer, row in zip(answer["layers"], summary.layers, strict=True):
        layer["parameter_count"] = row.parameter_count
    answer["parameter_bytes"] = summary.parameter_bytes
    if comparison is not None:
        answer["weights"] = asdict(comparison)
    return answer
