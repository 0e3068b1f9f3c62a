from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from caffetools.errors import RunFailed, ZooError
from caffetools.zoo.cards import ModelCard
from tests.zoo.fetching import CONTENT, QUICK, SHA1, card_at, get, names
from tests.zoo.server import Server, serving


def test_a_dropped_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.drop_after = [400_000, 500_000, None]
    fetched = get(card_at(f"{server.url}/w"), tmp_path)
    assert fetched.path.read_bytes() == CONTENT and names(tmp_path) == ["weights.caffemodel"]
    assert [request.get("range") for request in server.seen] == [None, "bytes=400000-", "bytes=900000-"]
    assert [request.get("if-range") for request in server.seen] == [None, '"one"', '"one"']


def test_a_server_without_ranges_is_asked_again_from_the_start(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.drop_after = [400_000, None]
    assert get(card_at(f"{server.url}/w"), tmp_path).path.read_bytes() == CONTENT
    assert len(server.seen) == 2


def test_more_drops_than_attempts_are_survived_as_long_as_each_brings_bytes(server: Server, tmp_path: Path) -> None:
    server.drop_after = [100_000] * 14
    assert get(card_at(f"{server.url}/w"), tmp_path).path.read_bytes() == CONTENT


def test_a_connection_that_always_drops_at_once_ends_in_an_error(server: Server, tmp_path: Path) -> None:
    server.drop_after = [0] * 100
    with pytest.raises(ZooError, match=f"the connection dropped after 0 of {len(CONTENT)} bytes"):
        get(card_at(f"{server.url}/w"), tmp_path)
    assert len(server.seen) == QUICK.attempts
    assert not (tmp_path / "weights.caffemodel").exists()


def test_a_server_without_ranges_that_always_drops_ends_in_an_error(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.drop_after = [1000] * 100
    with pytest.raises(ZooError, match="the connection dropped after 1000 of"):
        get(card_at(f"{server.url}/w"), tmp_path)
    assert len(server.seen) == QUICK.attempts


def test_a_later_run_resumes_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    card = card_at(f"{server.url}/w")
    server.drop_after = [700_000, 0, 0, 0]
    with pytest.raises(ZooError):
        get(card, tmp_path)
    assert (tmp_path / "weights.caffemodel.part").stat().st_size == 700_000
    server.seen.clear()
    server.drop_after.clear()
    assert get(card, tmp_path).path.read_bytes() == CONTENT
    assert [request["range"] for request in server.seen] == ["bytes=700000-"]
    assert names(tmp_path) == ["weights.caffemodel"]


def test_a_file_that_changed_in_between_is_fetched_from_the_start(server: Server, tmp_path: Path) -> None:
    card = card_at(f"{server.url}/w")
    server.content, server.etag = bytes(len(CONTENT)), '"old"'
    server.drop_after = [700_000, 0, 0, 0]
    with pytest.raises(ZooError):
        get(card, tmp_path)
    server.content, server.etag = CONTENT, '"one"'
    assert get(card, tmp_path).path.read_bytes() == CONTENT


@pytest.mark.parametrize("kept", [700_000, len(CONTENT) + 5])
def test_a_damaged_part_is_thrown_away_in_the_end(server: Server, tmp_path: Path, kept: int) -> None:
    card = card_at(f"{server.url}/w")
    server.etag = ""
    server.drop_after = [700_000, 0, 0, 0]
    with pytest.raises(ZooError):
        get(card, tmp_path)
    (tmp_path / "weights.caffemodel.part").write_bytes(bytes(kept))
    assert get(card, tmp_path).path.read_bytes() == CONTENT
    assert names(tmp_path) == ["weights.caffemodel"]


def test_a_part_of_another_address_is_not_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.caffemodel.part").write_bytes(b"x" * 100)
    (tmp_path / "weights.caffemodel.part.json").write_text('{"url": "http://elsewhere/w", "validator": null, "total": 100}')
    assert get(card_at(f"{server.url}/w"), tmp_path).path.read_bytes() == CONTENT
    assert "range" not in server.seen[0]


def test_an_answer_without_a_length_is_read_to_its_end(server: Server, tmp_path: Path) -> None:
    server.length = False
    assert get(card_at(f"{server.url}/w"), tmp_path).path.read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.answers = [503, 429, None]
    assert get(card_at(f"{server.url}/w"), tmp_path).path.read_bytes() == CONTENT


def test_a_missing_file_is_an_error_at_once(server: Server, tmp_path: Path) -> None:
    server.answers = [404] * 9
    with pytest.raises(ZooError, match="the server answers 404 Not Found"):
        get(card_at(f"{server.url}/w"), tmp_path)
    assert len(server.seen) == 1


def test_a_redirection_to_the_web_is_followed(server: Server, tmp_path: Path) -> None:
    with serving(b"", answers=[302], location=f"{server.url}/there") as other:
        assert get(card_at(f"{other.url}/w"), tmp_path).path.read_bytes() == CONTENT
    assert server.seen[0]["path"] == "/there"


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/w", "file:///etc/hostname"])
def test_a_redirection_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    with (
        serving(b"", answers=[302], location=location) as other,
        pytest.raises(ZooError, match="neither an http nor an https address|is not allowed"),
    ):
        get(card_at(f"{other.url}/w"), tmp_path)
    assert names(tmp_path) == []


def test_a_server_that_redirects_in_a_circle_is_one_line(tmp_path: Path) -> None:
    with (
        serving(b"", answers=[302] * 20, location="/w") as other,
        pytest.raises(ZooError, match=r"the server answers 302 .*infinite loop") as raised,
    ):
        get(card_at(f"{other.url}/w"), tmp_path)
    assert "\n" not in str(raised.value)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_is_an_error_that_names_the_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.caffemodel.part").symlink_to("/dev/full")
    with pytest.raises(RunFailed, match=r"cannot write .*weights\.caffemodel\.part: No space left on device"):
        get(card_at(f"{server.url}/w"), tmp_path)
    assert not (tmp_path / "weights.caffemodel").exists()


def test_a_file_larger_than_the_disk_is_not_begun(tmp_path: Path) -> None:
    with serving(CONTENT, promised=2**60) as server, pytest.raises(RunFailed, match="MB are free; free some space"):
        get(large(f"{server.url}/w", 1e13), tmp_path)
    assert not (tmp_path / "weights.caffemodel.part").exists()


def large(url: str, megabytes: float) -> ModelCard:
    """The card of ``card_at`` with another size."""
    card = card_at(url)
    assert card.weights is not None
    return dataclasses.replace(card, weights=dataclasses.replace(card.weights, megabytes=megabytes))


@pytest.mark.parametrize("promised", [None, 2**40])
def test_a_file_that_is_longer_than_its_card_allows_is_refused(tmp_path: Path, promised: int | None) -> None:
    with serving(CONTENT, promised=promised) as server, pytest.raises(ZooError, match="sends more than 1 MB"):
        get(large(f"{server.url}/w", 0.1), tmp_path)
    assert names(tmp_path) == []


def test_ctrl_c_leaves_a_part_that_the_next_fetch_resumes(server: Server, tmp_path: Path) -> None:
    server.hold = threading.Event()
    script = f"""
import dataclasses, os, signal, sys
from pathlib import Path
from caffetools.zoo.cards import get_card, Weights
from caffetools.zoo.fetch import fetch_weights
card = dataclasses.replace(get_card("lenet"), weights=Weights("weights.caffemodel", 1.5, ("{server.url}/w",), sha1="{SHA1}"))
def interrupt(done, total):
    if done > 500_000:
        os.kill(os.getpid(), signal.SIGINT)
fetch_weights(card, Path({str(tmp_path)!r}), progress=interrupt)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    server.hold.set()
    server.hold = None
    assert run.returncode == -signal.SIGINT and "KeyboardInterrupt" in run.stderr
    there = (tmp_path / "weights.caffemodel.part").stat().st_size
    assert 500_000 < there < len(CONTENT)
    assert get(card_at(f"{server.url}/w"), tmp_path).path.read_bytes() == CONTENT
    assert server.seen[-1]["range"] == f"bytes={there}-"
    assert names(tmp_path) == ["weights.caffemodel"]
