"""The page of errors names every class of error, and its messages are those that the code raises."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from caffetools import errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")


def test_every_class_of_error_is_on_the_page() -> None:
    bases = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.CaffeToolsError)}
    pattern = re.compile(rf"^class ([A-Z]\w*)\((?:\w+, )*(?:{'|'.join(sorted(bases))})\b", re.MULTILINE)
    found = {name for path in (ROOT / "caffetools").rglob("*.py") for name in pattern.findall(path.read_text(encoding="utf-8"))}
    assert len(found) > 10
    assert sorted(name for name in found if name not in PAGE) == []


def test_the_messages_on_the_page_are_those_of_the_code() -> None:
    texts = "\n".join(sorted(literals()))
    messages = [message for row in PAGE.splitlines() if row.startswith("| `") for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(messages) > 50
    missing = [part for message in messages for part in message.split("…") if part.strip() not in texts]
    assert missing == []


def test_every_raised_message_is_on_the_page_that_the_site_generates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    error_messages = importlib.import_module("error_messages")
    found = list(error_messages.messages())
    assert all(message.cure and message.text for message in found) and not any(message.kind.startswith("_") for message in found)
    kinds = {message.kind for message in found}
    assert {"PrototxtError", "NetError", "DataError", "ModelFileError", "SolverError", "ExportError", "ImportFailed", "ZooError"} <= kinds
    # One of each way to raise: by a class, by a layer's error(), by a node's, by a class of the module's own.
    texts = {message.text for message in found}
    assert {"already exists", "blocks are nested more than … deep", "snapshot_prefix is missing"} <= texts
    assert not [message for message in found if not re.search(r"[A-Za-z]{2,}\W+(?:[\w-]+\W+)*[A-Za-z]{2,}", message.cure)]
    page = error_messages.page(found)
    assert page.count("\n| <code>") == len(set(found)) > 1000
    assert "(../errors.md)" in page and "## usage" in page


def literals() -> set[str]:
    """Every string, and every fixed part of an f-string, in the package."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "caffetools").rglob("*.py"))
    return {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
