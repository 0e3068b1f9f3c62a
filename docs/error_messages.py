"""The page of all messages of errors, read from the code: built with the site (site_hooks.py), so that no copy of it can be out of date.

docs/errors.md explains the frequent ones; this page has every one, so that the search of the site finds a message that somebody pastes.
"""

from __future__ import annotations

import ast
import html
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent / "caffetools"
HEAD = """# All messages of errors

Every message that the package has, by its class, with what to do about it; `…` stands for names and numbers of your files. The
[index of errors](../errors.md) explains the frequent ones at length. This page is made from the code when the site is built.
"""
# What to do about the errors of a class that do not state it themselves.
CURES = {
    "BundleError": "Build the bundle again with `caffetools bundle`.",
    "DataError": "Correct, replace or remove the file or record that the message names.",
    "EngineError": "Correct what the message names, or take another engine.",
    "ExportError": "Correct the layer or option that the message names, or cut the net before it (`--outputs`).",
    "ExportMismatch": "Please report it, with the prototxt; the file is not written.",
    "ImportFailed": "Export the model without that operator, or cut the model before it.",
    "ModelFileError": "Fetch or copy the file again, or give the file that belongs to this net.",
    "NetError": "Correct the layer that the message names, in the file and line that it names.",
    "PrototxtError": "Correct the line that the message names.",
    "SolverError": "Correct the field of the solver that the message names.",
    "WriteFailed": "Free some space, or write to another folder.",
    "ZooError": "Correct the name, or fetch again; `caffetools zoo list` shows the models.",
}
_OTHERS = "Correct the option or argument that the message names; `caffetools COMMAND --help` shows them."


class Message(NamedTuple):
    """A message of an error.

    Attributes:
        kind: Name of the class.
        text: The message, with ``…`` where names and numbers are filled in.
        cure: What to do.
    """

    kind: str
    text: str
    cure: str


def page(found: Iterable[Message] | None = None) -> str:
    """Return the page of the messages ``found``, by default all of the package, as Markdown."""
    by_kind: dict[str, set[Message]] = defaultdict(set)
    for message in messages() if found is None else found:
        by_kind[message.kind].add(message)
    parts = [HEAD]
    for kind in sorted(by_kind):
        parts.append(f"\n## {kind}\n\n| message | what to do |\n|---|---|\n")
        parts += [f"| {_code(one.text)} | {_code_spans(one.cure)} |\n" for one in sorted(by_kind[kind])]
    return "".join(parts)


def messages() -> Iterator[Message]:
    """Yield every message with a fixed part that the package gives to an error of its own, or to a usage error."""
    files = {path: _nodes(ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(PACKAGE.rglob("*.py"))}
    kinds, parents = _kinds(files.values())
    own = {path: dict(_makers(nodes, kinds)) for path, nodes in files.items()}
    shared = {name: kind for path, found in own.items() if path.name == "base.py" for name, kind in found.items()}
    for path, nodes in files.items():
        makers = {**shared, **own[path]}
        if path.parts[-3:-1] == ("onnx", "import_ops"):
            makers["error"] = "ImportFailed"
        for node in nodes:
            if isinstance(node, ast.Call) and node.args:
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
                kind = name if name in kinds else makers.get(name, "")
                while kind.startswith("_"):
                    kind = parents[kind]
                if kind and re.search(r"[a-z]{2}", text := _template(node.args[0])):
                    yield _message("usage" if kind == "BadParameter" else kind, text, node)


def _nodes(tree: ast.AST) -> list[ast.AST]:
    """Return the classes, functions and calls of a file."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Call)]


def _kinds(files: Iterable[list[ast.AST]]) -> tuple[set[str], dict[str, str]]:
    """Return the names of the package's classes of errors, and the first base of each."""
    found = {"CaffeToolsError", "BadParameter"}
    bases = [
        (
            node.name,
            {base.id for base in node.bases if isinstance(base, ast.Name)} | {b.attr for b in node.bases if isinstance(b, ast.Attribute)},
        )
        for nodes in files
        for node in nodes
        if isinstance(node, ast.ClassDef)
    ]
    while more := {name for name, names in bases if names & found} - found:
        found |= more
    return found, {name: next(iter(names & found), "") for name, names in bases}


def _makers(nodes: Iterable[ast.AST], kinds: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the functions that return an error made of their first argument, with its class."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id in kinds:
            yield node.name, node.returns.id


def _message(kind: str, text: str, node: ast.Call) -> Message:
    hint = next((_template(keyword.value) for keyword in node.keywords if keyword.arg == "hint"), "")
    fallback = hint if _is_whole(hint) else CURES.get(kind, _OTHERS)
    what, _, to_do = text.partition("; ")
    if re.search(r"(^|[\s,…])(are|is)\.?$", to_do):
        return Message(kind, text, hint if _is_whole(hint) else "Give one of those that the message lists.")
    return Message(kind, what, hint if _is_whole(hint) else to_do) if _is_whole(to_do) else Message(kind, text, fallback)


def _is_whole(cure: str) -> bool:
    """Return whether what to do is readable without the parts that are filled in."""
    words = len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\(--.*", "", cure)))
    return words >= (4 if cure.endswith("…") else 2)


def _template(node: ast.expr) -> str:
    """Return a string, or an f-string or sum of strings with ``…`` for what is filled in; "" for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_template(node.left) or "…") + (_template(node.right) or "…")
    if isinstance(node, ast.IfExp):
        return _template(node.body) or _template(node.orelse)
    return ""


def _code(text: str) -> str:
    return f"<code>{_escaped(text)}</code>"


def _code_spans(text: str) -> str:
    """Return a sentence with its first letter large; commands in backticks are code."""
    sentence = text[:1].upper() + text[1:] if not text.startswith("`") else text
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", _escaped(sentence))


def _escaped(text: str) -> str:
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[|*_\[\]{}\\]", lambda found: f"&#{ord(found[0])};", plain)
