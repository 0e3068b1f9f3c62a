"""Databases, the Datum codec, transforms, dataset building and means. ``LmdbDataset`` is a torch Dataset over any Caffe database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caffetools.data.torch_dataset import LmdbDataset

__all__ = ["LmdbDataset"]


def __getattr__(name: str) -> Any:
    """Import ``LmdbDataset`` when it is used, since it needs torch."""
    if name == "LmdbDataset":
        from caffetools.data.torch_dataset import LmdbDataset

        return LmdbDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
