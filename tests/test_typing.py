"""How much of the package is typed: parameters that are annotated ``Any``, and what the public API returns."""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from pathlib import Path

import caffetools as ct
from caffetools.graph.summary import Summary
from caffetools.onnx.verify import Verification
from caffetools.project.retargeting import RetargetResult
from caffetools.quant.quantize import Quantization
from caffetools.solver.run import TrainResult
from caffetools.solver.testing import TestScores

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


def test_what_the_public_api_returns_has_a_type() -> None:
    functions = {name: getattr(ct, name) for name in ct.__all__ if inspect.isfunction(getattr(ct, name))}
    for owner in (ct.Net, ct.Solver, ct.Project, Summary, RetargetResult, TrainResult, TestScores, Verification, Quantization):
        for name, member in vars(owner).items():
            function = member.fget if isinstance(member, property) else member
            if not name.startswith("_") and inspect.isfunction(function) and function.__module__.startswith("caffetools"):
                functions[f"{owner.__name__}.{name}"] = function
        fields = {name: str(kind) for name, kind in vars(owner).get("__annotations__", {}).items() if not name.startswith("_")}
        assert not [name for name, kind in fields.items() if kind == "Any"], owner
    assert {"Project.status", "RetargetResult.train_val", "TrainResult.snapshot"} <= functions.keys()
    assert not [name for name, function in functions.items() if function.__annotations__.get("return", "") in ("Any", "")]
