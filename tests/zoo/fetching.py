"""What the tests of fetching share: a file, its checksum, and cards that name it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from caffetools.zoo.cards import ModelCard, Weights, get_card
from caffetools.zoo.download import RetryPolicy
from caffetools.zoo.fetch import FetchResult, fetch_weights

CONTENT = np.random.default_rng(0).integers(0, 256, 1_500_000, np.uint8).tobytes()
SHA1 = hashlib.sha1(CONTENT).hexdigest()
QUICK = RetryPolicy(attempts=3, backoff=0.0, timeout=20.0)


def card_at(*urls: str, **checksums: str) -> ModelCard:
    """LeNet's card as if ``CONTENT`` were its weights, published at ``urls``."""
    weights = Weights("weights.caffemodel", 1.5, urls, **(checksums or {"sha1": SHA1}))
    return dataclasses.replace(get_card("lenet"), weights=weights, labels=None)


def get(card: ModelCard, to: Path, **options: Any) -> FetchResult:
    return fetch_weights(card, to, retry=QUICK, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
