"""The generated pages are true, and the documents' links lead somewhere."""

from __future__ import annotations

import importlib.util
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GENERATED = sorted(path.stem for path in (ROOT / "docs").glob("make_*.py") if path.stem not in ("make_visualize", "make_terminal"))


def _load(name: str) -> Any:
    """Import a script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_are_up_to_date(name: str) -> None:
    module = _load(name)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), f"run python docs/{name}.py"


def test_the_chinese_readme_has_the_models_links_and_headings_of_the_english_one() -> None:
    module = _load("make_readme")
    text = module.CHINESE.read_text(encoding="utf-8")
    assert text == module.chinese_page(), "run python docs/make_readme.py"
    english, chinese = (re.findall(r"\]\(([^)]+)\)|^(#+) ", page, re.MULTILINE) for page in (module.PAGE.read_text(encoding="utf-8"), text))
    only_english = {("README.zh-CN.md", ""), ("docs/quickstart.md", "")}
    assert set(english) - set(chinese) == only_english
    assert sum(level == "##" for _, level in english) == sum(level == "##" for _, level in chinese)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_have_a_header_in_each_column(page: Path) -> None:
    # Screen readers name the cells by it.
    lines = page.read_text(encoding="utf-8").splitlines()
    heads = [line for line, rule in itertools.pairwise(lines) if re.fullmatch(r"\|[-:| ]+\|", rule) and line.startswith("|")]
    assert [head for head in heads if not all(cell.strip() for cell in re.split(r"(?<!\\)\|", head.strip("|")))] == []


def test_no_line_begins_with_the_number_of_an_issue() -> None:
    # Markdown would take it for a heading.
    assert [page.name for page in PAGES if re.search(r"^#\d", page.read_text(encoding="utf-8"), re.MULTILINE)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:caffetools|tests|benchmarks|docs|examples|native)/[^` <*{]*)`", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    missing += [name for name in re.findall(r"caffetools(?:\.[a-z_0-9]+){2,}", text) if not _is_defined(name)]
    assert not missing, f"{page.relative_to(ROOT)} names what does not exist: {missing}"


def _is_defined(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module defines."""
    *parts, last = name.split(".")
    for path in (ROOT.joinpath(*parts, last), ROOT.joinpath(*parts)):
        if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            module = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
            return path.name == last or re.search(rf"\b{last}\b", module.read_text(encoding="utf-8")) is not None
    return False


def test_the_architecture_picture_has_every_room_in_its_row() -> None:
    from tests.test_architecture import PACKAGE, RANKS

    rows = [set(rooms) for rooms in _load("make_architecture").ROWS.values()]
    drawn = [row for row in rows if row]
    for here in (path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()):
        row = next((index for index, rooms in enumerate(drawn) if here in rooms), None)
        assert row is not None, f"add {here} to docs/make_architecture.py and run it"
        below = {name for rooms in drawn[row + 1 :] for name in rooms}
        level = next(index for index, rooms in enumerate(RANKS) if here in rooms)
        assert below <= {name for rooms in RANKS[: level + 1] for name in rooms}, here


def test_every_command_of_the_documents_exists() -> None:
    from caffetools.cli.commands import COMMANDS

    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        code = re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL)
        named = re.findall(r"^`?(?:\$ )?caffetools ([a-z][a-z-]*)", "\n".join(code), flags=re.MULTILINE)
        assert set(named) <= set(COMMANDS), f"{page.relative_to(ROOT)} names commands that do not exist: {set(named) - set(COMMANDS)}"
