"""The page of errors names every class of error, and its messages are those that the code raises."""

from __future__ import annotations

import ast
import re
from pathlib import Path

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


def literals() -> set[str]:
    """Every string, and every fixed part of an f-string, in the package."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "caffetools").rglob("*.py"))
    return {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
