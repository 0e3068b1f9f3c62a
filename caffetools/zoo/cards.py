"""Model cards: one YAML file a model in zoo/, read into a typed record."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import yaml

from caffetools.errors import ZooError
from caffetools.zoo.names import get_name
from caffetools.zoo.records import build
from caffetools.zoo.resources import prototxt_file, zoo_file, zoo_files

SCHEMES = ("http", "https", "file")
_DIGITS = {"sha1": 40, "sha256": 64, "git_sha1": 40}


@dataclass(frozen=True)
class Weights:
    """A published .caffemodel.

    Attributes:
        file: its name. megabytes: about how large it is (10^6 bytes). urls: where the publisher has it, tried in order.
        sha1, sha256: as the publisher states them. git_sha1: the object id of the file in the publisher's git repository.
        checksum_source: where the checksum was found.
    """

    file: str
    megabytes: float
    urls: tuple[str, ...]
    sha1: str | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    checksum_source: str | None = None

    @property
    def checksums(self) -> dict[str, str]:
        """Kind → hexadecimal digits; empty when the publisher gives none."""
        given = {"sha1": self.sha1, "sha256": self.sha256, "git_sha1": self.git_sha1}
        return {kind: digits for kind, digits in given.items() if digits}


@dataclass(frozen=True)
class Input:
    """What the network wants to see: ``(pixel - mean) * scale``, pixels from 0 to ``raw_scale``.

    Attributes:
        shape: (C, H, W) of one picture. channel_order: ``BGR``, ``RGB`` or ``grey``. mean: one value a channel, in that order.
    """

    shape: tuple[int, ...]
    channel_order: str
    raw_scale: float
    mean: tuple[float, ...]
    scale: float
    note: str = ""


@dataclass(frozen=True)
class Accuracy:
    """Published figures in percent; None where the publisher gives none. ``source`` names the publisher and the dataset."""

    top1: float | None
    top5: float | None
    source: str


@dataclass(frozen=True)
class Networks:
    """The networks as files of prototxt/, with forward slashes."""

    train_val: str
    deploy: str
    solver: str


@dataclass(frozen=True)
class ModelCard:
    """Everything known about a model of the zoo.

    Attributes:
        weights: None where no weights are published; ``no_weights`` then states what to do instead.
        labels: a file of zoo/ with one class a line in the order of the outputs, or None.
        parameters: number of learned values of the deploy net.
        macs: multiply–accumulates of the deploy net for one picture.
        scratch: whether it is small enough to be trained from random weights in minutes, as is usual.
    """

    name: str
    title: str
    about: str
    page: str
    paper: str | None
    licence: str
    weights: Weights | None
    input: Input
    accuracy: Accuracy | None
    labels: str | None
    prototxt: Networks
    no_weights: str = ""
    scratch: bool = False
    parameters: int = 0
    macs: int = 0

    def network(self, which: str) -> Path:
        """Return the path of the ``"train_val"``, ``"deploy"`` or ``"solver"`` prototxt. Raises :class:`ZooError` where it is not shipped."""
        return prototxt_file(getattr(self.prototxt, which))

    def read_labels(self) -> list[str]:
        """Return the class names in the order of the network's outputs, each as in the file (``n01440764 tench, Tinca tinca``)."""
        return read_labels(self.labels) if self.labels else []


def list_models() -> list[str]:
    """Return the names of the zoo's models, sorted."""
    return [path.stem for path in zoo_files(".yaml")]


@cache
def get_card(name: str) -> ModelCard:
    """Return the card of a model, also by a short name such as ``alexnet``. Raises :class:`ZooError` that names the closest model."""
    return read_card(zoo_file(f"{get_name(name)}.yaml"))


def read_card(path: str | os.PathLike[str]) -> ModelCard:
    """Read and check one card. Raises :class:`ZooError` that names the file and the key at fault."""
    file = os.fspath(path)
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ZooError(f"{file}: cannot read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ZooError(f"{file}: not a YAML card: {' '.join(str(error).split())}") from None
    card = build(ModelCard, data, file)
    for key, fault in _faults(card, Path(path).stem):
        raise ZooError(f"{file}: '{key}' {fault}")
    return card


def read_labels(name: str) -> list[str]:
    """Return the lines of a label file of zoo/, such as ``imagenet_labels.txt``: 1000 lines of WordNet id and names, in Caffe's order."""
    return zoo_file(name).read_text(encoding="utf-8").splitlines()


def _faults(card: ModelCard, stem: str) -> list[tuple[str, str]]:
    """Return (key, what is wrong) of values that have the right type but make no sense."""
    faults: list[tuple[str, str]] = []

    def expect(right: bool, key: str, fault: str) -> None:
        if not right:
            faults.append((key, fault))

    expect(card.name == stem, "name", f"is '{card.name}', but the file is called {stem}.yaml")
    sizes = list(card.input.shape)
    expect(len(sizes) == 3 and min(sizes) > 0, "input.shape", f"must be [C, H, W], all positive, not {sizes}")
    expect(card.input.channel_order in ("BGR", "RGB", "grey"), "input.channel_order", "must be BGR, RGB or grey")
    expect(sizes[:1] == [len(card.input.mean)], "input.mean", f"needs one value a channel, not {len(card.input.mean)}")
    for key in ("train_val", "deploy", "solver"):
        expect(_inside(getattr(card.prototxt, key)), f"prototxt.{key}", "must be a path inside prototxt/")
    if card.weights is None:
        expect(bool(card.no_weights), "no_weights", "must state what to do where 'weights' is empty")
    else:
        faults += _weights_faults(card.weights)
    if card.labels is not None:
        expect(_inside(card.labels) and "/" not in card.labels, "labels", "must be a file name of zoo/")
    return faults


def _weights_faults(weights: Weights) -> list[tuple[str, str]]:
    faults = []
    if not re.fullmatch(r"[\w.-]+", weights.file) or weights.file.startswith("."):
        faults.append(("weights.file", "must be a plain file name"))
    if not weights.urls:
        faults.append(("weights.urls", "must list at least one address"))
    for url in weights.urls:
        try:
            scheme = urlsplit(url).scheme
        except ValueError:  # brackets that hold no IPv6 address
            scheme = ""
        if scheme not in SCHEMES:
            faults.append(("weights.urls", f"has {url}, which is not an http, https or file address"))
        elif scheme == "http" and not weights.checksums:
            # With a checksum, nobody on the way can replace the file.
            faults.append(("weights.urls", f"has {url}; without a checksum only https and file addresses are allowed"))
    for kind, digits in weights.checksums.items():
        if not re.fullmatch(r"[0-9a-f]{%d}" % _DIGITS[kind], digits):  # noqa: UP031 (braces of a pattern)
            faults.append((f"weights.{kind}", f"must be {_DIGITS[kind]} lowercase hexadecimal digits"))
    return faults


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
