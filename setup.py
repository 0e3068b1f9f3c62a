"""Packaging; the metadata is in pyproject.toml.

The prototxts and the zoo's cards lie at the top of the repository, where people look for them. In a wheel they lie inside the
package, as ``caffetools/_prototxt`` and ``caffetools/_zoo``; ``caffetools.zoo`` finds them in both places.

The native kernels (native/, CMakeLists.txt) are built where there is a C++ compiler and skipped where there is none: everything
works without them. They are one shared library with a plain C interface, not a Python module, so one binary serves every
release of Python and of torch.

The address of the public repository is given when a release is built: ``CAFFETOOLS_REPOSITORY=https://… python -m build``. It makes the
README's links absolute and fills in the project's URLs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "docs"))
from absolute_links import long_description, project_urls  # noqa: E402

# The engine's kernels, those for pictures of bytes, and the reader of LMDB files.
LIBRARIES = ["_kernels.dll", "_pixels.dll"] if sys.platform == "win32" else ["_kernels.so", "_pixels.so", "_lmdb.so"]
TARGETS = ["caffetools_kernels", "caffetools_pixels", *([] if sys.platform == "win32" else ["caffetools_lmdb"])]


def compiler() -> str | None:
    """Why there is no C++ compiler, in a few words; None where there is one. On Windows CMake knows better where to look."""
    if sys.platform == "win32":
        return None
    named = os.environ.get("CXX", "").split()
    if named:
        return None if shutil.which(named[0]) else f"CXX names {named[0]}, which does not exist"
    return None if any(shutil.which(name) for name in ("c++", "g++", "clang++")) else "no C++ compiler found"


class BuildKernels(build_ext):
    """Builds the kernels through CMake; whatever is missing or fails costs one line, never the installation."""

    def run(self) -> None:
        """Build, and put the library beside the package's modules: in the tree when installed in place, else in the build."""
        missing = compiler() or (None if shutil.which("cmake") else "no cmake found")
        try:
            if missing:
                raise RuntimeError(missing)
            built = self._build()
        except (RuntimeError, OSError) as error:
            sys.stderr.write(f"caffetools: native kernels are skipped ({error}); all works without them, LRN more slowly\n")
            # One that an earlier build left is of other sources.
            for library in LIBRARIES:
                (Path(self.build_lib) / "caffetools" / library).unlink(missing_ok=True)
            return
        package = ROOT / "caffetools" if self.inplace or self.editable_mode else Path(self.build_lib) / "caffetools"
        package.mkdir(parents=True, exist_ok=True)
        for library in built:
            # A process may have the old one loaded: it keeps its file, the name gets the new one.
            temporary = package / f"{library.name}.new"
            shutil.copyfile(library, temporary)
            temporary.replace(package / library.name)

    def get_outputs(self) -> list[str]:
        """Setuptools asks for what it would install; the libraries are only there when they were built."""
        libraries = [Path(self.build_lib) / "caffetools" / library for library in LIBRARIES]
        return [str(library) for library in libraries if library.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing is copied from the build when installed in place."""
        return {}

    def _build(self) -> list[Path]:
        folder = Path(self.build_temp).resolve() / "native"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "build.log"
        configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", "-DCAFFETOOLS_RUNNER=OFF"]
        with log.open("w") as stream:
            for command in (configure, ["cmake", "--build", str(folder), "--config", "Release", "--target", *TARGETS]):
                if subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode:
                    raise RuntimeError(f"they do not compile here, see {log}")
        built = []
        for library in LIBRARIES:
            places = [path for path in (folder / library, folder / "Release" / library) if path.exists()]
            if not places:
                raise RuntimeError(f"the build made no {library}, see {log}")
            built.append(places[0])
        return built


class AnyPython(bdist_wheel):
    """A wheel for one platform, but for every Python: nothing in it is bound to a release of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """``py3-none-PLATFORM``."""
        return "py3", "none", super().get_tag()[2]


def main() -> None:
    """Build what the frontend asks for."""
    repository = os.environ.get("CAFFETOOLS_REPOSITORY", "").rstrip("/")
    setup(
        long_description=long_description((ROOT / "README.md").read_text(encoding="utf-8"), repository),
        long_description_content_type="text/markdown",
        project_urls=project_urls(repository),
        packages=[*find_packages(include=["caffetools*"]), "caffetools._prototxt", "caffetools._zoo"],
        package_dir={"caffetools._prototxt": "prototxt", "caffetools._zoo": "zoo"},
        package_data={
            "caffetools": ["py.typed"],
            "caffetools.bundle": ["runner/*"],
            "caffetools.proto": ["caffe.proto", "caffe.desc", "schema.pyi"],
            "caffetools.proto.forks": ["*.tsv", "schemas/*.tsv"],
            "caffetools.visualize": ["templates/*"],
            "caffetools._prototxt": ["*/*.prototxt"],
            "caffetools._zoo": ["*.yaml", "*.txt"],
        },
        ext_modules=[Extension("caffetools._kernels", sources=[])],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython},
        # Read by the build frontend (pip), which gets CMake from PyPI where the machine has a compiler but no CMake.
        setup_requires=[] if compiler() or shutil.which("cmake") else ["cmake>=3.20"],
    )


if __name__ == "__main__":
    main()
