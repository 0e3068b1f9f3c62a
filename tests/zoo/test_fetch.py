from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import threading
from pathlib import Path
from typing import IO

import pytest

from caffetools.cancel import CancelToken
from caffetools.errors import Cancelled, RunFailed, ZooError
from caffetools.events import ArtifactWritten, Event, Finished, Progress, Started, Warned
from caffetools.net.net import Net
from caffetools.net.weights import save_weights
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse
from caffetools.util.checksums import Hasher, feed
from caffetools.util.locks import file_lock
from caffetools.zoo import check
from caffetools.zoo.cards import ModelCard, Weights, get_card
from caffetools.zoo.check import digests
from caffetools.zoo.download import RetryPolicy
from caffetools.zoo.fetch import MIRROR, FetchResult, cache_folder, fetch
from tests.zoo.fetching import CONTENT, QUICK, SHA1, card_at, get, names
from tests.zoo.server import Server, serving, unused_address


def test_a_file_is_fetched_checked_and_left_alone_in_its_folder(server: Server, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    fetched = get(card_at(f"{server.url}/w"), tmp_path / "to", progress=lambda done, total: steps.append((done, total)))
    assert fetched.path == tmp_path / "to" / "weights.caffemodel" and fetched.path.read_bytes() == CONTENT
    assert fetched.source == f"{server.url}/w" and fetched.verified == "SHA-1 as published"
    assert fetched.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert names(tmp_path / "to") == ["weights.caffemodel"]
    assert steps[0] == (0, len(CONTENT)) and steps[-1] == (len(CONTENT), len(CONTENT)) and steps == sorted(steps)


def test_a_checked_file_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    card = card_at(f"{server.url}/w")
    get(card, tmp_path)
    again = get(card, tmp_path)
    assert again.source is None and again.verified == "SHA-1 as published"
    assert len(server.seen) == 1


def test_files_go_to_the_cache_by_default(server: Server, tmp_path: Path) -> None:
    fetched = fetch(card_at(f"{server.url}/w"), retry=QUICK)
    assert fetched.path == tmp_path / "cache" / "caffetools" / "zoo" / "weights.caffemodel"


def test_the_cache_is_under_the_home_folder_where_xdg_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == Path.home() / ".cache" / "caffetools" / "zoo"


def test_wrong_bytes_are_an_error_with_both_checksums_and_nothing_is_left(server: Server, tmp_path: Path) -> None:
    server.content = b"not the weights"
    with pytest.raises(ZooError) as error:
        get(card_at(f"{server.url}/w"), tmp_path)
    wrong = hashlib.sha1(b"not the weights").hexdigest()
    assert f"{server.url}/w gives a wrong file: its SHA-1 is {wrong}, expected {SHA1}" in str(error.value)
    assert names(tmp_path) == []


def test_every_kind_of_checksum_is_held_against_the_file(server: Server, tmp_path: Path) -> None:
    git = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    fetched = get(card_at(f"{server.url}/w", sha1=SHA1, sha256=sha256, git_sha1=git), tmp_path)
    assert fetched.verified == "SHA-1 and SHA-256 and git object id as published"
    for kind, digits in (("sha1", SHA1), ("sha256", sha256), ("git_sha1", git)):
        assert digests(fetched.path, [kind]) == {kind: digits}
        wrong = digits[:-1] + ("0" if digits[-1] != "0" else "1")
        with pytest.raises(ZooError, match=f"is {digits}, expected {wrong}"):
            get(card_at(f"{server.url}/w", **{kind: wrong}), tmp_path)


def test_a_file_that_is_there_is_read_once_for_all_its_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.caffemodel").write_bytes(CONTENT)
    read: list[str] = []

    def counted(hasher: Hasher, stream: IO[bytes]) -> None:
        read.append(stream.name)
        feed(hasher, stream)

    monkeypatch.setattr(check, "feed", counted)
    fetched = get(card_at(unused_address(), sha1=SHA1, sha256=hashlib.sha256(CONTENT).hexdigest()), tmp_path)
    assert read == [str(fetched.path)] and fetched.sha256 == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.skipif(not Path("/usr/bin/git").exists(), reason="no git here")
def test_the_git_object_id_is_that_of_git(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT[:1000])
    said = subprocess.run(["/usr/bin/git", "hash-object", "--no-filters", path], capture_output=True, text=True, check=True).stdout.strip()
    assert digests(path, ["git_sha1"]) == {"git_sha1": said}


def test_the_second_address_is_used_where_the_first_fails(server: Server, tmp_path: Path) -> None:
    with serving(b"wrong") as other:
        fetched = get(card_at(unused_address(), f"{other.url}/w", f"{server.url}/w"), tmp_path)
    assert fetched.source == f"{server.url}/w"


def test_offline_is_one_error_that_names_the_file_its_address_and_where_to_put_it(tmp_path: Path) -> None:
    address = unused_address()
    with pytest.raises(ZooError) as error:
        get(card_at(f"{address}/w"), tmp_path)
    text = str(error.value)
    assert "weights.caffemodel" in text and f"{address}/w: cannot connect (Connection refused)" in text
    assert f"put it at {tmp_path / 'weights.caffemodel'}" in text and MIRROR in text
    assert names(tmp_path) == []


def test_a_file_put_there_by_hand_is_checked_and_used(tmp_path: Path) -> None:
    (tmp_path / "weights.caffemodel").write_bytes(CONTENT)
    assert get(card_at(unused_address()), tmp_path).source is None


def test_a_wrong_file_put_there_by_hand_is_an_error_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "weights.caffemodel"
    path.write_bytes(b"other")
    with pytest.raises(ZooError, match=f"SHA-1 is {hashlib.sha1(b'other').hexdigest()}, expected {SHA1}; move it away"):
        get(card_at(unused_address()), tmp_path)
    assert path.read_bytes() == b"other"


def test_a_mirror_on_the_web_replaces_the_publisher(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR, f"{server.url}/models/")
    fetched = get(card_at(unused_address()), tmp_path)
    assert fetched.source == f"{server.url}/models/weights.caffemodel"
    assert server.seen[0]["path"] == "/models/weights.caffemodel"


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_a_mirror_may_be_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    folder = tmp_path / "the mirror"
    folder.mkdir()
    (folder / "weights.caffemodel").write_bytes(CONTENT)
    monkeypatch.setenv(MIRROR, form.format(folder if form == "{}" else folder.as_uri().removeprefix("file://")))
    assert get(card_at(unused_address()), tmp_path / "to").path.read_bytes() == CONTENT
    assert names(tmp_path / "to") == ["weights.caffemodel"]


def test_a_mirror_without_the_file_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR, str(tmp_path))
    with pytest.raises(ZooError, match=f"cannot read {tmp_path}/weights.caffemodel \\(No such file"):
        get(card_at(unused_address()), tmp_path / "to")


