"""``caffetools dataset inspect``, ``verify``, ``export`` and ``stats``: databases that somebody made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.models import complete_model, net_file
from caffetools.cli.options import Cluster, Force, check_output, not_standard_output
from caffetools.cli.show import console, print_json, progress_sink

if TYPE_CHECKING:
    from caffetools.data.datasets.hdf5 import Hdf5Summary
    from caffetools.data.datasets.inspect import DatabaseSummary
    from caffetools.data.datasets.verify import Verification
    from caffetools.graph.dataset_fit import DatasetFit

_Database = Annotated[
    str,
    typer.Argument(
        metavar="DB",
        help="An LMDB, LevelDB, index of shards (a path or URL), or HDF5 file; or the folder of a dataset.",
        show_default=False,
    ),
]
_Labels = Annotated[Path | None, typer.Option("--labels", help="File of class names, one a line (labels.txt).", show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
# Lines of a kind that are printed; --json has all of them.
_MOST_LINES = 20


def inspect(
    database: _Database,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Sheet of pictures to draw.", show_default=False)] = None,
    labels: _Labels = None,
    force: Force = False,
    as_json: _Json = False,
) -> None:
    """Show what a database holds: counts, sizes, encodings, labels, mean and deviation; with -o draw a sheet of its pictures.

    Of the folder of a dataset, each of its databases is shown. HDF5 files, and lists of them, are read too.
    """
    from caffetools.data.datasets.hdf5 import hdf5_files
    from caffetools.data.datasets.inspect import inspect_database

    check_output(out, force=force)
    if hdf5_files(database) is not None:
        _inspect_hdf5(database, out, labels, as_json=as_json)
        return
    parts = _parts(database)
    names = _names(labels, database, parts)
    found = {}
    for part, path in parts.items():
        with progress_sink("Reading records") as events:
            # The sheet is that of the training pictures.
            summary = inspect_database(path, sheet=out if part in ("", "train") else None, names=names, events=events)
        found[part] = summary.to_json()
        if not as_json:
            _show_summary(summary, names)
    if as_json:
        print_json(found.get("", found))
    elif out is not None:
        console.print(f"Wrote {out}")


def verify(
    database: _Database,
    classes: Annotated[int | None, typer.Option(min=1, help="Number of classes that labels must be below.", show_default=False)] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Kind of fault to ignore: damaged, order, size, values, label, gap, rows. May be repeated."),
    ] = None,
    cluster: Cluster = "",
    as_json: _Json = False,
) -> None:
    """Decode every record of a database and list what is wrong; exits with 1 when there are faults.

    Of the folder of a dataset, all of its databases are checked. HDF5 files, and lists of them, are checked too. Of a dataset, and of a
    database in one, its dataset.json states the number of classes, mixed sizes, and classes without pictures in a split.
    """
    from caffetools.data.datasets.hdf5 import hdf5_files, verify_hdf5
    from caffetools.data.datasets.verify import verify_database

    parts = _parts(database)
    found = {}
    for part, path in parts.items():
        most, allowed = _stated(database, part, classes, allow or [])
        with progress_sink("Verifying records") as events:
            if hdf5_files(path) is not None:
                result = verify_hdf5(path, classes=most, allow=allowed, events=events)
            elif cluster:
                from caffetools.data.cluster_jobs import cluster_verify

                result = cluster_verify(path, cluster, classes=most, allow=allowed, events=events)
            else:
                result = verify_database(path, classes=most, allow=allowed, events=events)
        found[part] = result
        if not as_json:
            _show_faults(path if part else "", result, is_hdf5=hdf5_files(path) is not None)
    if as_json:
        shown = {part: result.to_json() for part, result in found.items()}
        print_json(shown.get("", shown))
    if any(result.faults for result in found.values()):
        raise typer.Exit(1)


def _stated(database: str, part: str, classes: int | None, allow: list[str]) -> tuple[int | None, tuple[str, ...]]:
    """Return the number of classes and the kinds of faults to ignore, with what the card of a dataset states for its databases."""
    from caffetools.data.datasets.card import card_of, load_card
    from caffetools.data.datasets.verify import stated_faults
    from caffetools.util import urls

    found = (load_card(database), part) if part else None if urls.is_url(database) else card_of(database)
    if found is None:
        return classes, tuple(allow)
    return len(found[0].classes) if classes is None else classes, (*allow, *stated_faults(*found))


def _show_faults(path: str, result: Verification, *, is_hdf5: bool) -> None:
    for fault in result.faults[:_MOST_LINES]:
        kind = "dataset" if fault.kind in ("values", "label", "gap", "size") and is_hdf5 else "record"
        place = f"{kind} '{fault.key}': " if fault.key else ""
        console.print(f"{fault.kind}: {place}{fault.message}", markup=False)
    if len(result.faults) > _MOST_LINES:
        console.print(f"… and {len(result.faults) - _MOST_LINES} more; --json lists all")
    console.print(f"{path + ': ' if path else ''}{result.records} records, {len(result.faults)} fault(s)", markup=False)


def export(
    database: _Database,
    out: Annotated[
        str, typer.Argument(metavar="OUT", callback=not_standard_output, help="Folder to create; may be a URL.", show_default=False)
    ],
    labels: _Labels = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a record that cannot be decoded, instead of leaving it out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export, once the new one is complete.")] = False,
    as_json: _Json = False,
) -> None:
    """Write the pictures of a database as files, a folder for each label, with a list for convert-imageset.

    Of the folder of a dataset, each of its databases becomes a folder in OUT. Stored files come out byte for byte, pixels as PNG, everything else as NumPy arrays.
    """
    from caffetools.data.datasets.export import export_database
    from caffetools.util import urls

    parts = _parts(database)
    names, found = _names(labels, database, parts), {}
    for part, path in parts.items():
        with progress_sink("Writing pictures") as events:
            result = export_database(path, urls.join(out, part) if part else out, names=names, strict=strict, force=force, events=events)
        found[part] = {"folder": str(result.path), "files": result.count, "arrays": result.arrays, "skipped": len(result.skipped)}
        if as_json:
            continue
        arrays = f" ({result.arrays} of them arrays)" if result.arrays else ""
        console.print(f"Wrote {result.count} files{arrays} and list.txt to {result.path}", markup=False)
        if result.skipped:
            console.print(f"{len(result.skipped)} record(s) left out")
    if as_json:
        print_json(found.get("", found))


def stats(
    database: _Database,
    net: Annotated[
        Path,
        typer.Argument(
            metavar="NET",
            help="A net's prototxt, for training or deployment; or a network of the zoo.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ],
    layer: Annotated[str | None, typer.Option(help="Data layer to compare with.", show_default=False)] = None,
    as_json: _Json = False,
) -> None:
    """Compare a database with a net: channels, sizes against the crop, labels below num_output; exits with 1 if it does not fit.

    Of the folder of a dataset, its training pictures are compared.
    """
    from caffetools.data.datasets.hdf5 import hdf5_files, inspect_hdf5
    from caffetools.data.datasets.inspect import inspect_database
    from caffetools.graph.dataset_fit import dataset_fit, hdf5_fit
    from caffetools.proto.text import read_net

    param = read_net(net_file(net, "train_val"))
    if hdf5_files(database) is not None:
        with progress_sink("Reading values") as events:
            files = inspect_hdf5(database, events=events)
        _show_fit(hdf5_fit(files, param, layer=layer), files, net, as_json=as_json)
        return
    with progress_sink("Reading records") as events:
        parts = _parts(database)
        summary = inspect_database(parts.get("train", database), events=events)
    _show_fit(dataset_fit(summary, param, layer=layer), summary, net, as_json=as_json)


def _show_fit(fit: DatasetFit, summary: DatabaseSummary | Hdf5Summary, net: Path, *, as_json: bool) -> None:
    from caffetools.data.datasets.hdf5 import Hdf5Summary

    if as_json:
        print_json({**fit.to_json(), "database": summary.to_json()})
    else:
        if isinstance(summary, Hdf5Summary):
            _show_hdf5(summary)
        else:
            _show_summary(summary, None)
        shape = "x".join(map(str, fit.shape)) if fit.shape else "data of the size that its source has"
        console.print(f"{net}: '{fit.input_layer}' takes {shape}; " + (", ".join(f"'{k}' has {v} classes" for k, v in fit.classes.items())))
        for text in (*fit.problems, *fit.notes):
            console.print(f"  {text}")
        console.print("It does not fit." if fit.problems else "It fits.")
    if fit.problems:
        raise typer.Exit(1)


def _inspect_hdf5(path: str, out: Path | None, labels: Path | None, *, as_json: bool) -> None:
    from caffetools.data.datasets.hdf5 import inspect_hdf5
    from caffetools.data.datasets.hdf5_sheet import write_hdf5_sheet
    from caffetools.data.datasets.inspect import read_names

    names = None if labels is None else read_names(labels)
    with progress_sink("Reading values") as events:
        summary = inspect_hdf5(path, events=events)
    if out is not None:
        write_hdf5_sheet(out, summary, names)
    if as_json:
        print_json(summary.to_json())
        return
    _show_hdf5(summary)
    if out is not None:
        console.print(f"Wrote {out}")


def _show_hdf5(summary: Hdf5Summary) -> None:
    count = len(summary.files)
    console.print(f"{summary.path}: {count} HDF5 file{'s' if count > 1 else ''}{', written by MATLAB' if summary.matlab else ''}")
    for name, dataset in summary.datasets.items():
        console.print(f"'{name}': {dataset.shape}, {dataset.dtype}")
        if dataset.statistics is not None:
            rows = (dataset.statistics.mean, dataset.statistics.deviation, dataset.statistics.minimum, dataset.statistics.maximum)
            mean, deviation, low, high = (", ".join(f"{value:.6g}" for value in row[:8]) for row in rows)
            console.print(f"  mean {mean}; deviation {deviation}; from {low} to {high}")
        if dataset.not_finite:
            console.print(f"  {dataset.not_finite} values are not finite")
        most = max(dataset.labels.values(), default=1)
        for label, rows_of_label in list(dataset.labels.items())[:_MOST_LINES]:
            console.print(f"  {label:>6} {rows_of_label:>8} {'█' * max(1, round(24 * rows_of_label / most))}")
        if len(dataset.labels) > _MOST_LINES:
            console.print(f"  … and {len(dataset.labels) - _MOST_LINES} more labels; --json lists all")
    for name, what in summary.other.items():
        console.print(f"'{name}': {what}")


def _parts(database: str) -> dict[str, str]:
    """Return part → database of the folder of a dataset; "" → ``database`` for one that is a database itself."""
    from caffetools.data.datasets.card import load_card
    from caffetools.data.datasets.combine import is_dataset
    from caffetools.data.datasets.splits import PARTS
    from caffetools.util import urls

    if not is_dataset(database):
        return {"": database}
    if urls.is_url(database):
        places = {part: urls.join(database, f"{part}_lmdb") for part in PARTS}
        return {part: place for part, place in places.items() if urls.exists(place)}
    card = load_card(database)
    return {part: str(card.source(part)) for part in PARTS if any(card.counts(part))}


def _names(labels: Path | None, database: str, parts: dict[str, str]) -> list[str] | None:
    """Return the class names in a file, by default those of the dataset that is given, or that the database is in."""
    from caffetools.data.datasets.card import class_names, load_card
    from caffetools.data.datasets.inspect import read_names
    from caffetools.util import urls

    if labels is not None:
        return read_names(labels)
    if urls.is_url(database):
        return None if "" in parts else urls.read_bytes(urls.join(database, "labels.txt")).decode("utf-8", "surrogateescape").splitlines()
    return load_card(database).classes if "" not in parts else class_names(database) or None


def _show_summary(summary: DatabaseSummary, names: list[str] | None) -> None:
    damaged = f", {summary.damaged} of them damaged" if summary.damaged else ""
    console.print(f"{summary.path}: {summary.backend}, {summary.records} records{damaged}, {summary.data_bytes:,} bytes of data")
    console.print(f"keys: '{summary.first_key}' to '{summary.last_key}'")
    if summary.damaged_keys:
        shown = ", ".join(f"'{key}'" for key in summary.damaged_keys[:8])
        console.print(f"damaged: {shown}{', …' if summary.damaged > 8 else ''} (dataset verify gives the reasons)")
    for title, counts in (("sizes", summary.shapes), ("encodings", summary.encodings)):
        listed = [f"{name} ({count})" for name, count in counts.items()]
        more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
        console.print(f"{title}: {', '.join(listed[:8])}{more}")
    for name, values in summary.statistics.items():
        channels, kind = name.split()
        mean, deviation = (", ".join(f"{value:.6g}" for value in row[:8]) for row in (values.mean, values.deviation))
        console.print(f"{values.records} of {channels} channel(s), {kind}: mean {mean}; deviation {deviation}")
    _show_labels(summary, names)


def _show_labels(summary: DatabaseSummary, names: list[str] | None) -> None:
    if summary.unlabelled:
        console.print(f"{summary.unlabelled} record(s) without a {'box' if summary.boxes else 'label'}")
    if summary.boxes:
        console.print(f"{summary.boxes} boxes; records with a box of each label:")
    most = max(summary.labels.values(), default=1)
    for label, count in list(summary.labels.items())[:_MOST_LINES]:
        name = f" {names[label]}" if names is not None and 0 <= label < len(names) else ""
        console.print(f"  {label:>6} {count:>8} {'█' * max(1, round(24 * count / most))}{name}")
    if len(summary.labels) > _MOST_LINES:
        console.print(f"  … and {len(summary.labels) - _MOST_LINES} more labels; --json lists all")
