"""The layers that read data: Data, ImageData and their like; registered beside the computing ones."""

from __future__ import annotations
