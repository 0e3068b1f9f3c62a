"""``exec``, ``eval`` and ``compile`` of Python 2 in converted scripts: they take Python 2, and ``exec`` sets variables of its function."""

from __future__ import annotations

import ast
import builtins
import functools
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from types import CodeType, FrameType, FunctionType
from typing import Any

from caffetools.errors import CaffeToolsError

Convert = Callable[[str, str], ast.Module]
Source = str | bytes | CodeType | io.TextIOWrapper
_NAMES = "__names_of_exec__"
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_CLOSED = (ast.GeneratorExp, ast.SetComp, ast.DictComp)
_FRAMES = ("<listcomp>", "<genexpr>", "<setcomp>", "<dictcomp>", "<lambda>")


class Code:
    """Compiles and runs code of Python 2; the methods take first whether ``/`` of integers rounds down where they are called.

    Args:
        convert: Converts source from Python 2 to a syntax tree.
    """

    def __init__(self, convert: Convert):
        self._compiled = functools.lru_cache(maxsize=256)(functools.partial(_compiled, convert))

    def compile(self, rounds: bool, source: str | bytes | ast.Module | ast.Expression, filename: str, mode: str, *rest: int) -> Any:
        """Return ``compile(source, filename, mode)``. Raises SyntaxError where that is neither Python 2 nor 3."""
        if isinstance(source, (str, bytes)):
            text = source if isinstance(source, str) else source.decode("utf-8", "replace")
            return self._compiled(text, filename, mode, rounds)
        return compile(source, filename, mode, *rest)

    def evaluate(self, rounds: bool, source: Source, names: dict[str, Any] | None = None, local: Mapping[str, Any] | None = None) -> object:
        """Return ``eval(source, names, local)``."""
        if names is None:
            names, local = _names_of(sys._getframe(1))
        return _run(self._code(rounds, source, "eval"), names, local)[0]

    def run(self, rounds: bool, source: Source, names: dict[str, Any] | None = None, local: MutableMapping[str, Any] | None = None) -> None:
        """Run ``exec source in names, local``."""
        if names is None:
            names, local = _names_of(sys._getframe(1))
        changed = _run(self._code(rounds, source, "exec"), names, local)[1]
        if local is not None and local is not names:
            local.update(changed)

    def run_in_function(self, rounds: bool, source: Source, names: dict[str, Any], local: Mapping[str, Any]) -> dict[str, Any]:
        """Run ``exec source`` in a function with the variables ``local``; return the variables that it then has."""
        own = {name: value for name, value in local.items() if name != _NAMES}
        return {**own, **_run(self._code(rounds, source, "exec"), names, own)[1]}

    def _code(self, rounds: bool, source: Source, mode: str) -> CodeType:
        if isinstance(source, io.TextIOWrapper):
            source = source.read()
        code: CodeType = source if isinstance(source, CodeType) else self.compile(rounds, source, "<string>", mode)
        return code


def _compiled(convert: Convert, text: str, filename: str, mode: str, rounds: bool) -> CodeType:
    source = f"({text.strip()})" if mode == "eval" else text
    if not rounds:
        source = f"from __future__ import division\n{source}"
    try:
        tree = convert(source, filename)
    except CaffeToolsError as error:
        raise SyntaxError(str(error)) from None
    if mode != "eval":
        return compile(tree, filename, mode, dont_inherit=True)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        raise SyntaxError("invalid syntax")
    return compile(ast.Expression(last.value), filename, "eval", dont_inherit=True)


def _run(code: CodeType, names: dict[str, Any], local: Mapping[str, Any] | None) -> tuple[object, dict[str, Any]]:
    """Run code; return its value and, where ``local`` is another dict than ``names``, what has changed of those variables."""
    names.setdefault("__builtins__", builtins)
    if local is None or local is names:
        return FunctionType(code, names)(), {}
    merged = {**names, **local}
    before = dict(merged)
    value = FunctionType(code, merged)()
    return value, {name: item for name, item in merged.items() if name not in before or before[name] is not item}


def _names_of(frame: FrameType) -> tuple[dict[str, Any], MutableMapping[str, Any]]:
    """Return the global and local names of a caller; what a comprehension runs in counts as its function."""
    local: MutableMapping[str, Any] = frame.f_locals
    while frame.f_code.co_name in _FRAMES and frame.f_back is not None:
        frame = frame.f_back
        local = {**frame.f_locals, **local}
    return frame.f_globals, local


