"""What the server of :mod:`tests.children` has loaded before it forks."""

from __future__ import annotations

import cv2  # noqa: F401
import h5py  # noqa: F401
import lmdb  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import onnx  # noqa: F401
import onnxruntime  # noqa: F401
import torch._dynamo  # noqa: F401

import caffetools.builtin
import caffetools.cli.app
import caffetools.project.finetune
import caffetools.solver.distributed
import caffetools.solver.run  # noqa: F401
