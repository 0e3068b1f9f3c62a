"""Scripts written for Python 2: recognizing them, and converting the usual ones."""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import importlib.machinery
import importlib.util
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Protocol

from caffetools.errors import CaffeToolsError
from caffetools.pycaffe import python2_exec, python2_files, python2_lists, python2_modules, python2_numbers, python2_order

_PACKAGE = Path(__file__).parent.parent
# The fixers of 2to3 that scripts need; those that only change the style are left out.
_FIXERS = (
    *("apply", "basestring", "dict", "except", "exec", "execfile", "funcattrs", "getcwdu", "has_key", "import", "imports", "imports2"),
    *("input", "intern", "metaclass", "methodattrs", "ne", "next", "nonzero", "numliterals", "operator", "paren", "print"),
    *("raise", "raw_input", "reduce", "reload", "renames", "repr", "standarderror", "sys_exc", "throw", "tuple_params", "types", "unicode"),
    *("urllib", "xrange", "xreadlines"),
)
_OLD_NAMES = ("xrange", "raw_input", "unicode", "long", "basestring", "reload", "execfile", "cmp", "reduce", "file", "unichr")
_OLD_MODULES = ("cPickle", "ConfigParser", "StringIO", "cStringIO", "urllib2", "Queue", "commands", "httplib", "Tkinter", "__builtin__")
_OLD_METHODS = ("has_key", "iteritems", "itervalues", "iterkeys", "tostring")
_OLD_SYNTAX = re.compile(
    r"""^\s*print\s+[^(=\s]|^\s*print\s*>>|^\s*except\s+[\w.,() ]+,\s*\w+\s*:|^\s*raise\s+[\w.]+\s*,|<>|\bur?'|\b0[0-7]+\b|^\s*exec\s+[\w'"]|\d[lL]\b|`""",
    re.VERBOSE,
)
_COMPARE, _KEY = "__compare_as_python2__", "__key_of_comparison__"
_ORDER, _SORT, _SORTED, _EXTREME, _METHODS = (
    *("__order_as_python2__", "__sort_as_python2__", "__sorted_as_python2__", "__extreme_as_python2__", "__methods_of_python2__"),
)
# Functions that are called in converted scripts, by their names there.
_ORDERING = {
    _COMPARE: python2_order.compare,
    _KEY: functools.cmp_to_key,
    _ORDER: python2_order.order,
    _SORT: python2_order.sort,
    _SORTED: python2_order.sorted_values,
    _EXTREME: python2_order.extreme,
    _METHODS: python2_order.with_methods,
}
_HELPERS = {
    "__divide_as_python2__": python2_numbers.divide,
    "__divide_into_as_python2__": python2_numbers.divide_into,
    "__recode_as_python2__": python2_modules.recode,
    "__print_as_python2__": python2_modules.print_text,
    "__round_as_python2__": python2_numbers.round_half_away,
    "__map_as_python2__": python2_lists.map_list,
    "__filter_as_python2__": python2_lists.filter_list,
    "__zip_as_python2__": python2_lists.zip_list,
    "__slices_of_python2__": python2_lists.with_slices,
    "__str_as_python2__": python2_modules.str_of,
    "__delete_as_python2__": python2_modules.translate,
    "__format_as_python2__": python2_modules.format_text,
    "__bytes_as_python2__": python2_modules.to_bytes,
    "__message_as_python2__": python2_modules.message_of,
    "__open_as_python2__": python2_files.open_file,
    "__octal_as_python2__": python2_numbers.octal,
    "__buffer_as_python2__": python2_modules.buffer_of,
    "__coerce_as_python2__": python2_numbers.coerce,
    "__hex_as_python2__": python2_numbers.hexadecimal,
    "__repr_as_python2__": python2_numbers.represent,
    "__shown_as_python2__": python2_modules.shown,
    "__bytes_of_python2__": python2_files.Bytes,
    "__children_as_python2__": python2_modules.children_of,
    "__elements_as_python2__": python2_modules.elements_of,
    "__ord_as_python2__": python2_modules.ordinal,
    python2_numbers.LONG: python2_numbers.Long,
}
_DIVIDE, _DIVIDE_INTO, _RECODE, _PRINT, _ROUND, _MAP, _FILTER, _ZIP, _SLICES, *_OTHERS = _HELPERS
_STR, _TRANSLATE, _FORMAT, _TO_BYTES, _MESSAGE, _OPEN, _OCTAL, _BUFFER, _COERCE, *_NEWER = _OTHERS
_HEX, _REPR, _SHOWN, _BYTES, _CHILDREN, _ELEMENTS, _ORDINAL, _LONG = _NEWER
# What runs code of Python 2; see :class:`python2_exec.Execs`.
_EXECS = {name: f"__{name}_as_python2__" for name in ("exec", "eval", "compile", "function")}
_EXCEPTION = ("exc_type", "exc_value", "exc_traceback")
# What 2to3 renames where it is called only.
_RENAMED = {"cmp": _COMPARE, "raw_input": "input", "xrange": "range", "unichr": "chr", "buffer": _BUFFER, "coerce": _COERCE}
# An except clause that takes an exception apart and has its statements on the same line, which 2to3 does not convert.
_EXCEPT_APART = re.compile(r"^([ \t]*except[ \t]+[^:#\n]+?),[ \t]*(\([\w, \t]+\))[ \t]*:(?=[ \t]*[^\s#])", re.MULTILINE)
# Names of the module types that 2to3 takes for bytes.
_STRING_TYPES = re.compile(r"\btypes\.StringTypes?\b")


