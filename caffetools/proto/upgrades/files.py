"""Upgrading whole files: Caffe's upgrade_net_proto_text, upgrade_net_proto_binary and upgrade_solver_proto_text in one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from caffetools.errors import NetError, PrototxtError
from caffetools.proto.binary import read_caffemodel, write_caffemodel
from caffetools.proto.text import read_net, read_solver, write_prototxt
from caffetools.proto.upgrades.v1 import upgrade_caffemodel, upgrade_net, upgrade_solver

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class UpgradeResult:
    """The result of upgrading a file: its ``kind`` in words, and whether it was ``changed``."""

    kind: str
    changed: bool


def upgrade_file(source: PathLike, out: PathLike) -> UpgradeResult:
    """Write ``source`` (a net's or solver's prototxt, or a .caffemodel) to ``out`` in today's form, atomically.

    Raises:
        PrototxtError, ModelFileError: it is none of these.
        NetError: an old layer has no form today.
        RunFailed: ``out`` cannot be written.
    """
    if not _is_text(source):
        model = read_caffemodel(source)
        modern = upgrade_caffemodel(model)
        write_caffemodel(out, modern)
        return UpgradeResult("weights", modern is not model)
    try:
        net = read_net(source)
    except PrototxtError as not_a_net:
        try:
            solver = read_solver(source)
        except PrototxtError:
            # What is wrong with it as a net: most files are nets.
            raise not_a_net from None
        upgraded = upgrade_solver(solver)
        write_prototxt(out, upgraded)
        return UpgradeResult("a solver", upgraded is not solver)
    try:
        message = upgrade_net(net)
    except NetError as error:
        raise error.located(source) from None
    write_prototxt(out, message)
    return UpgradeResult("a net", message is not net)


def _is_text(path: PathLike) -> bool:
    """Return whether a file is text rather than a binary message; one that cannot be read counts as text, whose reader reports why."""
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(4096)
    except OSError:
        return True
    # A binary net begins with a key byte and a length; UTF-8 text holds no control characters but white space.
    return not any(byte < 32 and byte not in b"\t\n\r\f\v" for byte in head)
