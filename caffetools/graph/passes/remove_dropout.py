"""Remove Dropout layers, which do nothing in a deployed net."""

from __future__ import annotations

from caffetools.graph.rewrite import Rewriter
from caffetools.layers.registry import traits


def remove_dropout(rewriter: Rewriter) -> dict[str, list[str]]:
    """Remove the Dropout layers, except those whose top is an output or changes in place before the last layer has read it; a pass.

    Args:
        rewriter: A deploy net. A layer that works in the TEST phase, for ``scale_train: false`` or ``sample_weights_test: true``, is kept.

    Returns:
        The names of the layers that were removed, each with an empty list.
    """
    removed = {}
    for index, layer in rewriter.graph.layers.items():
        how = layer.dropout_param
        idle = how.scale_train and not how.sample_weights_test
        if traits(layer).role == "dropout" and idle and rewriter.can_bypass(index):
            rewriter.bypass(index)
            removed[layer.name] = list[str]()
    return removed
