"""``caffetools dataset convert`` and ``shard``, and the conversion tools of Caffe's examples under their own names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from caffetools.cli.options import AsJson, not_standard_output
from caffetools.cli.show import console, print_json, print_next, progress_sink
from caffetools.util.arguments import MOST_SEED32

if TYPE_CHECKING:
    from caffetools.data.formats.convert import ConvertResult

_Images = Annotated[str, typer.Argument(metavar="IMAGES", help="The idx file of images, plain or .gz.", show_default=False)]
_ImageLabels = Annotated[str, typer.Argument(metavar="LABELS", help="The idx file of labels, plain or .gz.", show_default=False)]
_Database = Annotated[str, typer.Argument(metavar="DB", help="Database to create.", show_default=False)]
_Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists, once the new one is complete.")]
_Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED32, help="Random seed of the pairs.")]
_BACKENDS = ("lmdb", "leveldb")


def convert(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="Format of SOURCE: mnist, cifar10, cifar100, hdf5, numpy, imagefolder, webdataset, tfrecord, huggingface, lmdb or leveldb.",
            show_default=False,
        ),
    ],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="File, folder or URL to read.", show_default=False)],
    out: Annotated[
        str, typer.Argument(metavar="OUT", callback=not_standard_output, help="Database, folder or URL to write.", show_default=False)
    ],
    to: Annotated[
        str, typer.Option(help="Format of OUT: lmdb, leveldb, imagefolder, numpy, hdf5, webdataset, tfrecord or huggingface.")
    ] = "lmdb",
    split: Annotated[str, typer.Option(help="Part of the source to convert: train, test, …; by default all.", show_default=False)] = "",
    size: Annotated[str, typer.Option(help="Resize pictures: 256, 320x240 (width x height), or 0 to keep their sizes.")] = "0",
    gray: Annotated[bool, typer.Option("--gray", help="Decode the files of pictures to one channel.")] = False,
    encoded: Annotated[bool, typer.Option("--encoded", help="Store the files of pictures, not pixels.")] = False,
    swap_channels: Annotated[bool, typer.Option("--swap-channels", help="Reverse the channels of arrays: RGB to BGR, or back.")] = False,
    layout: Annotated[str, typer.Option(help="Order of the axes of arrays: nchw or nhwc; derived where it is certain.")] = "",
    data: Annotated[str, typer.Option(help="Name of the pictures' array, dataset, column or feature.", show_default=False)] = "",
    label: Annotated[str, typer.Option(help="Name of the labels' array, dataset, column or feature.", show_default=False)] = "",
    coarse: Annotated[bool, typer.Option("--coarse", help="Take CIFAR-100's 20 coarse labels.")] = False,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Write MNIST's pairs for siamese nets: two channels, label 1 for one class.")
    ] = False,
    seed: _Seed = 1,
    per_file: Annotated[int, typer.Option(min=1, help="Most examples in a file, for hdf5, webdataset, tfrecord and huggingface.")] = 10_000,
    skip_corrupt: Annotated[int, typer.Option(min=0, help="Leave out up to this many pictures that cannot be decoded.")] = 0,
    force: _Force = False,
    as_json: AsJson = False,
) -> None:
    """Convert a dataset to Caffe's databases, or a database to other formats.

    MNIST and CIFAR become the records of Caffe's convert_mnist_data and convert_cifar_data. A source with parts (train, test) becomes a
    folder with a database for each.
    """
    from caffetools.data.formats.convert import convert_dataset
    from caffetools.data.formats.examples import ConvertOptions
    from caffetools.data.images import parse_size

    options = ConvertOptions(
        split=split,
        size=parse_size(size),
        gray=gray,
        encoded=encoded,
        swap_channels=swap_channels,
        layout=layout.lower(),
        data=data,
        label=label,
        coarse=coarse,
        pairs=pairs,
        seed=seed,
        per_file=per_file,
    )
    with progress_sink("Converting") as events:
        result = convert_dataset(kind, source, out, options, to=to, force=force, skip_corrupt=skip_corrupt, events=events)
    _show(result, as_json)
    if not as_json and to in _BACKENDS:
        _print_next(result)


def shard(
    source: Annotated[str, typer.Argument(metavar="DB", help="An LMDB, LevelDB or index of shards; a path or URL.", show_default=False)],
    out: Annotated[str, typer.Argument(metavar="OUT", callback=not_standard_output, help="Folder or URL to create.", show_default=False)],
    shards: Annotated[int, typer.Option(min=1, help="Number of shards.", show_default=False)],
    force: _Force = False,
    as_json: AsJson = False,
) -> None:
    """Split a database into LMDBs of equal size with an index, which a Data layer reads as one database.

    Each of several training processes then reads its own shards only.
    """
    from caffetools.data.sharding import shard_database
    from caffetools.project.config import command

    with progress_sink("Splitting") as events:
        index = shard_database(source, out, shards, force=force, events=events)
    if as_json:
        print_json({"path": out, **index.to_json()})
        return
    console.print(f"Wrote {index.records} records in {len(index.shards)} shards, and index.json, to {out}")
    print_next(command("dataset", "verify", out))


def convert_mnist_data(
    images: _Images,
    labels: _ImageLabels,
    database: _Database,
    backend: Annotated[str, typer.Option(help="lmdb or leveldb.")] = "lmdb",
    force: _Force = False,
    as_json: AsJson = False,
) -> None:
    """Write MNIST's images and labels into an LMDB or LevelDB, record for record as Caffe's convert_mnist_data does."""
    _convert_idx(images, labels, database, backend, pairs=False, seed=1, force=force, as_json=as_json)


def convert_mnist_siamese_data(
    images: _Images,
    labels: _ImageLabels,
    database: _Database,
    backend: Annotated[str, typer.Option(help="lmdb or leveldb.")] = "leveldb",
    seed: _Seed = 1,
    force: _Force = False,
    as_json: AsJson = False,
) -> None:
    """Write random pairs of MNIST's images into a LevelDB, as Caffe's convert_mnist_siamese_data does.

    The pairs are those that the tool would draw after set_random_seed(SEED); the tool itself seeds from the system.
    """
    _convert_idx(images, labels, database, backend, pairs=True, seed=seed, force=force, as_json=as_json)


def convert_cifar_data(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Folder of the binary batches.", show_default=False)],
    out: Annotated[
        str, typer.Argument(metavar="OUTPUT", callback=not_standard_output, help="Folder for the databases.", show_default=False)
    ],
    backend: Annotated[str, typer.Argument(metavar="BACKEND", help="lmdb or leveldb.", show_default=False)],
    force: _Force = False,
    as_json: AsJson = False,
) -> None:
    """Write CIFAR-10 into OUTPUT/cifar10_train_BACKEND and cifar10_test_BACKEND, record for record as Caffe's convert_cifar_data does."""
    from caffetools.data.formats.cifar import cifar10_parts
    from caffetools.data.formats.convert import convert_parts
    from caffetools.data.formats.examples import ConvertOptions, Part
    from caffetools.util.urls import join

    _check_backend(backend)
    options, results = ConvertOptions(), []
    for part in cifar10_parts(source, options):
        target = join(out, f"cifar10_{part.name}_{backend}")
        with progress_sink("Converting") as events:
            results.append(convert_parts([Part("", part.examples)], source, target, options, to=backend, force=force, events=events))
    if as_json:
        print_json([_facts(result) for result in results])
        return
    for result in results:
        _show(result, False)
    _print_next(results[0])