@pytest.mark.parametrize("mirror", ["ftp://127.0.0.1/", "file://elsewhere/share", "s3://bucket"])
def test_a_mirror_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
    monkeypatch.setenv(MIRROR, mirror)
    with pytest.raises(ZooError, match="http, https or file|on another machine"):
        get(card_at(unused_address()), tmp_path)


def test_a_model_without_weights_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="lenet: LeNet has no published weights; .*caffetools demo"):
        fetch("lenet", tmp_path)


def test_labels_come_with_the_weights(server: Server, tmp_path: Path) -> None:
    card = dataclasses.replace(card_at(f"{server.url}/w"), labels="imagenet_labels.txt")
    fetched = get(card, tmp_path)
    assert fetched.labels == tmp_path / "imagenet_labels.txt"
    assert fetched.labels.read_text().splitlines() == card.read_labels()


@pytest.fixture
def lenet_weights(tmp_path: Path) -> bytes:
    path = tmp_path / "made.caffemodel"
    save_weights(Net.from_file(get_card("lenet").network("deploy")), path)
    content = path.read_bytes()
    path.unlink()
    return content


def without_checksum(url: str) -> ModelCard:
    weights = Weights("weights.caffemodel", 1.7, (url,))
    return dataclasses.replace(get_card("lenet"), weights=weights)


def test_weights_without_a_published_checksum_are_fetched_only_on_request(lenet_weights: bytes, tmp_path: Path) -> None:
    with serving(lenet_weights) as server, pytest.raises(ZooError, match="no checksum of its weights is published.*--unverified"):
        get(without_checksum(f"{server.url}/w"), tmp_path)
    assert names(tmp_path) == []


def test_without_a_published_checksum_the_file_must_fit_the_network_and_is_remembered(lenet_weights: bytes, tmp_path: Path) -> None:
    with serving(lenet_weights) as server:
        card = without_checksum(f"{server.url}/w")
        fetched = get(card, tmp_path, unverified=True)
        assert fetched.verified.startswith("no checksum is published; it reads as a caffemodel and fits the 4 layers")
        record = tmp_path / "weights.caffemodel.sha256"
        assert record.read_text() == f"{fetched.sha256}  weights.caffemodel\n"
        changed = bytearray(lenet_weights)
        changed[-1000] ^= 1
        fetched.path.write_bytes(changed)
        with pytest.raises(ZooError, match=f"expected {fetched.sha256}, as first seen"):
            get(card, tmp_path, unverified=True)
        fetched.path.unlink()
        server.content = bytes(changed)
        with pytest.raises(ZooError, match=f"expected {fetched.sha256}, as first seen"):
            get(card, tmp_path, unverified=True)
    assert names(tmp_path) == ["weights.caffemodel.sha256"]


@pytest.mark.parametrize("cut", [10, 1000])
def test_without_a_published_checksum_a_damaged_file_is_refused(lenet_weights: bytes, tmp_path: Path, cut: int) -> None:
    with serving(lenet_weights[:-cut]) as server, pytest.raises(ZooError, match="gives a wrong file: .*damaged"):
        get(without_checksum(f"{server.url}/w"), tmp_path, unverified=True)
    assert names(tmp_path) == []


