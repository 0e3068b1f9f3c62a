"""What the package tells the world: links, versions, templates, citation."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import caffetools

ROOT = Path(__file__).parent.parent


def links() -> ModuleType:
    spec = importlib.util.spec_from_file_location("absolute_links", ROOT / "docs" / "absolute_links.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[Quickstart](docs/quickstart.md)", "[Quickstart](https://example.org/c/blob/main/docs/quickstart.md)"),
        ("![report](docs/pictures/report.png)", "![report](https://example.org/c/raw/main/docs/pictures/report.png)"),
        ("[paper](https://arxiv.org/abs/1) [up](#top)", "[paper](https://arxiv.org/abs/1) [up](#top)"),
    ],
)
def test_links_of_the_long_description_are_absolute(text: str, expected: str) -> None:
    assert links().long_description(text, "https://example.org/c") == expected


def test_without_an_address_the_long_description_has_no_links_to_files() -> None:
    module = links()
    text = module.long_description((ROOT / "README.md").read_text(encoding="utf-8"), "")
    assert [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target] == []
    assert "Quickstart" in text and "![" not in text
    assert module.project_urls("") == {} and all(url.startswith("https://e") for url in module.project_urls("https://e").values())


def test_the_citation_has_the_version_and_what_the_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == caffetools.__version__ and citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= citation.keys()


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_the_issue_templates_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert (
        form["name"] and form["description"] and any(field["validations"]["required"] for field in form["body"] if "validations" in field)
    )
    identifiers = [field["id"] for field in form["body"]]
    assert len(identifiers) == len(set(identifiers))
    assert {field["type"] for field in form["body"]} <= {"input", "textarea", "markdown", "dropdown", "checkboxes"}


def test_every_core_dependency_has_an_oldest_version_that_the_script_can_pin() -> None:
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "oldest_versions")
    names: dict[str, Any] = {"re": re}
    exec(compile(ast.Module([function], []), "noxfile.py", "exec"), names)  # nox itself is not installed for the tests
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pins = names["oldest_versions"](pyproject)
    core = pyproject.split("\ndependencies = [", 1)[1].split("\n]", 1)[0]
    assert len(pins) == len(re.findall(r'^    "', core, re.MULTILINE)) > 10
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9.]+\.\*", pin) for pin in pins)


def test_the_sdist_takes_every_file_at_the_top_that_git_knows() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    tops = {name.partition("/")[0] for name in listed.stdout.splitlines()}
    named = {word for line in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines() for word in line.split()[1:]}
    # What setuptools takes by itself.
    named |= {"caffetools", "pyproject.toml", "setup.py", "LICENSE", "MANIFEST.in"}
    assert sorted(top for top in tops if not any(fnmatch(top, pattern) for pattern in named)) == []


# Where a module is not named as its package is.
_PACKAGES = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "google": "protobuf", "mlflow": "mlflow-skinny", "ray": "ray[data]",
    "sklearn": "scikit-learn", "umap": "umap-learn", "yaml": "pyyaml",
}  # fmt: skip
# What is used where it is there, and named in a message or left out where it is not.
_OPTIONAL = {"IPython", "pydot", "pylab", "pycuda", "scipy", "skimage", "tensorrt"}
# A real Caffe in a process of its own, and the module next to a bundle's check.
_NO_PACKAGES = {"caffe", "classify"}


def test_every_import_is_of_a_declared_dependency() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    core = _names(pyproject.split("\ndependencies = [", 1)[1].split("\n]", 1)[0])
    extras = _names(pyproject.split("\n[project.optional-dependencies]\n", 1)[1].split("\n[", 1)[0])
    assert {"torch", "typing-extensions"} <= core and "ray[data]" in extras
    for path in sorted((ROOT / "caffetools").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_import = {name for node in tree.body for name in _imports(node)}
        for name in {name for node in ast.walk(tree) for name in _imports(node)} - _OPTIONAL - _NO_PACKAGES:
            package = _PACKAGES.get(name, name.replace("_", "-"))
            assert package in (core if name in at_import else core | extras), f"{path}: {name} is of no declared dependency"


def _names(requirements: str) -> set[str]:
    return {re.split(r"[<>=~; ]", text, maxsplit=1)[0] for text in re.findall(r'"([^"]+)"', requirements)}


def _imports(node: ast.AST) -> set[str]:
    """The packages that a statement or a call of importlib imports, of those that are neither Python's nor ours."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [node.module or ""]
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("import_module", "find_spec") and node.args:
        names = [str(node.args[0].value)] if isinstance(node.args[0], ast.Constant) else []
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"caffetools"}
