"""Models of the zoo, ready for inference: the preprocessing of their cards, and their files in a folder of the user's."""

from __future__ import annotations

import os
import re
from dataclasses import fields, replace
from pathlib import Path

from caffetools.errors import CaffeToolsError
from caffetools.infer.classifier import PreprocessOptions
from caffetools.infer.sidecar import preprocessing_files, sidecar_path
from caffetools.results import Preprocessing
from caffetools.util.files import atomic_files
from caffetools.zoo.cards import ModelCard, get_card
from caffetools.zoo.names import is_model
from caffetools.zoo.networks import KINDS, prototxt_path

PathLike = str | os.PathLike[str]


def card_preprocessing(card: ModelCard) -> Preprocessing:
    """Return how images are prepared for a model, from its card, whose mean and scale are for pixels from 0 to ``raw_scale``.

    Args:
        card: The model's card.
    """
    factor = card.input.raw_scale / 255
    size = card.input.shape[1]
    return Preprocessing(
        channel_order="GRAY" if card.input.channel_order == "grey" else card.input.channel_order,
        mean_values=tuple(value / factor for value in card.input.mean) if any(card.input.mean) else (),
        scale=card.input.scale * factor,
        # Published accuracies are those of the center crop of an image resized to 256 x 256.
        resize=(256, 256) if 200 <= size < 256 else None,
        labels=tuple(re.sub(r"^n\d{8} ", "", label) for label in card.read_labels()),
    )


def model_options(model: str) -> PreprocessOptions:
    """Return the preprocessing of a model of the zoo: mean, scale, size and labels of its card.

    Args:
        model: The name of a model.
    """
    how = card_preprocessing(get_card(model))
    return PreprocessOptions(mean=how.mean_values or "0", labels=how.labels or None, scale=how.scale, resize=how.resize)


def merge_options(given: PreprocessOptions, model: PathLike) -> PreprocessOptions:
    """Return the preprocessing of a deployed net: what is given, and for a model of the zoo the rest from its card.

    Args:
        given: From the command line or the caller.
        model: A deploy prototxt, or the name of a model.
    """
    if not is_model(str(model)):
        return given
    values = {item.name: getattr(given, item.name) for item in fields(given)}
    return replace(model_options(str(model)), **{name: value for name, value in values.items() if value is not None})


def copy_model(name: str, folder: PathLike, *, force: bool = False) -> list[Path]:
    """Write a model's deploy, train_val and solver prototxts, labels.txt and deploy.json to a folder.

    Args:
        name: A model of the zoo.
        folder: Created if missing.
        force: Replace files that exist.

    Returns:
        The paths written.

    Raises:
        ZooError: The model does not exist.
        CaffeToolsError: A file exists and ``force`` is not set.
    """
    card, target = get_card(name), Path(folder)
    texts = {target / f"{kind}.prototxt": prototxt_path(name, kind).read_text(encoding="utf-8") for kind in KINDS}
    if card.labels is not None:
        texts[target / "labels.txt"] = "".join(f"{label}\n" for label in card_preprocessing(card).labels)
    deploy = target / "deploy.prototxt"
    if (taken := [path for path in (*texts, sidecar_path(deploy)) if path.exists()]) and not force:
        raise CaffeToolsError("already exists", path=taken[0], hint="give another folder, or --force to replace it")
    # The solver names its net by the file's own name; it is found next to the solver.
    files = {path: text.encode() for path, text in texts.items()} | preprocessing_files(deploy, card_preprocessing(card))
    with atomic_files() as write:
        for path, content in files.items():
            write(path, content)
    return list(files)
