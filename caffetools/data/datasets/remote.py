"""Building datasets from and to URLs: pictures are downloaded first, and the complete dataset is uploaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from caffetools.data.cluster import is_local
from caffetools.data.datasets.card import DatasetCard, save_card
from caffetools.errors import DataError
from caffetools.util import urls

P = ParamSpec("P")


def urls_allowed(build: Callable[P, DatasetCard]) -> Callable[P, DatasetCard]:
    """Let the arguments ``pictures`` and ``out`` of a function that builds a dataset be URLs, for which fsspec's packages are installed.

    Pictures at a URL (a folder, a zip or a tar) are downloaded to a temporary folder. For an output at a URL the ``folder`` of the card is only
    its text.
    """
    signature = inspect.signature(build)

    @wraps(build)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> DatasetCard:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        pictures, out = given["pictures"], given["out"]
        if not urls.is_url(pictures) and not urls.is_url(out):
            return build(*args, **kwargs)
        if urls.is_url(out) and given.get("resume"):
            raise DataError("a dataset at a URL cannot be resumed; leave out --resume", path=out)
        if urls.is_url(out) and given.get("cluster") and not is_local(given["cluster"]):
            raise DataError("a cluster writes to a folder that its machines share, not to a URL", path=out)
        with urls.local_copy(pictures) as near, urls.local_output(out, force=bool(given.get("force"))) as made:
            given["pictures"], given["out"] = near, made
            card = build(*bound.args, **bound.kwargs)
            if urls.is_url(pictures):
                card.pictures = os.fspath(pictures)
                save_card(card, made)
        card.folder = Path(out)
        return card

    return wrapped
