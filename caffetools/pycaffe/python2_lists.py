"""Lists of Python 2 in converted scripts: what comprehensions leave behind, ``map``, ``filter`` and ``zip``, and methods for slices."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import zip_longest
from typing import Any, TypeVar

from caffetools.pycaffe.python2_exec import looked_up

T = TypeVar("T", bound="type[Any]")
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Module)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_INNER, _CLASS_NAMES = "__in_comprehension_", "__names_of_class__"
SLICE_METHODS = {"__getslice__": "__getitem__", "__setslice__": "__setitem__", "__delslice__": "__delitem__"}


def map_list(function: Callable[..., Any] | None, *sequences: Iterable[Any]) -> list[Any]:
    """Return ``map(function, …)`` of Python 2: a list as long as the longest sequence; without a function, the items or tuples of them."""
    if len(sequences) == 1:
        return list(sequences[0]) if function is None else [function(item) for item in sequences[0]]
    rows = zip_longest(*sequences)
    return list(rows) if function is None else [function(*row) for row in rows]


def filter_list(function: Callable[[Any], Any] | None, values: Iterable[Any]) -> Any:
    """Return ``filter(function, values)`` of Python 2: a str or a tuple of one, else a list."""
    kept = list(filter(function, values))
    if isinstance(values, str):
        return "".join(kept)
    return tuple(kept) if isinstance(values, tuple) else kept


def zip_list(*sequences: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Return ``zip(…)`` of Python 2, a list."""
    return list(zip(*sequences, strict=False))


def with_slices(cls: T) -> T:
    """Give a class that has ``__getslice__`` and the like what Python 3 calls with a slice; used as a decorator."""
    for old, new in SLICE_METHODS.items():
        if old in vars(cls):
            setattr(cls, new, _taking_slices(vars(cls)[old], getattr(cls, new, None)))
    return cls


def _taking_slices(method: Callable[..., Any], other: Callable[..., Any] | None) -> Callable[..., Any]:
    def call(self: Sized, key: object, *values: object) -> Any:
        if isinstance(key, slice) and key.step is None:
            bounds = [0 if key.start is None else key.start, sys.maxsize if key.stop is None else key.stop]
            start, stop = (bound + len(self) if bound < 0 else bound for bound in bounds)
            return method(self, max(start, 0), max(stop, 0), *values)
        if other is None:
            raise TypeError(f"'{type(self).__name__}' object is not subscriptable")
        return other(self, key, *values)

    return call


class Leaks(ast.NodeTransformer):
    """Lets list comprehensions leave their variables behind, as in Python 2, where the script reads them afterwards.

    ``[f(x) for x in y]`` becomes ``[f(x) for _x in y if [x := _x]]``. In the body of a class, where Python 3 has no such assignment and a
    comprehension does not see the class's names, these are looked up in and written to ``locals()``. Left alone are comprehensions inside of
    what another one runs over.

    Args:
        tree: The script.
    """

    def __init__(self, tree: ast.Module):
        self._scopes: list[ast.AST] = [tree]
        self._hidden: list[set[str]] = [set()]

    def visit(self, node: ast.AST) -> Any:
        if not isinstance(node, (*_SCOPES, ast.ClassDef)):
            return super().visit(node)
        self._scopes.append(node)
        self._hidden.append(set())
        self.generic_visit(node)
        self._hidden.pop()
        self._scopes.pop()
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        if isinstance(self._scopes[-1], ast.ClassDef):
            return _InClass().visit_ListComp(node)
        names = self._leaking(node)
        self._visit_inner(node)
        for generator in node.generators if names else ():
            targets = [part for part in ast.walk(generator.target) if isinstance(part, ast.Name)]
            leaked = [ast.NamedExpr(ast.Name(part.id, ast.Store()), ast.Name(_INNER + part.id, ast.Load())) for part in targets]
            for part in targets:
                part.id = _INNER + part.id
            generator.ifs.insert(0, ast.List(list[ast.expr](leaked), ast.Load()))
        return node

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.AST:
        return self._visit_closed(node)

    def visit_SetComp(self, node: ast.SetComp) -> ast.AST:
        return self._visit_closed(node)

    def visit_DictComp(self, node: ast.DictComp) -> ast.AST:
        return self._visit_closed(node)

    def _visit_closed(self, node: ast.GeneratorExp | ast.SetComp | ast.DictComp) -> ast.AST:
        self._hidden[-1] |= set(_targets(node))
        self._visit_inner(node)
        return node

    def _visit_inner(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp) -> None:
        """Visit the parts of a comprehension where the assignment is allowed: all but what it runs over."""
        for field in ("elt", "key", "value"):
            if hasattr(node, field):
                setattr(node, field, self.visit(getattr(node, field)))
        for generator in node.generators:
            generator.ifs = [self.visit(condition) for condition in generator.ifs]

    def _leaking(self, node: ast.ListComp) -> set[str]:
        """Return the names to leave behind, all of them or none."""
        names = set(_targets(node))
        plain = all(
            isinstance(part, (ast.Name, ast.Tuple, ast.List, ast.expr_context)) for g in node.generators for part in ast.walk(g.target)
        )
        if isinstance(self._scopes[-1], ast.ClassDef) or names & self._hidden[-1] or not plain:
            return set()
        captured = any(isinstance(part, ast.Lambda) for part in ast.walk(node.elt))
        return names if captured or names & set(_read_outside(self._scopes[-1])) else set()


class _InClass(ast.NodeTransformer):
    """Rewrites a list comprehension in the body of a class: its names are those of ``locals()`` there, which it also writes its variables to."""

    def __init__(self) -> None:
        self._bound: list[set[str]] = []

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        outermost = not self._bound
        self._visit_comprehension(node)
        for generator in node.generators:
            given = [ast.keyword(name, ast.Name(name, ast.Load())) for name in _names_in(generator.target)]
            write = ast.Call(ast.Attribute(ast.Name(_CLASS_NAMES, ast.Load()), "update", ast.Load()), [], given)
            generator.ifs.insert(0, ast.List([write], ast.Load()))
        if outermost:
            # What the first "for" of a comprehension runs over is computed in the class itself.
            names = ast.List([ast.Call(ast.Name("locals", ast.Load()), [], [])], ast.Load())
            node.generators.insert(0, ast.comprehension(ast.Name(_CLASS_NAMES, ast.Store()), names, [], 0))
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        bound = any(node.id in names for names in self._bound) or node.id.startswith("__")
        return node if bound or not isinstance(node.ctx, ast.Load) else ast.copy_location(looked_up(_CLASS_NAMES, node.id), node)

    def _visit_comprehension(self, node: ast.AST) -> ast.AST:
        self._bound.append(set(_targets(node)))
        self.generic_visit(node)
        self._bound.pop()
        return node

    visit_GeneratorExp = visit_SetComp = visit_DictComp = _visit_comprehension


def _names_in(node: ast.AST) -> Iterator[str]:
    return (part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))


def _targets(node: ast.AST) -> Iterator[str]:
    for generator in getattr(node, "generators", ()):
        yield from (part.id for part in ast.walk(generator.target) if isinstance(part, ast.Name))


def _read_outside(node: ast.AST, bound: frozenset[str] = frozenset()) -> Iterator[str]:
    """Return the names that are read in a scope, without those that a comprehension reads of its own."""
    if isinstance(node, _COMPREHENSIONS):
        bound = bound | frozenset(_targets(node))
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in bound:
        yield node.id
    for child in ast.iter_child_nodes(node):
        yield from _read_outside(child, bound)
