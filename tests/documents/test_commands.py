"""Every command and every Python block of the pages runs, in the page's order, on small files of the names that the page uses."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from caffetools.layers import registry
from tests.cli.inprocess import run
from tests.documents.blocks import read_commands, read_python, read_table_commands

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
GENERATED = {"docs/reference/cli.md", "docs/api.md"}

# Commands that do not run here, as a regular expression of the command line, and why.
NOT_RUN = {
    r"^demo\b": "takes most of a minute; tests/project runs it",
    r"^visualize live": "serves a page until it is stopped; tests/visualize runs it",
    r"--processes": "starts processes; tests/solver and tests/data run them",
    r"^engine add": "downloads an environment",
    r"--engine caffe|--engines \S*(caffe|opencv)": "needs an environment with a real Caffe or OpenCV 4",
    r"-gpu": "needs a GPU",
    r"--outputs conv5,rpn_cls|--from conv5,rois": "needs a Faster R-CNN; tests/onnx exports one in stages",
    r"faster_rcnn_end2end/": "needs a Faster R-CNN; tests/surgery retargets one",
    r"s3://": "needs s3fs and a store; tests/data runs URLs of a memory file system",
    r"--cluster auto": "needs a cluster that runs; tests/data and tests/infer start one",
}
# Commands whose exit code is 1 when what they compare or check differs.
COMPARE = {"verify", "dataset", "diff"}
# What makes a command short enough for a test.
SHORTER = {
    "retarget --model squeezenet_v1.1 --dataset": ["--train-batch", "4", "--val-batch", "8"],
    "train": ["--max-iter", "2", "--device", "cpu"],
    "test net/train_val.prototxt": ["--iterations", "1"],
    "finetune": ["--epochs", "1", "--size", "64", "--crop", "64", "--batch", "8", "--device", "cpu"],
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands_of(page: Path) -> list[list[str]]:
    """The commands of a page's blocks; of the READMEs those of the table of steps too."""
    return [*(read_table_commands(page) if page.parent == ROOT else []), *read_commands(page)]


def runs(words: list[str]) -> bool:
    line = shlex.join(words)
    return not any(re.search(pattern, line) for pattern in NOT_RUN)


# Its commands are those of the English page, which run.
TRANSLATED = {"README.zh-CN.md": "README.md"}


@pytest.mark.parametrize("page", TRANSLATED)
def test_a_translation_has_the_commands_of_its_original(page: str) -> None:
    translated = commands_of(ROOT / page)
    assert len(translated) > 20 and sorted(translated) == sorted(commands_of(ROOT / TRANSLATED[page]))


def test_the_chinese_quickstart_has_the_commands_and_the_python_of_the_english_one() -> None:
    english, chinese = ROOT / "docs/quickstart.md", ROOT / "docs/zh/quickstart.md"
    assert [words for words in read_commands(english) if words not in read_commands(chinese)] == []

    def code(page: Path) -> list[str]:
        return [re.sub(r" *#.*", "", block) for block in read_python(page)]

    assert code(english) == code(chinese)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if name_of(page) not in {*GENERATED, *TRANSLATED} and read_commands(page)], ids=name_of
)
def test_the_commands_of_a_page_run(page: Path, world: Path) -> None:
    failed = []
    for words in filter(runs, commands_of(page)):
        command = [with_iteration(word) for word in words]
        remove_output(command)
        done = run(*command, *shorter(command))
        if done.returncode > (command[0] in COMPARE):
            failed.append(f"caffetools {shlex.join(command)}\n    {done.stderr[-600:]}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in GENERATED and read_python(page)], ids=name_of)
def test_the_python_of_a_page_runs(page: Path, world: Path) -> None:
    known = set(registry.layer_types())
    names: dict[str, object] = {"__name__": "page"}
    try:
        for number, block in enumerate(read_python(page), 1):
            exec(compile(block, f"{page.name}, Python block {number}", "exec"), names)
    finally:
        registry.unregister(set(registry.layer_types()) - known)


def test_every_reason_not_to_run_is_needed() -> None:
    lines = [shlex.join(words) for page in PAGES for words in commands_of(page)]
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, line) for line in lines)] == []


def shorter(words: list[str]) -> list[str]:
    return [option for start, options in SHORTER.items() if shlex.join(words).startswith(f"{start} ") for option in options]


def with_iteration(word: str) -> str:
    """Return a word of a command with the N of ``snapshot_iter_N`` replaced by the newest iteration that there is."""
    if "_iter_N." not in word:
        return word
    found = Path().glob(word.replace("_iter_N.", "_iter_*."))
    return str(max(found, key=lambda path: path.stat().st_mtime, default=word))


def remove_output(words: list[str]) -> None:
    """Remove what a command writes, which an earlier command of the page wrote too: a page shows alternatives."""
    at = next((index + 1 for index, word in enumerate(words) if word in ("-o", "--out")), 0)
    if words[:2] in (["dataset", "build"], ["dataset", "subset"]):
        at = 3
    elif words[:2] == ["dataset", "merge"] or (words[0] == "mean" and len(words) > 2):
        at = 2
    elif words[0] in ("convert-imageset", "upgrade"):
        at = len(words) - 1
    place = words[at].rstrip("/")
    if not at or any(word == place or word.startswith(f"{place}/") for index, word in enumerate(words) if index != at):
        return
    target = Path(words[at])
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
