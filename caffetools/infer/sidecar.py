"""``deploy.json`` next to ``deploy.prototxt``: how images are prepared for the net, so that no command has to be given it again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from caffetools.errors import DataError
from caffetools.proto.binary import read_binaryproto
from caffetools.proto.blobs import encode_blob
from caffetools.results import Preprocessing
from caffetools.util.files import atomic_files

PathLike = str | os.PathLike[str]

_FORMAT = 1


def sidecar_path(deploy: PathLike) -> Path:
    """Return the path of the preprocessing file of a deploy prototxt: the same name, ending in .json."""
    return Path(deploy).with_suffix(".json")


def mean_path(deploy: PathLike) -> Path:
    """Return the path of the mean image that :func:`write_preprocessing` writes for a deploy prototxt."""
    return sidecar_path(deploy).with_suffix(".mean.binaryproto")


def preprocessing_files(deploy: PathLike, how: Preprocessing) -> dict[Path, bytes]:
    """Return path → content of the files that describe the preprocessing of a deploy prototxt; a mean image is a .binaryproto of its own.

    Args:
        deploy: The deploy prototxt; only its name is used.
        how: Mean, scale, size, channel order and labels.
    """
    files: dict[Path, bytes] = {}
    values: dict[str, Any] = {"format": _FORMAT, "channel_order": how.channel_order}
    if how.mean_image is not None:
        mean = mean_path(deploy)
        files[mean] = b"".join(encode_blob(how.mean_image[np.newaxis], legacy=True))
        values["mean_file"] = mean.name
    elif how.mean_values is not None:
        values["mean_values"] = list(how.mean_values)
    values |= {"scale": how.scale, "resize": None if how.resize is None else list(how.resize), "labels": list(how.labels)}
    return {sidecar_path(deploy): (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode(), **files}


def write_preprocessing(deploy: PathLike, how: Preprocessing) -> list[Path]:
    """Write :func:`preprocessing_files`, all or none; gives their paths. Raises :class:`WriteFailed` where one cannot be written."""
    files = preprocessing_files(deploy, how)
    with atomic_files() as write:
        for path, content in files.items():
            write(path, content)
    return list(files)


def read_preprocessing(deploy: PathLike) -> Preprocessing | None:
    """Return the preprocessing written next to a deploy prototxt, or None if there is none.

    A .json file that caffetools did not write is ignored.

    Args:
        deploy: The deploy prototxt.

    Raises:
        DataError: The file is damaged.
        ModelFileError: The mean image cannot be read.
    """
    path = sidecar_path(deploy)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path=path) from None
    except ValueError:
        raise DataError("damaged: not JSON", path=path, hint="write it again with `caffetools deploy`, or remove it") from None
    if not isinstance(values, dict) or "channel_order" not in values:
        return None
    try:
        if values["format"] != _FORMAT:
            raise ValueError(f"format {values['format']}")
        mean_file = values.get("mean_file")
        mean = np.ascontiguousarray(read_binaryproto(path.parent / Path(mean_file).name), np.float32) if mean_file else None
        width_height = values.get("resize")
        return Preprocessing(
            channel_order=str(values["channel_order"]),
            mean_values=tuple(float(value) for value in values["mean_values"]) if "mean_values" in values else None,
            mean_image=mean[0] if mean is not None and mean.ndim == 4 else mean,
            scale=float(values.get("scale", 1)),
            resize=None if width_height is None else (int(width_height[0]), int(width_height[1])),
            labels=tuple(str(label) for label in values.get("labels", ())),
        )
    except (ValueError, TypeError, KeyError, IndexError) as error:
        hint = "write it again with `caffetools deploy`, or remove it"
        raise DataError(f"damaged, or written by another version of caffetools ({error})", path=path, hint=hint) from None
