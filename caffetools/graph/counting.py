"""Count the layers of each type in networks, for a comparison table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from caffetools.layers.activation import ReLU
from caffetools.layers.convolution import Convolution
from caffetools.layers.dropout import Dropout
from caffetools.layers.inner_product import InnerProduct
from caffetools.layers.lrn import LRN
from caffetools.layers.pooling import Pooling
from caffetools.layers.registry import traits
from caffetools.proto.schema import NetParameter
from caffetools.proto.upgrades.v1 import upgrade_net

# The types that tables of networks begin with; others follow in the order of their layers.
_FIRST = (Convolution.TYPE, InnerProduct.TYPE, Pooling.TYPE, ReLU.TYPE, LRN.TYPE, Dropout.TYPE)


def count_types(param: NetParameter) -> dict[str, int]:
    """Count the layers of each type.

    A layer that a file for both phases has twice, such as its data layer, counts once.

    Args:
        param: A ``NetParameter`` of any age.

    Returns:
        Layer type → number of layers.

    Raises:
        NetError: The net cannot be upgraded.
    """
    return dict(Counter(kind for _, kind in dict.fromkeys((layer.name, layer.type) for layer in upgrade_net(param).layer)))


def count_global_poolings(param: NetParameter) -> int:
    """Return the number of global Pooling layers of ``param``, a ``NetParameter`` of any age."""
    poolings = [layer for layer in upgrade_net(param).layer if traits(layer).role == "pooling"]
    return len({layer.name for layer in poolings if layer.pooling_param.global_pooling})


def type_table(nets: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of a table with one column a net: the type, then each net's number of layers, ``-`` for none.

    Global poolings are counted separately: ``3 (+1 global)``.

    Args:
        nets: Column title → ``NetParameter`` of any age.
    """
    counts = {name: count_types(param) for name, param in nets.items()}
    total = sum((Counter(count) for count in counts.values()), Counter[str]())
    kinds = [kind for kind in _FIRST if kind in total] + [kind for kind in total if kind not in _FIRST]
    whole = {name: count_global_poolings(param) for name, param in nets.items()}
    return [(kind, *(_cell(counts[name].get(kind, 0), whole[name] if kind == Pooling.TYPE else 0) for name in nets)) for kind in kinds]


def _cell(count: int, of_them_global: int) -> str:
    if not count:
        return "-"
    return f"{count - of_them_global} (+{of_them_global} global)" if of_them_global else str(count)
