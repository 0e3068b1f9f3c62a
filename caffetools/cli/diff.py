"""``caffetools diff``: what differs between two networks, or two files of weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.models import complete_model, net_file
from caffetools.cli.options import Dialect, Plugin
from caffetools.cli.show import console, print_json, print_table

if TYPE_CHECKING:
    from caffetools.graph.diff import Difference, WeightsDifference
    from caffetools.proto.model import Caffemodel


_First = Annotated[
    Path,
    typer.Argument(
        metavar="FIRST",
        help="A net's prototxt, a network of the zoo, or a .caffemodel (.h5 too).",
        show_default=False,
        autocompletion=complete_model,
    ),
]


def diff(
    first: _First,
    second: Annotated[
        Path, typer.Argument(metavar="SECOND", help="The other one, of the same kind.", show_default=False, autocompletion=complete_model)
    ],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 where they differ.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the differences as JSON.")] = False,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Show what differs between two nets, or two weights files, layer by layer.

    Files of older forms are brought to today's first, so that only what they mean is compared. The data of two solvers or two
    databases is not looked at.
    """
    from caffetools.errors import CaffeToolsError
    from caffetools.graph.diff import diff_nets, diff_weights
    from caffetools.proto.text import error_context, read_net
    from caffetools.proto.upgrades.v1 import upgrade_net

    found: list[Difference] | list[WeightsDifference]
    weights = [_is_weights(path) for path in (first, second)]
    first, second = (net_file(path, "train_val") for path in (first, second))
    if weights[0] != weights[1]:
        # A file that is neither is named for what it is.
        for path, holds_weights in zip((first, second), weights, strict=True):
            _read_weights(path) if holds_weights else read_net(path)
        raise CaffeToolsError(
            "one is a net, the other holds weights; give two of one kind (`caffetools inspect NET WEIGHTS` compares these)"
        )
    if weights[0]:
        found = diff_weights(_read_weights(first), _read_weights(second))
        shown = _weights_rows(found)
    else:
        nets = []
        for path in (first, second):
            param = read_net(path)
            with error_context(path):
                nets.append(upgrade_net(param))
        found = diff_nets(*nets)
        shown = [(d.layer or "(the net)", d.kind, d.field, d.before, d.after) for d in found]
    if as_json:
        print_json({"same": not found, "differences": [asdict(difference) for difference in found]})
    elif not found:
        console.print("They are the same.")
    else:
        names = ("First", "Second", ">Largest", ">Relative") if weights[0] else ("What", "First", "Second")
        print_table(("Layer", "Difference", *names), shown)
        layers = len({difference.layer for difference in found})
        console.print(f"{len(found)} difference{'s' if len(found) > 1 else ''} in {layers} layer{'s' if layers > 1 else ''}")
    if found and exit_code:
        raise typer.Exit(1)


def _read_weights(path: Path) -> Caffemodel:
    # Nets are compared without waiting for torch.
    from caffetools.net.weights import read_weights

    return read_weights(path)


def _is_weights(path: Path) -> bool:
    from caffetools.proto.sniff import Kind, sniff

    if path.suffix in (".caffemodel", ".h5"):
        return True
    found = sniff(path)
    return found is not None and found.kind in (Kind.CAFFEMODEL, Kind.HDF5)


def _weights_rows(found: list[WeightsDifference]) -> list[tuple[str, ...]]:
    from caffetools.graph.diff import describe_shapes

    rows = []
    for one in found:
        numbers = ["" if number is None else f"{number:.3g}" for number in (one.largest, one.relative)]
        second = "" if one.second == one.first else describe_shapes(one.second)
        rows.append((one.layer, one.kind, describe_shapes(one.first), second, *numbers))
    return rows
