"""Plain technical English: names, docstrings, comments, messages and pages do without the private words that a review listed.

``ALLOWED`` holds how many such words each part of the repository still has. The figures only ever go down: clean what you touch, and
lower the figure of your room. A room that is missing from the table has none.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# "is no longer", "is no better than" and "there is no" are plain English; "this is no net" is not. A bottleneck is one word.
WORDS = re.compile(
    r"\b(anew|beside|whatever|judge[sd]?|truths?|told|tells?|necks?"
    r"|(?<!there )is no(?! (longer|better|more|less|larger|smaller|slower|faster)\b))\b",
    re.IGNORECASE,
)

ALLOWED: dict[str, int] = {}


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "caffetools" and len(parts) > 2 else parts[0]


def found() -> dict[str, list[str]]:
    """Room → ``file:line: word`` of every unwanted word; underscores of names separate words."""
    places: dict[str, list[str]] = {}
    files = [*(ROOT / "caffetools").rglob("*.py"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").glob("*.py")]
    for path in sorted(files):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in WORDS.finditer(line.replace("_", " ")):
                places.setdefault(room(path), []).append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    return places


def test_no_part_has_more_of_the_private_words_than_before() -> None:
    more = [
        f"{name}: {len(places)} unwanted words, {ALLOWED.get(name, 0)} allowed:\n  " + "\n  ".join(places)
        for name, places in found().items()
        if len(places) > ALLOWED.get(name, 0)
    ]
    assert not more, "\n".join(more)


def test_names_of_tests_have_none_of_them() -> None:
    named = re.compile(r"^\s*def (test_\w+)", re.MULTILINE)
    names = {name: path for path in (ROOT / "tests").rglob("*.py") for name in named.findall(path.read_text(encoding="utf-8"))}
    unwanted = [f"{path.relative_to(ROOT)}: {name}" for name, path in names.items() if WORDS.search(name.replace("_", " "))]
    assert not unwanted, "\n".join(unwanted)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("start anew", ["anew"]),
        ("label_truth", ["truth"]),
        ("_judge(net)", ["judge"]),
        ("it is no file", ["is no"]),
        ("there is no file, there is no longer one; it is not one; a bottleneck; besides", []),
    ],
)
def test_the_words_are_recognized_in_names_and_sentences(text: str, words: list[str]) -> None:
    assert [match[0] for match in WORDS.finditer(text.replace("_", " "))] == words


NOMINAL = re.compile(r"(What|Whether|How many|Where|Why|Which|The|A|An) ")


def public_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield (file:line name, definition) of the functions of the package, and methods of its classes, that are not private."""

    def within(node: ast.AST, path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.ClassDef) and not inner.name.startswith("_"):
                yield from within(inner, path)
            elif isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                yield f"{path.relative_to(ROOT)}:{inner.lineno} {inner.name}", inner

    for path in sorted((ROOT / "caffetools").rglob("*.py")):
        yield from within(ast.parse(path.read_text(encoding="utf-8")), path)


def test_a_functions_summary_is_an_imperative_sentence() -> None:
    nominal = []
    for place, function in public_functions():
        decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in function.decorator_list}
        summary = (ast.get_docstring(function) or "").partition("\n")[0]
        if NOMINAL.match(summary) and not decorators & {"property", "cached_property", "setter"}:
            nominal.append(f"{place}: {summary}")
    assert not nominal, "\n".join(nominal)


def test_a_list_of_arguments_has_one_entry_for_each_parameter() -> None:
    wrong = []
    for place, function in public_functions():
        section = (ast.get_docstring(function) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
        if not section:
            continue
        entries = re.findall(r"^ {4}\*{0,2}([\w, ]+): ", section, re.MULTILINE)
        given = function.args
        extra = [argument for argument in (given.vararg, given.kwarg) if argument is not None]
        names = [
            argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, *extra) if argument.arg not in ("self", "cls")
        ]
        if sorted(entries) != sorted(names):
            wrong.append(f"{place}: {sorted(set(names) ^ set(entries))}")
    assert not wrong, "\n".join(wrong)


def is_documented(method: str, node: ast.ClassDef, classes: dict[str, list[ast.ClassDef]]) -> bool:
    """Whether a class or one of its bases states what a method does; a base from outside of the package states it for its own."""
    own = [inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name == method]
    if any(ast.get_docstring(inner) for inner in own):
        return True
    for base in node.bases:
        name = re.split(r"[\[(]", ast.unparse(base))[0].rpartition(".")[2]
        found = classes.get(name, [])
        if any(is_documented(method, one, classes) for one in found) or (not found and name not in ("Protocol", "Generic", "ABC")):
            return True
    return False


def test_a_public_method_is_documented_in_its_class_or_in_a_base() -> None:
    files = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "caffetools").rglob("*.py"))]
    nodes = [node for file in files for node in file.body if isinstance(node, ast.ClassDef)]
    classes: dict[str, list[ast.ClassDef]] = {}
    for node in nodes:
        classes.setdefault(node.name, []).append(node)
    silent = [
        f"{node.name}.{method.name}"
        for node in nodes
        for method in node.body
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and not node.name.startswith("_")
        if not is_documented(method.name, node, classes)
    ]
    assert not silent, "\n".join(silent)


def raised(function: ast.FunctionDef) -> set[str]:
    """The errors that a function's own statements raise; nested functions and errors passed on do not count."""
    found: set[str] = set()
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.add(ast.unparse(node.exc.func))
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            todo.extend(ast.iter_child_nodes(node))
    return found


def test_a_function_that_raises_says_so() -> None:
    silent = []
    for place, function in public_functions():
        text = ast.get_docstring(function) or ""
        # The command line's docstrings are help texts; a layer's or a node's own error is in its base class' contract.
        errors = {error for error in raised(function) if not error.endswith((".error", ".in_file", "self.no_onnx_form"))}
        # A method without a docstring of its own keeps the one it overrides.
        if errors and text and not place.startswith("caffetools/cli/") and not re.search(r"[Rr]aise|[Ee]rrors? as for", text):
            silent.append(f"{place}: {', '.join(sorted(errors))}")
    assert not silent, "\n".join(silent)


if __name__ == "__main__":
    for name, count in sorted(Counter({name: len(places) for name, places in found().items()}).items()):
        print(f'    "{name}": {count},')
