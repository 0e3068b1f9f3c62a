"""Pictures and explanations of networks: filters, activations, graphs, curves, attribution; the HTML report.

The names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caffetools.visualize.attribution import deconvnet as deconvnet
    from caffetools.visualize.attribution import guided_backprop as guided_backprop
    from caffetools.visualize.attribution import integrated_gradients as integrated_gradients
    from caffetools.visualize.attribution import occlusion as occlusion
    from caffetools.visualize.attribution import saliency as saliency
    from caffetools.visualize.attribution import smooth_grad as smooth_grad
    from caffetools.visualize.cam import grad_cam as grad_cam
    from caffetools.visualize.cam import grad_cam_plus_plus as grad_cam_plus_plus

_HOME = {
    "saliency": "attribution",
    "guided_backprop": "attribution",
    "deconvnet": "attribution",
    "integrated_gradients": "attribution",
    "smooth_grad": "attribution",
    "occlusion": "attribution",
    "grad_cam": "cam",
    "grad_cam_plus_plus": "cam",
}

__all__ = [
    "deconvnet",
    "grad_cam",
    "grad_cam_plus_plus",
    "guided_backprop",
    "integrated_gradients",
    "occlusion",
    "saliency",
    "smooth_grad",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'caffetools.visualize' has no attribute '{name}'")
    return getattr(importlib.import_module(f"caffetools.visualize.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
