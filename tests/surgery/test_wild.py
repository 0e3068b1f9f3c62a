"""Published networks: each operation gives a net that fits together, or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caffetools.errors import CaffeToolsError, PrototxtError
from caffetools.proto.text import read_net
from caffetools.surgery.deploy import deploy_from
from caffetools.surgery.retarget import retarget
from caffetools.surgery.summary import summarize


def fits(net: Any) -> bool:
    try:
        summarize(net)
    except CaffeToolsError:
        return False
    return True


def test_no_published_net_is_broken_by_retargeting_or_deploying_it(wild: Path) -> None:
    done = {"retarget": 0, "deploy": 0}
    for path in sorted((wild / "prototxt").rglob("*.prototxt")):
        try:
            net = read_net(path)
        except PrototxtError:
            continue
        for name, operation in (("retarget", lambda n: retarget(n, 7).train_val), ("deploy", deploy_from)):
            try:
                made = operation(net)
            except CaffeToolsError:
                continue
            done[name] += 1
            assert fits(made) or not fits(net), f"{name} breaks {path}"
    assert min(done.values()) > 90
