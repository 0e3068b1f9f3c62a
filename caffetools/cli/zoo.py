"""``caffetools zoo``: the published models that caffetools knows, and fetching their weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caffetools.cli.models import complete_model
from caffetools.cli.options import not_standard_output
from caffetools.cli.show import console, note, print_json, print_next, print_table, print_title, progress, shortened

if TYPE_CHECKING:
    from caffetools.zoo.cards import ModelCard

app = typer.Typer(help="List, show and fetch published models.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A model's name, as `caffetools zoo list` shows it, or a short one.", autocompletion=complete_model
    ),
]


@app.command("list")
def list_(
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure how long each network takes here, on the CPU; takes a minute or two.")
    ] = False,
    json: Json = False,
) -> None:
    """List the models: input, size of the weights, operations, accuracy, speed on this machine once measured, licence.

    The last column shows whether the weights are in the cache; damaged: a file of another size is in their place; by hand: they are handed
    out elsewhere (`zoo show NAME`); none: there are no published weights, and training takes minutes. ms is the time of one picture on this
    machine's CPU, from --measure.
    """
    from caffetools.zoo.cards import get_card, list_models
    from caffetools.zoo.fetch import cached
    from caffetools.zoo.names import short_name

    cards = [get_card(name) for name in sorted(list_models(), key=short_name)]
    speeds = _speeds([card.name for card in cards], measure=measure)
    if json:
        print_json([{**_facts(card), "milliseconds": speeds.get(card.name)} for card in cards])
        return
    rows = []
    for card in cards:
        size = f"{card.weights.megabytes:g} MB" if card.weights else "-"
        fetched = _FETCHED[cached(card)] if card.weights else "none" if card.scratch else "by hand"
        speed = f"{speeds[card.name]:.1f}" if card.name in speeds else "-"
        cells = (_times(card.input.shape), size, shortened(card.macs), _accuracy(card), speed, card.licence, fetched)
        rows.append((short_name(card.name), *cells))
    print_table(("name", "input", ">size", ">MACs", "top-1/5 %", ">ms", "licence", "fetched"), rows)
    if not speeds:
        note("ms is not measured yet; `caffetools zoo list --measure` does so")


def _speeds(names: list[str], *, measure: bool) -> dict[str, float]:
    """Return the milliseconds of each model, as far as they are known."""
    from caffetools.zoo.speed import known_speeds, measure_speeds

    if not measure:
        return known_speeds()
    with progress("Measuring") as advance:
        return measure_speeds(names, progress=advance)


@app.command()
def show(name: Name, json: Json = False) -> None:
    """Show everything known about a model: addresses, checksums, licence, preprocessing, accuracy, networks."""
    from caffetools.zoo.cards import get_card
    from caffetools.zoo.names import short_name

    card = get_card(name)
    if json:
        print_json(_facts(card))
        return
    print_title(card.title, f" ({short_name(card.name)})\n{card.about}\n")
    for label, text in _lines(card):
        console.print(f"{label:<10} {text}", markup=False)


@app.command()
def fetch(
    name: Name,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", callback=not_standard_output, help="The folder to put the file in; the cache by default."),
    ] = None,
    unverified: Annotated[bool, typer.Option("--unverified", help="Also fetch weights for which no checksum is published.")] = False,
    json: Json = False,
) -> None:
    """Fetch a model's weights and check them; a file that is there already is only checked.

    An interrupted fetch resumes where it stopped. With $CAFFETOOLS_ZOO_MIRROR set (an http, https or file address,
    or a folder) the file comes from there.
    """
    from caffetools.project.config import command
    from caffetools.zoo.cards import get_card
    from caffetools.zoo.fetch import fetch_weights

    card = get_card(name)
    with progress(f"Fetching {name} (MB)") as advance:
        fetched = fetch_weights(card, to, progress=_in_megabytes(advance), note=None if json else _print_note, unverified=unverified)
    if json:
        print_json({key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(fetched).items()})
        return
    console.print(
        f"{fetched.path} is there already; nothing was fetched"
        if fetched.source is None
        else f"{fetched.path} fetched from {fetched.source}",
        markup=False,
    )
    console.print(f"checked:   {fetched.verified}", markup=False)
    console.print(f"sha256:    {fetched.sha256}")
    if fetched.labels is not None:
        console.print(f"labels:    {fetched.labels}", markup=False)
    console.print(f"mean:      {_mean(card)}")
    print_next(command("export", name, *([fetched.path] if to is not None else []), "-o", f"{name}.onnx"))


@app.command()
def copy(
    name: Name,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", callback=not_standard_output, help="The folder to write to.", show_default=False)
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    json: Json = False,
) -> None:
    """Write a model's deploy, train_val and solver prototxts, its labels and its preprocessing (deploy.json) to a folder."""
    from caffetools.infer.zoo_models import copy_model
    from caffetools.project.config import command
    from caffetools.zoo.cards import get_card

    paths = copy_model(name, folder, force=force)
    if json:
        print_json([str(path) for path in paths])
        return
    for path in paths:
        console.print(f"Wrote {path}", markup=False)
    print_next(command("zoo", "fetch", name, "--to", folder) if get_card(name).weights else command("inspect", folder / "deploy.prototxt"))


