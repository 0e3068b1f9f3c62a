"""Every layer type that another importer of Caffe models reads is computed here, or docs/forks.md has the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from caffetools.layers.registry import layer_types

ROWS = [line.split("\t") for line in (Path(__file__).parent / "peers.tsv").read_text(encoding="utf-8").splitlines()[2:]]
PAGE = (Path(__file__).parents[2] / "docs" / "forks.md").read_text(encoding="utf-8")
# The table under this heading: | type, type | reason |
TABLE = PAGE.partition("## Types that are not computed")[2].partition("\n## ")[0]
NAMED = {
    name: reason for names, reason in re.findall(r"^\| (`.+`) \| (.+) \|$", TABLE, re.MULTILINE) for name in re.findall(r"`(\w+)`", names)
}


@pytest.mark.parametrize(("kind", "readers"), ROWS)
def test_a_type_that_peers_read_is_computed_or_named_with_the_reason(kind: str, readers: str) -> None:
    assert readers
    assert (kind in layer_types()) != (kind in NAMED), f"{kind}: compute it, or name it in docs/forks.md, not both"
    assert kind in layer_types() or len(NAMED[kind].split()) > 3


def test_the_list_is_whole() -> None:
    assert len(ROWS) == len({kind for kind, _ in ROWS}) == 116