class _Leaf(Protocol):
    """A token of 2to3's trees; ``lineno`` is 0 where a fixer has made it, ``prefix`` the space and comments before it."""

    prefix: str
    value: object
    lineno: int


class _Tree(Protocol):
    def leaves(self) -> Iterable[_Leaf]: ...


class Python2Error(CaffeToolsError):
    """A script that is written for Python 2.

    Args:
        place: File and line of the first statement that is not Python 3.
        script: The script that was run.
    """

    exit_code = 1

    def __init__(self, place: str, script: Path):
        super().__init__(f"{place}: this is written for Python 2; `caffetools run --py2 {script}` converts and runs it")


def is_python2(error: SyntaxError) -> bool:
    """Return whether the line of a syntax error is Python 2."""
    if isinstance(error, TabError) or "Missing parentheses in call to" in (error.msg or ""):
        return True
    return bool(error.text and _OLD_SYNTAX.search(error.text)) or "multiple exception types must be parenthesized" in (error.msg or "")


def hint(error: BaseException) -> str:
    """Return what to do where ``error`` comes from a name of Python 2; empty for other errors."""
    old = (
        (isinstance(error, NameError) and getattr(error, "name", None) in _OLD_NAMES)
        or (isinstance(error, ImportError) and error.name in _OLD_MODULES)
        or (isinstance(error, AttributeError) and getattr(error, "name", None) in _OLD_METHODS)
    )
    return "this is a name of Python 2; `caffetools run --py2 SCRIPT` converts the script" if old else ""


def read(path: Path) -> str:
    """Return the text of a Python file in the encoding that it names; Latin-1 where it names none and is not UTF-8."""
    try:
        with tokenize.open(path) as stream:
            return stream.read()
    except (SyntaxError, UnicodeDecodeError):
        return path.read_text(encoding="latin-1")


