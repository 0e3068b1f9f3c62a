"""Retarget with edits of the layers: truncate, replace the classifiers, and insert layers, in this order."""

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
class LayerEdits:
    """Layers to remove from and insert into a retargeted net.

    Attributes:
        drop_after: The last layer to keep before the classifier; None removes nothing.
        add: The layers to insert.
    """

    drop_after: str | None = None
    add: Sequence[LayerSpec] = ()


def retarget_with_edits(
    net: NetParameter,
    classes: int,
    edits: LayerEdits,
    tuning: Tuning,
    shapes: Mapping[str, Shape],
    *,
    head_lr_mult: float = HEAD_LR_MULT,
    heads: Iterable[str] | None = None,
    taken: Iterable[str] = (),
) -> Retargeted:
    """Retarget a net and edit its layers.

    Args:
        net: A ``NetParameter`` in today's form; it is not changed.
        classes: The new number of classes.
        edits: The layers to remove and to insert.
        tuning: The filler of new weights, and whether the classifiers keep their names.
        shapes: Shapes of inputs by blob (``""`` is the first), where the data layers do not give them.
        head_lr_mult: The factor of the classifiers' and new layers' lr_mult.
        heads: The classifier layers' names, where they are not found from the graph.
        taken: Names that may not be given to new layers.

    Raises:
        CaffeToolsError: The number of classes is out of range.
        NetError: As for :func:`~caffetools.surgery.retarget.retarget`, :func:`~caffetools.surgery.truncation.drop_after` and
            :func:`~caffetools.surgery.insertion.add_layers`.
    """
    names = None if heads is None else list(heads)
    cut, changes = NetParameter(), list[Change]()
    cut.CopyFrom(net)
    if edits.drop_after is not None:
        changes = drop_after(cut, edits.drop_after, heads=names, shapes=shapes)
    made = retarget(cut, classes, head_lr_mult=head_lr_mult, filler=tuning.filler, heads=names, keep_names=tuning.keep_names, taken=taken)
    if edits.add:
        names = None if names is None else [made.renamed[name] for name in names]
        added, made.added = add_layers(made.train_val, edits.add, heads=names, lr_mult=head_lr_mult, filler=tuning.filler, taken=taken)
        changes += added
    made.changes = changes + made.changes
    return made
