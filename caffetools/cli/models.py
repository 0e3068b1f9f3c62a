"""Networks of the zoo in place of files: the same names in every command, fetched on use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from caffetools.cli.show import note, progress

if TYPE_CHECKING:
    from caffetools.infer.classifier import Options


def complete_model(incomplete: str) -> list[str]:
    """Return the models of the zoo that start with a word, for the shell's completion."""
    from caffetools.zoo.names import known_names

    return [name for name in known_names() if name.startswith(incomplete.lower())]


def net_file(net: str | Path, kind: str) -> Path:
    """Return a net's prototxt: the file, or that of a model of the zoo.

    Args:
        net: A path, or the name of a model.
        kind: ``"train_val"``, ``"deploy"`` or ``"solver"``, for a model.
    """
    from caffetools.zoo.names import is_model
    from caffetools.zoo.networks import prototxt_path

    return prototxt_path(str(net), kind) if is_model(str(net)) else Path(net)


def weights_file(weights: str | Path) -> Path:
    """Return a weights file: the file, or the published weights of a model of the zoo, fetched if they are not in the cache.

    Args:
        weights: A path, or the name of a model.

    Raises:
        ZooError: The model has no published weights, or they cannot be fetched.
    """
    from caffetools.zoo.cards import get_card
    from caffetools.zoo.fetch import fetch
    from caffetools.zoo.names import is_model

    if not is_model(str(weights)):
        return Path(weights)
    card = get_card(str(weights))
    with progress(f"Fetching {card.name} (MB)") as advance:
        return fetch(card, progress=lambda done, total: advance(done // 10**6, max(total // 10**6, 1)), say=note).path


def model_options(model: str) -> Options:
    """Return the preprocessing of a model of the zoo: mean, scale, size and labels of its card.

    Args:
        model: The name of a model.
    """
    from caffetools.infer.classifier import Options
    from caffetools.infer.zoo_models import card_preprocessing
    from caffetools.zoo.cards import get_card

    how = card_preprocessing(get_card(model))
    return Options(mean=how.mean_values or "0", labels=how.labels or None, scale=how.scale, resize=how.resize)
