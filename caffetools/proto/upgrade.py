"""Older forms of networks and solvers, brought to today's."""

from __future__ import annotations

from typing import Any


def upgrade_net(param: Any) -> Any:
    """``param`` in today's form."""
    return param
