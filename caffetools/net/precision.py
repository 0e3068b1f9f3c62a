"""In which numbers a net computes its forward passes: float32 as Caffe, TF32, or half precision."""

from __future__ import annotations

import torch

from caffetools.net.net import Net
from caffetools.net.precision_modes import check_mode

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_precision(net: Net, mode: str) -> Net:
    """Let the forward passes of ``net`` compute in ``mode`` from now on; for nets in use, not for training.

    bf16, fp16: convolutions, inner products and what moves their values in half precision (torch's autocast); losses, probabilities and
    normalizations in float32, but for the values between BatchNorm, Scale and ReLU on GPUs. Weights of convolutions and inner products are
    rounded to it, which halves their memory. tf32: products of 10 bits on GPUs that have them, sums in float32; on the CPU float32. What a
    pass returns is float32 in all of them.

    Args:
        net: On its device, with its weights.
        mode: One of :data:`~caffetools.net.precision_modes.MODES`.

    Returns:
        ``net``.

    Raises:
        CaffeToolsError: ``mode`` is unknown.
    """
    check_mode(mode)
    net.allow_tf32 = mode == "tf32"
    net.half_type = HALF.get(mode)
    if net.half_type is not None:
        keep_float32(net)
        for layer in net.layers:
            if layer.TRAITS.role == "classifier" and layer.TRAITS.half:
                for blob in layer.blobs:
                    blob.data = blob.data.to(net.half_type)
    return net


def keep_float32(net: Net) -> None:
    """Let the layers of ``net`` that need float32 see to it that they get it where the others compute in half precision."""
    for layer in net.layers:
        if not layer.IS_DATA and not layer.TRAITS.half:
            layer.float32_only = True
    net.layers_changed()
