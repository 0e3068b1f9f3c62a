"""Modules that count what makes a fused pass impossible: being set to training, and hooks.

A plan or a recording stands for running a net's layers one by one only where nobody watches them. Looking at every layer of a long net
before each pass takes a tenth of a small net's time; a number that changes with every observation is one look.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_count = 0


def last_observation() -> int:
    """Return a number that differs after any module of this process was set to training or to evaluation, or was given a hook."""
    return _count


def _note() -> None:
    global _count
    _count += 1


class ObservedModule(nn.Module):
    """A module whose observations are counted by :func:`last_observation`; those that end (a hook is removed) are not."""

    def __setattr__(self, name: str, value: Any) -> None:
        # By train(), by eval(), or by hand.
        if name == "training":
            _note()
        super().__setattr__(name, value)

    def register_forward_hook(self, *args: Any, **options: Any) -> Any:
        """As :meth:`torch.nn.Module.register_forward_hook`."""
        handle = super().register_forward_hook(*args, **options)
        _note()
        return handle

    def register_forward_pre_hook(self, *args: Any, **options: Any) -> Any:
        """As :meth:`torch.nn.Module.register_forward_pre_hook`."""
        handle = super().register_forward_pre_hook(*args, **options)
        _note()
        return handle
