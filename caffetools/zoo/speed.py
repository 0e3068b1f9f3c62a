"""How long the zoo's networks take on this machine, measured once and kept in the cache."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable

import caffetools
from caffetools.proto.schema import TEST
from caffetools.util.files import write_text
from caffetools.util.threads import cpu_count
from caffetools.zoo.cards import get_card
from caffetools.zoo.fetch import cache_folder

_FILE = "speed.json"
_PASSES = 5


def known_speeds() -> dict[str, float]:
    """Return model → milliseconds of one picture on the CPU, as far as this version has measured it on this machine."""
    try:
        values = json.loads((cache_folder() / _FILE).read_text(encoding="utf-8"))
        if values["caffetools"] == caffetools.__version__ and values["threads"] == cpu_count():
            return {str(name): float(value) for name, value in values["milliseconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def measure_speeds(names: Iterable[str], *, progress: Callable[[int, int], None] | None = None) -> dict[str, float]:
    """Measure models on the CPU, add them to what is known, and return all.

    The deploy net runs with random weights, which take as long as trained ones, on one picture; the shortest of some passes counts.

    Args:
        names: Models of the zoo.
        progress: Called with (models done, all models).

    Raises:
        RunFailed: The cache cannot be written.
    """
    chosen = list(names)
    speeds = known_speeds()
    for done, name in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen))
        speeds[name] = _milliseconds(name)
    values = {"caffetools": caffetools.__version__, "threads": cpu_count(), "milliseconds": speeds}
    write_text(cache_folder() / _FILE, json.dumps(values, indent=2) + "\n")
    return speeds


def _milliseconds(name: str) -> float:
    import torch

    from caffetools.net.net import Net

    card = get_card(name)
    net = Net.from_file(card.network("deploy"), TEST)
    batch = {net.inputs[0]: torch.zeros(1, *card.input.shape)}
    times = []
    with torch.inference_mode():
        for _ in range(_PASSES + 1):
            start = time.perf_counter()
            net(batch)
            times.append(time.perf_counter() - start)
    # The first pass plans the others.
    return 1000 * min(times[1:])
