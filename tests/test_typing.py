"""How much of the package is typed: parameters that are annotated ``Any``."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "caffetools"
_MOST = 80


def count_any() -> tuple[Counter[str], int]:
    """Return room → parameters annotated ``Any``, and the number of all annotated parameters."""
    rooms: Counter[str] = Counter()
    total = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = node.args
            for parameter in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
                if parameter is not None and parameter.annotation is not None:
                    total += 1
                    rooms[path.relative_to(PACKAGE).parts[0]] += ast.unparse(parameter.annotation) in ("Any", "Any | None")
    return rooms, total


def test_few_parameters_are_any() -> None:
    rooms, total = count_any()
    found = {room: number for room, number in rooms.most_common() if number}
    assert total > 5000
    assert sum(found.values()) <= _MOST, f"{sum(found.values())} of {total} parameters are Any: {found}"
