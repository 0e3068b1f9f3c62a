"""How long a very long prototxt takes: ResNet-152 ten times over, read and printed, with nothing unknown and with unknown layers.

python benchmarks/prototxt.py
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from caffetools.proto.schema import NetParameter
from caffetools.proto.text import format_text, parse
from caffetools.zoo.networks import build

ROUNDS = 7


def ten_of(model: str) -> Any:
    """The layers of a network ten times, each under a name of its own."""
    net, many = build(model), NetParameter(name=f"ten {model}")
    for copy in range(10):
        for layer in net.layer:
            added = many.layer.add()
            added.CopyFrom(layer)
            added.name = f"{copy}/{layer.name}"
    return many


def measure(name: str, text: str) -> None:
    """Print the medians of reading ``text`` and of printing what it says."""
    read, printed = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        net = parse(text, NetParameter)
        middle = time.perf_counter()
        again = format_text(net)
        read.append(middle - start)
        printed.append(time.perf_counter() - middle)
        assert parse(again, NetParameter) == net
    lines = text.count("\n")
    total = statistics.median(map(sum, zip(read, printed, strict=True)))
    print(f"{name}: {lines:,} lines; read {statistics.median(read):.2f} s, printed {statistics.median(printed):.2f} s, both {total:.2f} s")


if __name__ == "__main__":
    whole = format_text(ten_of("resnet152"))
    measure("known", whole)
    measure("with unknown layers", whole.replace('type: "ReLU"', 'type: "Wonder" wonder_param { depth: 3 }'))
