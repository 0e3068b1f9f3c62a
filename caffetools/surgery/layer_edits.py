"""Retargeting to another depth: what is cut off, the classifiers made anew, and what is put in, in this order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from caffetools.layers.base import Shape
from caffetools.proto.schema import NetParameter
from caffetools.surgery.changes import Change
from caffetools.surgery.freezing import Tuning
from caffetools.surgery.insertion import add_layers
from caffetools.surgery.layer_spec import LayerSpec
from caffetools.surgery.retarget import HEAD_LR_MULT, Retargeted, retarget
from caffetools.surgery.truncation import drop_after


@dataclass(frozen=True)
class Depth:
    """How deep a retargeted net is to be: cut off after the layer ``drop_after``, and with the layers ``add``."""

    drop_after: str | None = None
    add: Sequence[LayerSpec] = ()


def retarget_with_edits(
    net: NetParameter,
    classes: int,
    depth: Depth,
    tuning: Tuning,
    shapes: Mapping[str, Shape],
    *,
    head_lr_mult: float = HEAD_LR_MULT,
    heads: Iterable[str] | None = None,
    taken: Iterable[str] = (),
) -> Retargeted:
    """``net`` with ``classes`` classes and of another depth; it is not changed.

    Arguments and errors as for :func:`~caffetools.surgery.retarget.retarget`,
    :func:`~caffetools.surgery.truncation.drop_after` and :func:`~caffetools.surgery.insertion.add_layers`.
    """
    names = None if heads is None else list(heads)
    cut, changes = NetParameter(), list[Change]()
    cut.CopyFrom(net)
    if depth.drop_after is not None:
        changes = drop_after(cut, depth.drop_after, heads=names, shapes=shapes)
    made = retarget(cut, classes, head_lr_mult=head_lr_mult, filler=tuning.filler, heads=names, keep_names=tuning.keep_names, taken=taken)
    if depth.add:
        names = None if names is None else [made.renamed[name] for name in names]
        added, made.added = add_layers(made.train_val, depth.add, heads=names, lr_mult=head_lr_mult, filler=tuning.filler, taken=taken)
        changes += added
    made.changes = changes + made.changes
    return made