class Execs(ast.NodeTransformer):
    """Lets ``exec`` without ``in`` set variables of the function that it stands in, as in Python 2, and names ``eval`` and ``compile`` of that.

    Such a function gets a dict of its variables from each ``exec``: its own are set from it, and the other names that it reads are looked up
    there first. Python 2 has no functions inside of such a one that read its variables.

    Args:
        rounds: Whether ``/`` of integers rounds down in the script.
        names: Names of the helpers for "exec", "eval", "compile" and "function".
    """

    def __init__(self, names: Mapping[str, str], *, rounds: bool):
        self._helpers, self._rounds = names, ast.Constant(rounds)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        calls = [part for part in _own_parts(node.body) if isinstance(part, ast.Expr) and _is_exec(part.value)]
        if calls:
            rewriter = _Function(node, set(map(id, calls)), self._helpers["function"], self._rounds)
            rewritten = [rewriter.visit(part) for part in node.body]
            node.body = [one for part in rewritten for one in (part if isinstance(part, list) else [part])]
            start = 1 if ast.get_docstring(node, clean=False) is not None else 0
            node.body.insert(start, ast.Assign([ast.Name(_NAMES, ast.Store())], ast.Dict([], []), lineno=node.lineno))
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in ("exec", "eval", "compile") and node.args:
            node.func.id = self._helpers[node.func.id]
            node.args.insert(0, self._rounds)
        return node


class _Function(ast.NodeTransformer):
    """Rewrites a statement of a function that calls ``exec``; see :class:`Execs`.

    Args:
        function: The function.
        calls: The ids of its ``exec`` statements.
        helper: The name of the function that runs them.
        rounds: The first argument of that.
    """

    def __init__(self, function: ast.FunctionDef, calls: set[int], helper: str, rounds: ast.expr):
        self._calls, self._helper, self._rounds = calls, helper, rounds
        declared = {name for part in _own_parts(function.body) if isinstance(part, ast.Global) for name in part.names}
        self._own = set(_bound(function)) - declared
        # Python's own names are read by what else is converted.
        self._kept = self._own | declared | set(vars(builtins))

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, _SCOPES):
            return node
        if isinstance(node, ast.Expr) and id(node) in self._calls:
            return self._exec(node)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in self._kept and not node.id.startswith("__"):
            return ast.copy_location(looked_up(_NAMES, node.id), node)
        if isinstance(node, _CLOSED):
            before, self._kept = self._kept, self._kept | set(_targets(node))
            found = self.generic_visit(node)
            self._kept = before
            return found
        return super().visit(node)

    def _exec(self, node: ast.Expr) -> list[ast.stmt]:
        call = self.generic_visit(node.value)
        names = [ast.Call(ast.Name(name, ast.Load()), [], []) for name in ("globals", "locals")]
        local = ast.Dict([None, None], [ast.Name(_NAMES, ast.Load()), names[1]])
        source = call.args[0] if isinstance(call, ast.Call) else ast.Constant("")
        run = ast.Call(ast.Name(self._helper, ast.Load()), [self._rounds, source, names[0], local], [])
        statements: list[ast.stmt] = [ast.Assign([ast.Name(_NAMES, ast.Store())], run, lineno=node.lineno)]
        for name in sorted(self._own):
            value = ast.Subscript(ast.Name(_NAMES, ast.Load()), ast.Constant(name), ast.Load())
            test = ast.Compare(ast.Constant(name), [ast.In()], [ast.Name(_NAMES, ast.Load())])
            statements.append(ast.If(test, [ast.Assign([ast.Name(name, ast.Store())], value, lineno=node.lineno)], []))
        return [ast.copy_location(statement, node) for statement in statements]


def looked_up(names: str, name: str) -> ast.IfExp:
    """Return ``names[name] if name in names else name``."""
    test = ast.Compare(ast.Constant(name), [ast.In()], [ast.Name(names, ast.Load())])
    found = ast.Subscript(ast.Name(names, ast.Load()), ast.Constant(name), ast.Load())
    return ast.IfExp(test, found, ast.Name(name, ast.Load()))


def _is_exec(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "exec" and len(node.args) == 1


def _own_parts(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield the parts of a function that run in it, not in functions and classes inside of it."""
    for node in nodes:
        yield node
        if not isinstance(node, _SCOPES):
            yield from _own_parts(ast.iter_child_nodes(node))


def _bound(function: ast.FunctionDef) -> Iterator[str]:
    """Yield the names that a function binds: its arguments, and what is assigned, imported or defined in it."""
    given = function.args
    yield from (part.arg for part in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if part is not None)
    for part in _own_parts(function.body):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id
        elif isinstance(part, (ast.FunctionDef, ast.ClassDef)):
            yield part.name
        elif isinstance(part, ast.alias):
            yield (part.asname or part.name).partition(".")[0]
        elif isinstance(part, ast.ExceptHandler) and part.name:
            yield part.name


def _targets(node: ast.AST) -> Iterator[str]:
    for generator in getattr(node, "generators", ()):
        yield from (part.id for part in ast.walk(generator.target) if isinstance(part, ast.Name))
