"""Convert a dataset from one format to another, through plain examples."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from caffetools.cancel import CancelToken
from caffetools.data.databases import CorruptRecords, open_database
from caffetools.data.formats.arrays import hdf5_parts, numpy_parts, write_hdf5, write_numpy
from caffetools.data.formats.cifar import cifar10_parts, cifar100_parts
from caffetools.data.formats.database import database_parts, write_database
from caffetools.data.formats.examples import ConvertOptions, Example, Part, example_pixels
from caffetools.data.formats.folders import imagefolder_parts, write_imagefolder
from caffetools.data.formats.huggingface import huggingface_parts, write_huggingface
from caffetools.data.formats.idx import mnist_parts
from caffetools.data.formats.tfrecord import tfrecord_parts, write_tfrecord
from caffetools.data.formats.webdataset import webdataset_parts, write_webdataset
from caffetools.data.means import compute_mean, write_binaryproto
from caffetools.errors import DataError, did_you_mean
from caffetools.events import ArtifactWritten, EventSink, Progress, Warned, ignore, reported
from caffetools.util import urls
from caffetools.util.arguments import MOST_SEED32
from caffetools.util.files import atomic_write
from caffetools.util.folders import new_folder

PathLike = str | os.PathLike[str]
SOURCES: dict[str, Callable[[PathLike, ConvertOptions], list[Part]]] = {
    "mnist": mnist_parts,
    "cifar10": cifar10_parts,
    "cifar100": cifar100_parts,
    "hdf5": hdf5_parts,
    "numpy": numpy_parts,
    "imagefolder": imagefolder_parts,
    "webdataset": webdataset_parts,
    "tfrecord": tfrecord_parts,
    "huggingface": huggingface_parts,
    "lmdb": database_parts,
    "leveldb": database_parts,
}
TARGETS = ("lmdb", "leveldb", "imagefolder", "numpy", "hdf5", "webdataset", "tfrecord", "huggingface")
_DATABASES = ("lmdb", "leveldb")
# Parts of these have the names that Caffe's scripts give them: mnist_train_lmdb, cifar10_test_lmdb.
_PREFIXES = {"mnist": "mnist_", "cifar10": "cifar10_", "cifar100": "cifar100_"}
# A file in each folder that a conversion makes, by which --force knows it.
MARK = ".caffetools-convert"
_EVERY = 100


@dataclass
class ConvertResult:
    """What a conversion wrote.

    Attributes:
        path: The output.
        counts: Output of each part, a path below ``path`` or ``path`` itself → number of examples.
        classes: Names of the classes; empty if the source has none.
        skipped: The error of each picture that was left out.
        files: Further files that were written: mean.binaryproto, labels.txt.
    """

    path: str
    counts: dict[str, int] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    skipped: list[DataError] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def convert_dataset(
    kind: str,
    source: PathLike,
    out: PathLike,
    options: ConvertOptions | None = None,
    *,
    to: str = "lmdb",
    force: bool = False,
    skip_corrupt: int = 0,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> ConvertResult:
    """Convert a dataset.

    A source without parts becomes ``out`` itself; one with parts (train, test) a folder with an output for each, and labels.txt where
    the names of the classes are known. CIFAR also gets the mean of its training pictures, as create_cifar10.sh computes it.

    Args:
        kind: Format of the source, one of ``SOURCES``.
        source: Path or URL of the source.
        out: Path or URL to write; it appears when it is complete.
        options: See :class:`ConvertOptions`.
        to: Format to write, one of ``TARGETS``.
        force: Replace an output that exists.
        skip_corrupt: How many pictures that cannot be decoded may be left out of a database.
        events: Receives ``Progress`` (unit ``examples``), ``Warned`` and ``ArtifactWritten``.
        cancel: Checked between examples; nothing is at ``out`` after a cancellation.

    Raises:
        DataError: The source is missing, damaged or of another format, options exclude each other, or ``out`` exists.
        WriteFailed: ``out`` cannot be written.
        Cancelled: ``cancel`` was set.
    """
    options = options or ConvertOptions()
    parts = _parts(kind, source, options, to)
    prefix = ("mnist_siamese_" if options.pairs else _PREFIXES.get(kind, "")) if to in _DATABASES else ""
    return convert_parts(
        parts, source, out, options, to=to, force=force, skip_corrupt=skip_corrupt, prefix=prefix,
        mean=kind in ("cifar10", "cifar100"), events=events, cancel=cancel,
    )  # fmt: skip


def convert_parts(
    parts: list[Part],
    source: PathLike,
    out: PathLike,
    options: ConvertOptions,
    *,
    to: str = "lmdb",
    force: bool = False,
    skip_corrupt: int = 0,
    prefix: str = "",
    mean: bool = False,
    events: EventSink = ignore,
    cancel: CancelToken | None = None,
) -> ConvertResult:
    """Write the parts of a dataset; see :func:`convert_dataset`.

    Args:
        parts: One without a name, which becomes ``out`` itself, or several with names.
        source: Their source, for messages.
        out: Path or URL to write.
        options: See :class:`ConvertOptions`.
        to: Format to write.
        force: Replace an output that exists.
        skip_corrupt: How many pictures that cannot be decoded may be left out of a database.
        prefix: Put before the names of parts.
        mean: Also write mean.binaryproto of the part ``train``.
        events: Receives ``Progress``, ``Warned`` and ``ArtifactWritten``.
        cancel: Checked between examples.

    Raises:
        DataError: An example cannot be read or does not fit the output, or ``out`` exists.
        WriteFailed: ``out`` cannot be written.
        Cancelled: ``cancel`` was set.
    """
    result = ConvertResult(os.fspath(out), classes=parts[0].classes)
    corrupt = CorruptRecords(skip_corrupt, lambda error: _skip(error, result, events))
    run = _Run(options, to, corrupt, events, cancel)
    with reported("dataset", f"Converting {os.fspath(source)} to {to}", events):
        with urls.local_output(out, force=force) as local:
            if len(parts) == 1 and not parts[0].name:
                result.counts[result.path] = run.write(parts[0], local, result.path, force=force)
            else:
                with new_folder(local, force=force, replaceable=lambda old: (old / MARK).is_file()) as work:
                    (work / MARK).touch()
                    for part in parts:
                        name = f"{prefix}{part.name}{f'_{to}' if to in _DATABASES else ''}"
                        final = urls.join(out, name)
                        result.counts[final] = run.write(part, work / name, final, force=False)
                    _write_extras(work, out, parts, result, f"{prefix}train_{to}" if mean and to in _DATABASES else "", events, cancel)
        events(ArtifactWritten(task="dataset", path=result.path, what=to))
    return result


def _parts(kind: str, source: PathLike, options: ConvertOptions, to: str) -> list[Part]:
    """Check the request and return the parts of the source that it asks for."""
    if kind not in SOURCES:
        raise DataError(f"'{kind}' is not a format that is read; known: {', '.join(SOURCES)}{did_you_mean(kind, SOURCES)}")
    if to not in TARGETS:
        raise DataError(f"'{to}' is not a format that is written; known: {', '.join(TARGETS)}{did_you_mean(to, TARGETS)}")
    if options.pairs and kind != "mnist":
        raise DataError("pairs are made of MNIST's files only; leave out --pairs")
    if options.coarse and kind != "cifar100":
        raise DataError("coarse labels are those of CIFAR-100; leave out --coarse")
    if options.layout not in ("", "nchw", "nhwc"):
        raise DataError(f"the layout '{options.layout}' is unknown; it can be nchw or nhwc")
    if not 0 <= options.seed <= MOST_SEED32:
        raise DataError(f"the seed must be from 0 to {MOST_SEED32}, not {options.seed}")
    if options.per_file < 1:
        raise DataError(f"a file must hold at least one example, not {options.per_file}")
    if kind != "webdataset" and not urls.exists(source):
        raise DataError("does not exist", path=source)
    if not urls.is_url(source) and kind not in _DATABASES:
        _refuse_database(Path(source), kind)
    parts = SOURCES[kind](source, options)
    if not options.split:
        return parts
    names = [part.name for part in parts if part.name]
    chosen = [part for part in parts if part.name == options.split]
    if not chosen:
        raise DataError(f"it has no part '{options.split}'; parts: {', '.join(names) or 'none'}", path=source)
    return [Part("", chosen[0].examples, chosen[0].count, chosen[0].classes)]


def _refuse_database(source: Path, kind: str) -> None:
    """Raise :class:`DataError` if a source of another format is a database: FORMAT was taken for that of the output."""
    backend = next((name for name, file in (("lmdb", "data.mdb"), ("leveldb", "CURRENT")) if (source / file).is_file()), "")
    if backend:
        command = f"caffetools dataset convert {backend} {source} OUT{f' --to {kind}' if kind in TARGETS else ''}"
        raise DataError(f"it is a database ({backend}), not of the format {kind}", path=source, hint=f"FORMAT is that of SOURCE: {command}")


def _skip(error: DataError, result: ConvertResult, events: EventSink) -> None:
    result.skipped.append(error)
    events(Warned(task="dataset", message=f"left out: {error}"))


@dataclass(frozen=True)
class _Run:
    """The settings of a conversion that all parts share."""

    options: ConvertOptions
    to: str
    corrupt: CorruptRecords
    events: EventSink
    cancel: CancelToken | None

    def write(self, part: Part, path: Path, final: str, *, force: bool) -> int:
        """Write one part to ``path``, which is ``final`` later, and return the number of its examples."""
        with contextlib.closing(self._followed(part)) as examples:
            if self.to in _DATABASES:
                count = write_database(path, examples, self.options, backend=self.to, force=force, corrupt=self.corrupt)
            else:
                with new_folder(path, force=force, replaceable=lambda old: (old / MARK).is_file()) as work:
                    (work / MARK).touch()
                    count = self._write_files(work, final, examples, part.classes)
        return count

    def _write_files(self, work: Path, final: str, examples: Iterable[Example], classes: list[str]) -> int:
        checked = self._swapped(examples)
        if self.to == "imagefolder":
            return write_imagefolder(work, checked, self.options, classes)
        if self.to == "hdf5":
            return write_hdf5(work, checked, self.options, "" if urls.is_url(final) else os.path.abspath(final))  # noqa: PTH100
        if self.to == "huggingface":
            return write_huggingface(work, checked, self.options, classes)
        writers = {"numpy": write_numpy, "webdataset": write_webdataset, "tfrecord": write_tfrecord}
        return writers[self.to](work, checked, self.options)

    def _swapped(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Yield ``examples``; with swapped channels, pictures that become arrays are decoded here, so that those are swapped as well."""
        decode = self.options.swap_channels and self.to in ("numpy", "hdf5")
        for example in examples:
            if decode and example.array is None:
                pixels = example_pixels(example, self.options)
                yield Example(example.key, example.label, array=np.ascontiguousarray(pixels), place=example.place)
            else:
                yield example

    def _followed(self, part: Part) -> Generator[Example, None, None]:
        """Yield the part's examples, with progress; at least one."""
        done, total = 0, part.count or 0
        for example in part.examples():
            if self.cancel is not None:
                self.cancel.raise_if_cancelled("converting the dataset")
            if self.options.swap_channels and example.array is None and self.to in _DATABASES:
                raise DataError(f"{example.place}: a picture's file is decoded to BGR already; leave out --swap-channels")
            yield example
            done += 1
            if done % _EVERY == 0 or done == total:
                self.events(Progress(task="dataset", done=done, total=total, unit="examples"))
        if not done:
            raise DataError("the source holds no examples", hint="check its path and --split")


def _write_extras(
    work: Path, out: PathLike, parts: list[Part], result: ConvertResult, mean_of: str, events: EventSink, cancel: CancelToken | None
) -> None:
    if mean_of and (work / mean_of).is_dir():
        with contextlib.closing(open_database(work / mean_of)) as database:
            mean = compute_mean(database, events=lambda event: events(event) if isinstance(event, Progress) else None, cancel=cancel)
        write_binaryproto(work / "mean.binaryproto", mean)
        result.files.append(urls.join(out, "mean.binaryproto"))
    if parts[0].classes:
        with atomic_write(work / "labels.txt", "w") as stream:
            stream.write("".join(f"{name}\n" for name in parts[0].classes))
        result.files.append(urls.join(out, "labels.txt"))
