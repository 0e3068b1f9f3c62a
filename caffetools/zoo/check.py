"""Whether a file is the one that its publisher means: by checksum where one is published, else by what is inside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from caffetools.errors import ModelFileError, NetError, PrototxtError, ZooError
from caffetools.util.checksums import Hasher, feed
from caffetools.util.files import write_text
from caffetools.zoo.cards import ModelCard

_NAMES = {"sha1": "SHA-1", "sha256": "SHA-256", "git_sha1": "git object id"}


class WrongFile(Exception):
    """A file that differs from the card; the text states the expected and the found checksum."""


class Checked(NamedTuple):
    """A file that is the right one: how it was checked, in words, and its SHA-256 in hexadecimal."""

    how: str
    sha256: str


class _Several:
    """Several hashers that take in the same data, so that a large file is read once for all of them."""

    def __init__(self, hashers: Iterable[Hasher]):
        self._hashers = tuple(hashers)

    def update(self, data: bytes, /) -> None:
        for hasher in self._hashers:
            hasher.update(data)


def digests(path: Path, kinds: Iterable[str]) -> dict[str, str]:
    """Return hexadecimal checksums of a file, by kind, of one reading.

    Args:
        path: The file.
        kinds: Of ``"sha1"``, ``"sha256"`` and ``"git_sha1"`` (git's object id: SHA-1 with the length before it).

    Raises:
        OSError: The file cannot be read.
    """
    hashers = {kind: hashlib.new("sha256" if kind == "sha256" else "sha1", usedforsecurity=False) for kind in kinds}
    if "git_sha1" in hashers:
        hashers["git_sha1"].update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as stream:
        feed(_Several(hashers.values()), stream)
    return {kind: hasher.hexdigest() for kind, hasher in hashers.items()}


def check_weights(card: ModelCard, path: Path, *, record: Path | None = None) -> Checked:
    """Check a file against the published checksums of a card's weights, or else its contents against the deploy network.

    Args:
        card: The model.
        path: The file.
        record: A file with the SHA-256 seen when the weights were first fetched (as ``sha256sum`` writes it). It counts only
            where the publisher gives no checksum, and is written when it does not exist yet.

    Raises:
        WrongFile: it is another file, or (without any checksum) no caffemodel that fits the model's deploy network.
    """
    if card.weights is not None and card.weights.checksums:
        found = digests(path, [*card.weights.checksums, "sha256"])
        for kind, expected in card.weights.checksums.items():
            _compare(found, kind, expected, "")
        return Checked(" and ".join(_NAMES[kind] for kind in card.weights.checksums) + " as published", found["sha256"])
    how = "no checksum is published; " + _check_contents(card, path)
    found = digests(path, ["sha256"])
    if record is not None and record.is_file():
        seen = record.read_text(encoding="utf-8", errors="replace").split()
        _compare(found, "sha256", seen[0] if seen else "", f", as first seen (remove {record} if the publisher has a newer file)")
        how += ", and it is the file that was first seen"
    elif record is not None:
        write_text(record, f"{found['sha256']}  {record.stem}\n")
    return Checked(how, found["sha256"])


def _compare(found: Mapping[str, str], kind: str, expected: str, origin: str) -> None:
    if found[kind] != expected:
        raise WrongFile(f"its {_NAMES[kind]} is {found[kind]}, expected {expected}{origin}")


def _check_contents(card: ModelCard, path: Path) -> str:
    """Read the weights and, where the deploy network can be built, load them into it."""
    from caffetools.net.net import Net
    from caffetools.net.weights import load_weights
    from caffetools.proto.binary import read_caffemodel

    try:
        model = read_caffemodel(path)
    except ModelFileError as error:
        raise WrongFile(str(error)) from None
    try:
        net = Net.from_file(card.network("deploy"), fill=False)
    except (ZooError, NetError, PrototxtError):
        return "it reads as a caffemodel (its network cannot be built here, so its shapes are not checked)"
    try:
        report = load_weights(net, model)
    except NetError as error:
        raise WrongFile(f"it does not fit the model's deploy network: {error}") from None
    if not report.loaded or report.fresh:
        raise WrongFile(f"it has no weights for the layers {', '.join(report.fresh)} of the model's deploy network")
    return f"it reads as a caffemodel and fits the {len(report.loaded)} layers of its deploy network"
