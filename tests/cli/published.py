"""A network of the zoo whose weights a local server publishes, in place of the publisher's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.proto.schema import TEST
from caffetools.zoo import cards
from caffetools.zoo.networks import prototxt_path
from caffetools.zoo.resources import zoo_file
from tests.zoo.server import Server, serving

MODEL = "squeezenet_v1.1"


@contextmanager
def publishing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve random weights of :data:`MODEL`, with a card that has their address and checksum.

    Args:
        folder: For the weights and the card.
        monkeypatch: Lets the card stand for the one that is shipped.
    """
    torch.manual_seed(1)
    weights = folder / "published.caffemodel"
    save_weights(Net.from_file(prototxt_path(MODEL, "deploy"), TEST), weights)
    content = weights.read_bytes()
    with serving(content) as server:
        card = yaml.safe_load(zoo_file(f"{MODEL}.yaml").read_text(encoding="utf-8"))
        card["weights"] |= {"urls": [server.url], "sha256": hashlib.sha256(content).hexdigest(), "megabytes": len(content) / 1e6}
        for other in ("sha1", "git_sha1"):
            card["weights"].pop(other, None)
        path = folder / f"{MODEL}.yaml"
        path.write_text(yaml.safe_dump(card), encoding="utf-8")
        monkeypatch.setattr(cards, "zoo_file", lambda name: path if name == path.name else zoo_file(name))
        cards.get_card.cache_clear()
        yield server
    cards.get_card.cache_clear()