def test_without_a_published_checksum_the_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    text = """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 8 dim: 8 } } }
        layer { name: "conv1" type: "Convolution" bottom: "data" top: "y" convolution_param { num_output: 2 kernel_size: 3 } }"""
    save_weights(Net(parse(text, NetParameter)), tmp_path / "other")
    with serving((tmp_path / "other").read_bytes()) as server, pytest.raises(ZooError, match=r"does not fit .* layer 'conv1'"):
        get(without_checksum(f"{server.url}/w"), tmp_path / "to", unverified=True)


def test_a_folder_that_cannot_be_made_is_an_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match="cannot make the folder"):
        get(card_at(f"{server.url}/w"), tmp_path / "file" / "to")


def test_two_fetches_at_once_bring_the_file_once(server: Server, tmp_path: Path) -> None:
    server.hold = threading.Event()
    card = card_at(f"{server.url}/w")
    results: list[FetchResult] = []
    waits: list[str] = []

    def second_waits(sentence: str) -> None:
        waits.append(sentence)
        assert server.hold is not None
        server.hold.set()

    threads = [threading.Thread(target=lambda: results.append(get(card, tmp_path, note=second_waits))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(result.source is None for result in results) == [False, True]
    assert len(server.seen) == 1 and waits == ["another process is fetching weights.caffemodel; waiting for it"]
    assert names(tmp_path) == ["weights.caffemodel"]


def test_a_fetch_is_followed_by_events(server: Server, tmp_path: Path) -> None:
    card = card_at(f"{server.url}/w")
    events: list[Event] = []
    fetched = fetch(card, tmp_path, events=events.append)
    progress = [event.done for event in events if isinstance(event, Progress)]
    assert progress == sorted(progress) and progress[-1] == len(CONTENT)
    assert {event.total for event in events if isinstance(event, Progress)} == {len(CONTENT)}
    others = [event for event in events if not isinstance(event, Progress)]
    assert [type(event) for event in others] == [Started, ArtifactWritten, Finished] and isinstance(others[1], ArtifactWritten)
    assert others[1].path == str(fetched.path) and {event.task for event in events} == {"fetch"}
    events.clear()
    fetch(card, tmp_path, events=events.append)
    assert [type(event) for event in events] == [Started, Finished], "nothing was fetched or written"


@pytest.mark.parametrize("kind", [Started, Progress, ArtifactWritten])
def test_a_fetch_cancelled_at_each_kind_of_event_is_resumed_to_the_same_bytes(server: Server, tmp_path: Path, kind: type[Event]) -> None:
    card, token, events = card_at(f"{server.url}/w"), CancelToken(), list[Event]()

    def cancel(event: Event) -> None:
        events.append(event)
        if isinstance(event, kind) and (not isinstance(event, Progress) or event.done > 500_000):
            token.cancel()

    if kind is ArtifactWritten:
        # The file is complete: the cancellation comes too late to leave anything undone.
        assert fetch(card, tmp_path, events=cancel, cancel=token).path.read_bytes() == CONTENT
        return
    with pytest.raises(Cancelled):
        fetch(card, tmp_path, events=cancel, cancel=token)
    assert isinstance(events[-1], Finished) and events[-1].status == "cancelled"
    assert not (tmp_path / "weights.caffemodel").exists()
    part = tmp_path / "weights.caffemodel.part"
    there = part.stat().st_size if part.exists() else 0
    assert (there > 0) == (kind is Progress)
    assert fetch(card, tmp_path).path.read_bytes() == CONTENT
    assert server.seen[-1].get("range") == (f"bytes={there}-" if there else None)
    assert names(tmp_path) == ["weights.caffemodel"]


def test_a_fetch_that_waits_for_another_one_can_be_cancelled(server: Server, tmp_path: Path) -> None:
    token = CancelToken()

    def cancel(event: Event) -> None:
        if isinstance(event, Warned):
            assert event.message == "another process is fetching weights.caffemodel; waiting for it"
            token.cancel()

    with file_lock(tmp_path / "weights.caffemodel"), pytest.raises(Cancelled):
        fetch(card_at(f"{server.url}/w"), tmp_path, events=cancel, cancel=token)
    assert server.seen == [] and names(tmp_path) == []


def test_a_fetch_that_waits_for_its_next_attempt_can_be_cancelled(server: Server, tmp_path: Path) -> None:
    token = CancelToken()

    class Seen(list[dict[str, str]]):
        def append(self, request: dict[str, str]) -> None:
            super().append(request)
            token.cancel()

    server.seen, server.answers = Seen(), [503] * 5
    with pytest.raises(Cancelled):
        fetch(card_at(f"{server.url}/w"), tmp_path, retry=RetryPolicy(backoff=600.0), cancel=token)
    assert len(server.seen) == 1


def test_progress_and_note_of_earlier_releases_work_with_a_warning(server: Server, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    with pytest.warns(DeprecationWarning, match="of fetch is deprecated since 0.2 .* use events=") as caught:
        fetch(card_at(f"{server.url}/w"), tmp_path, progress=lambda done, total: steps.append((done, total)), note=print)
    assert sorted(str(warning.message)[:20] for warning in caught) == ["the parameter 'note'", "the parameter 'progr"]
    assert {warning.filename for warning in caught} == {__file__}
    assert steps[-1] == (len(CONTENT), len(CONTENT))
