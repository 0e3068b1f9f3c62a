"""Write docs/api.md from the docstrings of the public names: python docs/make_api.py (a test compares the page with them)."""

from __future__ import annotations

import importlib
import inspect
import re
import types
from pathlib import Path
from typing import Any

import caffetools

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"

HEAD = """# Python API

`import caffetools as ct` gives the names below; each is imported when it is first used. Generated from the docstrings by
`python docs/make_api.py`; the examples run as tests. These names follow semantic versions: a change warns with a
`DeprecationWarning` for one minor release before it takes effect. Modules and names that are not on this page may move at any time.
"""
_SECTIONS = ("Args", "Returns", "Raises", "Example", "Attributes", "Yields")


def page() -> str:
    """Return the text of docs/api.md."""
    names = [name for name in caffetools.__all__ if not name.startswith("_")]
    functions = [name for name in names if not isinstance(getattr(caffetools, name), type | types.ModuleType)]
    classes = [name for name in names if isinstance(getattr(caffetools, name), type)]
    parts = [HEAD, "## Functions\n", *map(_function, functions), "## Classes\n", *map(_class, classes)]
    for module, what in (("events", "Events"), ("errors", "Errors")):
        parts += [f"## {what}\n", f"In `caffetools.{module}`.\n", *_members(module)]
    return "\n".join(parts).rstrip() + "\n"


def _function(name: str) -> str:
    value = getattr(caffetools, name)
    return f"### `{name}`\n\n```python\n{_signature(name, value)}\n```\n\n{_markdown(inspect.getdoc(value) or '')}"


def _class(name: str) -> str:
    value = getattr(caffetools, name)
    text = f"### `{name}`\n\n{_markdown(inspect.getdoc(value) or '')}"
    for key, member in vars(value).items():
        if not key.startswith("_") and isinstance(member, types.FunctionType | classmethod | property):
            function: Any = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            summary = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
            text += f"- `{key}{'' if isinstance(member, property) else '()'}`: {_plain(summary)}\n"
    return text


def _members(module: str) -> list[str]:
    value = importlib.import_module(f"caffetools.{module}")
    found = [item for item in vars(value).values() if isinstance(item, type) and item.__module__ == value.__name__]
    return [f"- `{item.__name__}`: {_plain(' '.join((inspect.getdoc(item) or '').split(chr(10) * 2)[0].split()))}" for item in found] + [""]


def _signature(name: str, value: Any) -> str:
    signature = inspect.signature(value)
    lines = [f"{_parameter(p)}," for p in signature.parameters.values()]
    kinds = [p.kind for p in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        lines.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*,")
    returns = f" -> {signature.return_annotation}"
    return f"{name}(\n" + "".join(f"    {line}\n" for line in lines) + f"){returns}"


def _parameter(parameter: inspect.Parameter) -> str:
    default = parameter.default
    text = f"{parameter.name}: {parameter.annotation}"
    if default is inspect.Parameter.empty:
        return text
    return f"{text} = {default.__name__ if isinstance(default, types.FunctionType) else repr(default)}"


def _markdown(docstring: str) -> str:
    """Turn a Google-style docstring into Markdown: sections as bold words, entries as lists, examples as code."""
    lines: list[str] = []
    section = ""
    for line in docstring.splitlines():
        head = re.fullmatch(rf"({'|'.join(_SECTIONS)}):", line)
        if head:
            if section == "Example":
                lines.append("```")
            section = head[1]
            lines += [f"**{section}**", "", *(["```python"] if section == "Example" else [])]
        elif section == "Example":
            lines.append(line[4:])
        elif section:
            entry = re.fullmatch(r"    ([\w*]+): (.*)", line)
            lines.append(f"- `{entry[1]}`: {_plain(entry[2])}" if entry else _plain(line[4:] if section == "Returns" else line[6:]))
        else:
            lines.append(_plain(line))
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join([*lines, *(["```"] if section == "Example" else [])]) + "\n"


def _plain(text: str) -> str:
    """Turn reStructuredText roles and double backticks into Markdown code."""
    return re.sub(r"``(.+?)``", r"`\1`", re.sub(r":\w+:`~?([^`]+)`", lambda m: f"`{m[1].rsplit('.', 1)[-1]}`", text))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
