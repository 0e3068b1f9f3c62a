"""Compile caffe.proto to the descriptor set that the package ships: ``python -m caffetools.proto.compile`` (needs grpcio-tools)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def compile_descriptor(proto: Path = HERE / "caffe.proto") -> bytes:
    """The serialized FileDescriptorSet of ``proto``, without source positions."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.desc"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto.parent}", f"--descriptor_set_out={out}", str(proto)]
        subprocess.run(command, check=True)
        return out.read_bytes()


if __name__ == "__main__":
    (HERE / "caffe.desc").write_bytes(compile_descriptor())