def futures(tree: ast.Module) -> set[str]:
    """Return the names that a script imports from ``__future__``."""
    return {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__" for alias in node.names}


def convert(source: str, name: str, *, future: Iterable[str] = ()) -> ast.Module:
    """Convert source from Python 2: statements and names by the fixers of 2to3, and ``/`` of integers, which rounds down there.

    Args:
        source: The text.
        name: Its file, for errors.
        future: Names of ``__future__`` that are in force: those of a notebook's cells before this one.

    Returns:
        Its syntax tree, with the line numbers of the source.

    Raises:
        CaffeToolsError: It cannot be converted; names file and line.
    """
    text = _STRING_TYPES.sub("str", source.expandtabs(8))
    text = _EXCEPT_APART.sub(r"\1, __exception__: \2 = __exception__.args;", text)
    text = python2_numbers.mark_longs(text, _tokenizer())
    try:
        converted, lines = _refactor(text if text.endswith("\n") else f"{text}\n", name, print_function="print_function" in future)
        tree = ast.parse(converted, name)
    except SyntaxError as error:
        raise CaffeToolsError(f"cannot be converted from Python 2: {error.msg}", path=name, line=error.lineno or 0) from None
    future = {*future, *futures(tree)}
    if "division" not in future:
        _Division().visit(tree)
    _Comparison(tree).visit(tree)
    python2_exec.Execs(_EXECS, rounds="division" not in future).visit(tree)
    _Strings(commas="print_function" not in future).visit(tree)
    python2_lists.Leaks(tree).visit(tree)
    ast.fix_missing_locations(tree)
    if lines:
        _place(tree, lines, text.split("\n"))
    return tree


def _place(tree: ast.Module, lines: Sequence[int], source: Sequence[str]) -> None:
    """Give each node of the converted text the line of ``source`` that it comes from; ``lines`` holds one for each line of that text."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.expr, ast.stmt, ast.excepthandler, ast.arg, ast.keyword, ast.alias)):
            number = lines[min(node.lineno, len(lines)) - 1]
            line = source[number - 1] if number <= len(source) else ""
            node.lineno = node.end_lineno = number
            # The columns are those of the converted text; a whole line is shown without marks.
            node.col_offset, node.end_col_offset = len(line) - len(line.lstrip()), len(line.rstrip().encode())


def install_importer() -> None:
    """Convert modules of the user's that are imported from now on; ``sys.meta_path`` gets a finder for them."""
    import builtins

    code = python2_exec.Code(convert)
    runs = dict(zip(_EXECS.values(), (code.run, code.evaluate, code.compile, code.run_in_function), strict=True))
    for name, helper in {**_ORDERING, **_HELPERS, **runs}.items():
        setattr(builtins, name, helper)
    python2_modules.install()
    sys.meta_path.insert(0, _Finder())


class _Division(ast.NodeTransformer):
    """Replaces ``a / b`` and ``a /= b`` by a call of :func:`python2_numbers.divide`."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return ast.copy_location(_call(node.left, node.right), node) if isinstance(node.op, ast.Div) else node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        # The target is computed twice below: it may not call anything.
        if not isinstance(node.op, ast.Div) or any(isinstance(part, ast.Call) for part in ast.walk(node.target)):
            return node
        load = copy.deepcopy(node.target)
        load.ctx = ast.Load()
        return ast.copy_location(ast.Assign([node.target], ast.Call(ast.Name(_DIVIDE_INTO, ast.Load()), [load, node.value], [])), node)


class _Comparison(ast.NodeTransformer):
    """Replaces what orders values, and ``cmp``, by the functions of :mod:`python2_order`, and comparison functions by keys; old names, too.

    Args:
        tree: The script; functions of its own names are left alone.
    """

    def __init__(self, tree: ast.Module):
        nodes = list(ast.walk(tree))
        bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        bound |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        bound |= {alias.asname or alias.name for alias in nodes if isinstance(alias, ast.alias)}
        self._own = bound
        self._functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)} | {_COMPARE}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        new = {**_RENAMED, "map": _MAP, "filter": _FILTER, "zip": _ZIP, "file": _OPEN, "long": "int"}.get(node.id)
        return ast.copy_location(ast.Name(new, ast.Load()), node) if new and node.id not in self._own else node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        if any(isinstance(part, ast.FunctionDef) and re.fullmatch("__(cmp|r?div|idiv)__", part.name) for part in node.body):
            node.decorator_list.append(ast.copy_location(ast.Name(_METHODS, ast.Load()), node))
        if any(isinstance(part, ast.FunctionDef) and part.name in python2_lists.SLICE_METHODS for part in node.body):
            node.decorator_list.append(ast.copy_location(ast.Name(_SLICES, ast.Load()), node))
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self._name_longs(node.left, *node.comparators)
        self.generic_visit(node)
        values = [node.left, *node.comparators]
        # Of a chain the values in the middle stand in two comparisons: only those that are computed without effects may.
        if not all(isinstance(value, (ast.Name, ast.Constant, ast.Attribute)) for value in values[1:-1]):
            return node
        parts: list[ast.expr] = []
        for left, sign, right in zip(values[:-1], node.ops, values[1:], strict=True):
            if isinstance(sign, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)):
                name = {ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge"}[type(sign)]
                parts.append(ast.Call(ast.Name(_ORDER, ast.Load()), [ast.Constant(name), left, right], []))
            else:
                parts.append(ast.Compare(left, [sign], [right]))
        return ast.copy_location(parts[0] if len(parts) == 1 else ast.BoolOp(ast.And(), parts), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self._name_longs(node.func, *(node.args[1:] if _is_name(node.func, "isinstance") else ()))
        self.generic_visit(node)
        function = node.func
        method = isinstance(function, ast.Attribute) and function.attr == "sort"
        name = function.id if isinstance(function, ast.Name) and function.id not in self._own else ""
        if name in ("min", "max"):
            node.func, node.args = ast.Name(_EXTREME, ast.Load()), [ast.Constant(name), *node.args]
        if not method and name != "sorted":
            return node
        if method and len(node.args) == 1 and not node.keywords and self._is_function(node.args[0]):
            node.keywords = [ast.keyword("cmp", node.args.pop())]
        for keyword in node.keywords:
            if keyword.arg == "cmp":
                keyword.arg, keyword.value = "key", ast.Call(ast.Name(_KEY, ast.Load()), [keyword.value], [])
        node.func = ast.Name(_SORT if method else _SORTED, ast.Load())
        if isinstance(function, ast.Attribute):
            node.args.insert(0, function.value)
        return node

    def _name_longs(self, *nodes: ast.expr) -> None:
        """Let ``long`` be a type of its own where it is called or compared with; as the type of arrays and elsewhere it is int."""
        for node in nodes:
            for part in node.elts if isinstance(node, (ast.Tuple, ast.List)) else (node,):
                if isinstance(part, ast.Name) and part.id == "long" and "long" not in self._own:
                    part.id = _LONG

    def _is_function(self, node: ast.expr) -> bool:
        """Return whether the argument of a method ``sort`` is a comparison: an array's takes its axis there."""
        return isinstance(node, ast.Lambda) or (isinstance(node, ast.Name) and node.id in self._functions)


class _Strings(ast.NodeTransformer):
    """Imports the modules of :mod:`python2_modules`, and calls its functions for what differs in Python 2.

    That is what depends on bytes being strings (``print``, ``"%s" % x``, ``x.encode("hex")``), ``round``, ``str`` of floats, and methods
    that are gone or renamed: ``tostring`` of arrays, ``translate`` with characters to delete, ``list.__getslice__``.

    Args:
        commas: ``print`` is a statement, so that 2to3 has written ``end=" "`` for a comma at its end.
    """

    def __init__(self, *, commas: bool):
        self._commas = commas

    def visit_Import(self, node: ast.Import) -> ast.AST:
        for alias in node.names:
            if name := python2_modules.name_of(alias.name):
                alias.name, alias.asname = name, alias.asname or alias.name
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.module and not node.level:
            node.module = python2_modules.name_of(node.module) or node.module
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not isinstance(node.value, bytes):
            return node
        text = ast.Constant(node.value.decode()) if node.value.isascii() else ast.Call(ast.Name(_BYTES, ast.Load()), [node], [])
        return ast.copy_location(text, node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Mod) or not isinstance(node.left, ast.Constant) or not isinstance(node.left.value, str):
            return node
        return ast.copy_location(ast.Call(ast.Name(_FORMAT, ast.Load()), [node.left, node.right], []), node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if _is_name(node.value, "sys") and node.attr == "platform" and isinstance(node.ctx, ast.Load) and sys.platform == "linux":
            return ast.copy_location(ast.Constant("linux2"), node)
        if _is_name(node.value, "sys") and node.attr in _EXCEPTION:
            info = ast.Call(ast.Attribute(node.value, "exc_info", ast.Load()), [], [])
            return ast.copy_location(ast.Subscript(info, ast.Constant(_EXCEPTION.index(node.attr)), ast.Load()), node)
        if node.attr != "message" or not isinstance(node.ctx, ast.Load):
            return node
        return ast.copy_location(ast.Call(ast.Name(_MESSAGE, ast.Load()), [node.value], []), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name):
            changed = {"print": _PRINT, "round": _ROUND, "open": _OPEN, "oct": _OCTAL, "hex": _HEX, "repr": _REPR, "ord": _ORDINAL}
            if node.args:
                changed["str"] = _STR
            if node.func.id == "print" and self._commas:
                ends = [word for word in node.keywords if word.arg == "end"]
                node.keywords = [word for word in node.keywords if word.arg != "end"]
                node.keywords.append(ast.keyword("comma", ast.Constant(bool(ends))))
                if any(isinstance(part, ast.Call) for value in node.args[1:] for part in ast.walk(value)):
                    # Each value is written before the next one is computed, which may change it.
                    node.args[:-1] = [ast.Call(ast.Name(_SHOWN, ast.Load()), [value], []) for value in node.args[:-1]]
            node.func.id = changed.get(node.func.id, node.func.id)
            return node
        if not isinstance(node.func, ast.Attribute):
            return node
        method, codec = node.func.attr, node.args[0] if node.args else None
        if method in ("getchildren", "getiterator"):
            name = _CHILDREN if method == "getchildren" else _ELEMENTS
            return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), [node.func.value, *node.args], node.keywords), node)
        if method == "translate" and len(node.args) == 2:
            return ast.copy_location(ast.Call(ast.Name(_TRANSLATE, ast.Load()), [node.func.value, *node.args], []), node)
        if method in python2_lists.SLICE_METHODS and len(node.args) > 2:
            node.func.attr = python2_lists.SLICE_METHODS[method]
            node.args[1:3] = [ast.Call(ast.Name("slice", ast.Load()), node.args[1:3], [])]
            return node
        if method == "tostring" and codec is None and not node.keywords:
            return ast.copy_location(ast.Call(ast.Name(_TO_BYTES, ast.Load()), [node.func.value], []), node)
        if method not in ("encode", "decode") or not isinstance(codec, ast.Constant) or not isinstance(codec.value, str):
            return node
        arguments = [node.func.value, ast.Constant(method), *node.args]
        return ast.copy_location(ast.Call(ast.Name(_RECODE, ast.Load()), arguments, node.keywords), node)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _call(left: ast.expr, right: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(_DIVIDE, ast.Load()), [left, right], [])


