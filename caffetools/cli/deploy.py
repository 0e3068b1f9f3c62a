"""``caffetools deploy``: from the net that was trained to the net that is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caffetools.cli.show import console, print_json


def deploy(
    train_val: Annotated[Path, typer.Argument(help="The prototxt of the net for training.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The deploy prototxt to write.", show_default=False)],
    input_shape: Annotated[str | None, typer.Option(help="The input's shape, 1x3x227x227; by default as the data layer crops.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="How many pictures the net takes at once.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the net's inputs and outputs as JSON.")] = False,
) -> None:
    """Write the deploy net of TRAIN_VAL: an Input for its data, prob for its loss, nothing that only training needs.

    Layers keep their names, so the same weights load. Of several losses the one that counts most is kept.
    """
    from caffetools.errors import CaffeToolsError
    from caffetools.net.net import located
    from caffetools.proto.text import read_net, write_prototxt
    from caffetools.surgery.deploy import deploy_from
    from caffetools.surgery.inputs import parse_shapes
    from caffetools.surgery.summary import summarize

    if out.exists() and not force:
        raise CaffeToolsError(f"{out} exists; give another name, or --force to replace it")
    shape = parse_shapes([input_shape] if input_shape else []).get("")
    param = read_net(train_val)
    with located(train_val):
        net = deploy_from(param, batch=batch, input_shape=shape)
        summary = summarize(net)
    write_prototxt(out, net, comment=f"Deploy net, written by caffetools deploy from {train_val.name}.")
    read = {bottom for layer in net.layer for bottom in layer.bottom}
    blobs = {top: made for row in summary.layers for top, made in zip(row.tops, row.shapes, strict=True)}
    inputs = {top: blobs[top] for layer in net.layer if layer.type == "Input" for top in layer.top}
    outputs = {top: shape for top, shape in blobs.items() if top not in read}
    if as_json:
        print_json({"deploy": str(out), "layers": len(net.layer), "inputs": inputs, "outputs": outputs})
        return
    for name, some in (("input", inputs), ("output", outputs)):
        for blob, size in some.items():
            console.print(f"{name} {blob}: {'?' if size is None else ' x '.join(map(str, size))}", markup=False)
    console.print(f"Wrote {out}: {len(net.layer)} layers.", markup=False)
