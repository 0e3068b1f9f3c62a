"""Remove Dropout layers, which do nothing in a deployed net."""

from __future__ import annotations

from caffetools.graph.rewrite import Rewriter
from caffetools.layers.registry import traits


def remove_dropout(rewriter: Rewriter) -> dict[str, list[str]]:
    """Remove the Dropout layers, except those whose top is an output or changes in place before the last layer has read it; a pass.

    Args:
        rewriter: A deploy net. A layer whose ``scale_train`` is false scales its input in the TEST phase, and is kept.

    Returns:
        The names of the layers that were removed, each with an empty list.
    """
    removed = {}
    for index, layer in rewriter.graph.layers.items():
        if traits(layer).role == "dropout" and layer.dropout_param.scale_train and rewriter.can_bypass(index):
            rewriter.bypass(index)
            removed[layer.name] = list[str]()
    return removed