@cache
def _package() -> str:
    for package in ("fissix", "lib2to3"):
        if importlib.util.find_spec(package) is not None:
            return package
    raise CaffeToolsError("--py2 needs the package fissix (pip install caffetools[py2])")


@cache
def _tool(*, print_function: bool) -> Any:
    refactor = importlib.import_module(f"{_package()}.refactor")
    fixers = [f"{_package()}.fixes.fix_{name}" for name in _FIXERS if name != "print" or not print_function]
    return refactor.RefactoringTool(fixers, {"print_function": print_function})


def _tokenizer() -> Any:
    return importlib.import_module(f"{_package()}.pgen2.tokenize").generate_tokens


def _refactor(source: str, name: str, *, print_function: bool) -> tuple[str, list[int]]:
    """Return the converted text, and for each of its lines the line of ``source`` that it comes from; none where nothing is converted."""
    tool = _tool(print_function=print_function)
    try:
        tree = tool.refactor_string(source, name)
        return str(tree), _origins(tree)
    except Exception as error:
        # A file that already has print() as a function: the grammar of Python 2 does not take all of it.
        try:
            ast.parse(source)
        except SyntaxError:
            place: Any = getattr(error, "context", None)
            line = place[1][0] if place else 0
            raise CaffeToolsError("cannot be converted from Python 2: its syntax is not Python 2's either", path=name, line=line) from None
        return source, []


def _origins(tree: _Tree) -> list[int]:
    """Return the original line of each line of a converted tree: that of its first token which the source has too."""
    origins: list[int] = []
    last, pending = 1, 0
    for leaf in tree.leaves():
        # The fixer of sys.exc_type makes one of an int.
        value = str(leaf.value)
        pending += leaf.prefix.count("\n")
        if leaf.lineno and value.strip():
            last = max(last, leaf.lineno)
            origins += [last] * (pending + 1 - len(origins))
        pending += value.count("\n")
    return [*origins, *([last] * (pending + 1 - len(origins)))]


class _Finder:
    """Finds the user's modules: those that lie neither in the standard library nor in site-packages."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or not spec.origin or not spec.origin.endswith(".py") or _is_installed(spec.origin):
            return None
        spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        # Not through the cache of byte code, which Python 3 shares.
        return compile(convert(read(Path(self.path)), self.path), self.path, "exec", dont_inherit=True)


def _is_installed(origin: str) -> bool:
    folders = [*(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")), str(_PACKAGE)]
    return "site-packages" in origin or "dist-packages" in origin or any(origin.startswith(folder) for folder in folders)