def _in_megabytes(advance: Callable[[int, int], None]) -> Callable[[int, int], None]:
    return lambda done, total: advance(done // 10**6, max(total // 10**6, 1))


def _print_note(sentence: str) -> None:
    console.print(sentence, markup=False)


def _facts(card: ModelCard) -> dict[str, Any]:
    """Return the card as JSON, with where its files are on this machine."""
    from caffetools.zoo.fetch import cached, weights_path

    path = str(weights_path(card)) if card.weights else None
    return {**dataclasses.asdict(card), "weights_path": path, "fetched": cached(card) == "whole"}


_FETCHED = {"": "no", "whole": "yes", "damaged": "damaged"}


def _lines(card: ModelCard) -> list[tuple[str, str]]:
    from caffetools.zoo.fetch import cached, weights_path

    wanted = card.input
    lines = [
        ("page", card.page),
        ("paper", card.paper or "-"),
        ("licence", card.licence),
        (
            "input",
            f"{_times(wanted.shape)}, {wanted.channel_order}, 0 to {wanted.raw_scale:g}, mean {_mean(card)}, then times {wanted.scale:g}",
        ),
        ("", wanted.note),
        ("accuracy", f"top-1/5 {_accuracy(card)} % ({card.accuracy.source})" if card.accuracy else "none published"),
        ("size", f"{card.parameters:,} parameters, {shortened(card.macs)} multiply–accumulates for one picture"),
        ("labels", f"{card.labels} ({len(card.read_labels())} classes)" if card.labels else "-"),
        ("networks", ", ".join(dataclasses.astuple(card.prototxt))),
    ]
    if card.weights is None:
        lines.append(("weights", card.no_weights))
    else:
        states = {"": "", "whole": ", fetched", "damaged": f"; {weights_path(card)} is damaged: remove it and fetch again"}
        lines.append(("weights", f"{card.weights.file}, {card.weights.megabytes:g} MB{states[cached(card)]}"))
        lines += [("", url) for url in card.weights.urls]
        lines += [("", f"{kind} {digits}") for kind, digits in card.weights.checksums.items()]
        lines.append(("", f"checksum from {card.weights.checksum_source}" if card.weights.checksums else "no checksum is published"))
    return [(label, text) for label, text in lines if text]


def _accuracy(card: ModelCard) -> str:
    if card.accuracy is None:
        return "-"
    return "/".join("-" if figure is None else f"{figure:.1f}" for figure in (card.accuracy.top1, card.accuracy.top5))


def _mean(card: ModelCard) -> str:
    return f"{','.join(f'{value:g}' for value in card.input.mean)} ({card.input.channel_order})"


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
