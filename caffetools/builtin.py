"""The modules that hold the built-in layers; importing this one registers them.

The registry loads it by name, once, since it stands above the rooms that it imports.
"""

from __future__ import annotations

import importlib
import pkgutil

import caffetools.data.layers
import caffetools.layers

for _package in (caffetools.layers, caffetools.data.layers):
    for _module in pkgutil.iter_modules(_package.__path__):
        importlib.import_module(f"{_package.__name__}.{_module.name}")
