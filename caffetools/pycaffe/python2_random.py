"""``random`` of Python 2 in converted scripts: the same seed gives the numbers, shuffles and samples that it gave there."""

from __future__ import annotations

import math
import random as _random
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from typing import Any, TypeVar, cast

T = TypeVar("T")


class OldRandom(_random.Random):
    """The generator of Python 2.7: integers come from ``random()``, and texts are seeded by their hash there."""

    def seed(self, a: object = None, version: int = 1) -> None:
        """Set the state from an int, a text or the time."""
        super().seed(cast("float | str | bytes | None", a), version=version)

    def _below(self, n: int) -> int:
        return int(self.random() * n)

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        """Return a number of ``range(start, stop, step)``. Raises ValueError where that is empty."""
        values = range(start) if stop is None else range(start, stop, step)
        if not values:
            raise ValueError(f"empty range for randrange() ({start}, {stop}, {step})")
        return values[self._below(len(values))]

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]
        """Return an item of ``seq``. Raises IndexError where it is empty."""
        return seq[self._below(len(seq))]

    def shuffle(self, x: MutableSequence[Any], random: Callable[[], float] | None = None) -> None:
        """Shuffle ``x`` in place."""
        draw = random or self.random
        for i in reversed(range(1, len(x))):
            j = int(draw() * (i + 1))
            x[i], x[j] = x[j], x[i]

    def sample(self, population: Iterable[T], k: int, **options: object) -> list[T]:
        """Return ``k`` different items. Raises ValueError where there are fewer."""
        items = population if isinstance(population, Sequence) else list(population)
        n = len(items)
        if not 0 <= k <= n:
            raise ValueError("sample larger than population")
        size = 21 + (4 ** math.ceil(math.log(k * 3, 4)) if k > 5 else 0)
        if n <= size:
            pool = list(items)
            result = []
            for i in range(k):
                j = self._below(n - i)
                result.append(pool[j])
                pool[j] = pool[n - i - 1]
            return result
        chosen: dict[int, None] = {}
        while len(chosen) < k:
            chosen.setdefault(self._below(n))
        return [items[j] for j in chosen]


_SHARED = OldRandom()
# The functions of the module: methods of one generator, which starts at the time.
FUNCTIONS: dict[str, Any] = {
    **{name: getattr(_SHARED, name) for name in _random.__all__ if hasattr(OldRandom, name) and not name[0].isupper()},
    "Random": OldRandom,
    "jumpahead": lambda n: None,
}