def _convert_idx(images: str, labels: str, database: str, backend: str, *, pairs: bool, seed: int, force: bool, as_json: bool) -> None:
    from caffetools.data.formats.convert import convert_parts
    from caffetools.data.formats.examples import ConvertOptions
    from caffetools.data.formats.idx import idx_part

    _check_backend(backend)
    options = ConvertOptions(pairs=pairs, seed=seed)
    part = idx_part(images, labels, options)
    with progress_sink("Converting") as events:
        result = convert_parts([part], images, database, options, to=backend, force=force, events=events)
    _show(result, as_json)
    if not as_json:
        _print_next(result)


def _check_backend(backend: str) -> None:
    if backend not in _BACKENDS:
        raise typer.BadParameter(f"'{backend}' is neither lmdb nor leveldb", param_hint="BACKEND")


def _facts(result: ConvertResult) -> dict[str, object]:
    skipped = [str(error) for error in result.skipped]
    return {"path": result.path, "counts": result.counts, "files": result.files, "classes": result.classes, "skipped": skipped}


def _print_next(result: ConvertResult) -> None:
    """Print the command that shows the first database of a conversion."""
    from caffetools.project.config import command

    print_next(command("dataset", "inspect", next(iter(result.counts))))


def _show(result: ConvertResult, as_json: bool) -> None:
    if as_json:
        print_json(_facts(result))
        return
    for path, count in result.counts.items():
        console.print(f"Wrote {count} examples to {path}")
    for path in result.files:
        console.print(f"Wrote {path}")
