"""The live page: who may reach it, what it answers, and the page itself in a browser."""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from caffetools.errors import Cancelled, DataError
from caffetools.net.probe import run_probe
from caffetools.net.weights import save_weights
from caffetools.visualize import live_server, page
from caffetools.visualize.attribution import backward_signal, saliency
from caffetools.visualize.colormaps import heat_of, scaled_colours
from caffetools.visualize.live_model import LiveModel, run_prefix
from caffetools.visualize.live_server import LiveServer
from caffetools.visualize.panels import enlarge
from caffetools.visualize.picture_net import PictureNet
from tests.conftest import GOLDEN
from tests.net.test_net import net_of
from tests.visualize.browser import open_page
from tests.visualize.test_predictions import TEXT


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("live")
    torch.manual_seed(0)
    (folder / "deploy.prototxt").write_text(TEXT)
    save_weights(net_of(TEXT), folder / "w.caffemodel")
    pictures = []
    for i in range(12):
        cv2.imwrite(str(folder / f"{i}.png"), np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8))
        pictures.append(folder / f"{i}.png")
    (folder / "snapshot.log").write_bytes((GOLDEN / "logs" / "train.log").read_bytes())
    with LiveServer(LiveModel(PictureNet(folder / "deploy.prototxt", folder / "w.caffemodel"), pictures, folder / "snapshot")) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def ask(server: LiveServer, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    given = {"X-Token": server.token, **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request("GET" if body is None else "POST", path, body, given)
    response = connection.getresponse()
    data = response.read()
    return response.status, json.loads(data) if response.headers["Content-Type"] == "application/json" else data.decode()


def pixels(uri: str) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


PICTURE = cv2.imencode(".png", np.random.default_rng(5).integers(0, 255, (8, 8, 3), np.uint8))[1].tobytes()


def test_only_this_computer_and_only_with_the_token(server: LiveServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/", X_Token="")[0] == ask(server, "/", X_Token="wrong")[0] == 403
    assert ask(server, "/api/frame?blob=conv1&unit=0", PICTURE, X_Token="ä")[0] == 403
    assert ask(server, f"/?token={server.token}", X_Token="", Host="evil.example:80")[0] == 403
    status, page = ask(server, f"/?token={server.token}", X_Token="")
    assert status == 200 and "<title>" in page


def test_names_of_buttons_have_their_visible_words(server: LiveServer) -> None:
    page = ask(server, f"/?token={server.token}")[1]
    buttons = re.findall(r"<button([^>]*)>(.*?)</button>", page)
    labelled = [(label[1], re.sub("<[^>]*>", "", text)) for given, text in buttons if (label := re.search('aria-label="([^"]*)"', given))]
    assert len(buttons) > 7
    assert all(text in label for label, text in labelled), labelled


def test_a_frame_is_what_the_net_computes(server: LiveServer) -> None:
    status, answer = ask(server, "/api/frame?blob=conv1&unit=2", PICTURE)
    assert status == 200
    prepared = server.model.model.prepare_pixels(cv2.imdecode(np.frombuffer(PICTURE, np.uint8), cv2.IMREAD_COLOR))
    values = run_probe(server.model.model.net, torch.from_numpy(prepared.input)[None], blobs=["conv1", "prob"]).blobs
    conv1, prob = values["conv1"][0].numpy(), values["prob"][0].numpy()
    assert answer["value"] == pytest.approx(float(conv1[2].max()), rel=1e-5)
    np.testing.assert_array_equal(pixels(answer["unit"]), enlarge(scaled_colours(conv1[2]), 260))
    assert [name for name, _ in answer["predictions"]] == [f"class {i}" for i in np.argsort(-prob)]
    assert pixels(answer["sheet"]).shape[:2] == (2 * answer["side"][0], 3 * answer["side"][1]) and answer["columns"] == 3
    status, answer = ask(server, "/api/explain?blob=ip&unit=1&method=saliency")
    heat = heat_of(saliency(server.model.model.net, prepared.input, blob="ip", unit=1))
    np.testing.assert_array_equal(pixels(answer["image"]), enlarge(scaled_colours(heat), 260))


def test_each_page_has_its_own_last_picture(server: LiveServer) -> None:
    other = cv2.imencode(".png", np.random.default_rng(6).integers(0, 255, (8, 8, 3), np.uint8))[1].tobytes()
    query = "/api/explain?blob=ip&unit=1&method=saliency&page="
    for one, picture in (("a", PICTURE), ("b", other)):
        assert ask(server, f"/api/frame?blob=conv1&unit=0&page={one}", picture)[0] == 200
    of_a, of_b = (ask(server, query + one)[1]["image"] for one in "ab")
    assert of_a != of_b
    ask(server, "/api/frame?blob=conv1&unit=0&page=alone", PICTURE)
    assert ask(server, query + "alone")[1]["image"] == of_a
    assert ask(server, query + "unknown")[0] == 400
    for i in range(20):
        ask(server, f"/api/frame?blob=conv1&unit=0&page={i}", PICTURE)
    assert len(server.model._last) == 16


def test_the_end_waits_for_requests_that_run_the_net(server: LiveServer) -> None:
    model = LiveModel(server.model.model, server.model.pictures)
    ending = LiveServer(model)
    entered, closed = threading.Event(), threading.Event()

    def close() -> None:
        entered.wait()
        ending.server_close()
        closed.set()

    thread = threading.Thread(target=close)
    thread.start()
    with ending.computing():
        entered.set()
        assert model.cancel.wait(20), "what takes long is stopped"
        assert not closed.is_set()
    thread.join(20)
    assert closed.is_set()
    with pytest.raises(DataError, match="has ended"), ending.computing():
        pass
    with pytest.raises(Cancelled):
        model.synthesize("ip", 0)
    with pytest.raises(OSError, match="in use"):
        LiveServer(model, port=server.server_address[1])


def test_channels_are_shown_as_asked(server: LiveServer) -> None:
    model = server.model.model
    prepared = model.prepare_pixels(cv2.imdecode(np.frombuffer(PICTURE, np.uint8), cv2.IMREAD_COLOR))
    address = "/api/frame?blob=conv1&unit=2"
    status, answer = ask(server, f"{address}&back=deconvnet&from=ip&of=1", PICTURE)
    back = backward_signal(model.net, prepared.input, at="conv1", method="deconvnet", blob="ip", unit=1)
    assert status == 200
    np.testing.assert_array_equal(pixels(answer["unit"]), enlarge(scaled_colours(back[2]), 260))
    as_they_are, brighter, alike = (pixels(ask(server, address + more, PICTURE)[1]["sheet"]) for more in ("", "&gamma=0.25", "&common=1"))
    assert brighter.shape == alike.shape == as_they_are.shape
    assert not np.array_equal(brighter, as_they_are) and not np.array_equal(alike, as_they_are)
    status, answer = ask(server, "/api/explain?blob=ip&unit=1&method=saliency&colour=1")
    gradient = saliency(model.net, prepared.input, blob="ip", unit=1)[::-1].transpose(1, 2, 0)
    grey = np.rint(127.5 + 127.5 * gradient / np.abs(gradient).max()).astype(np.uint8)
    np.testing.assert_array_equal(pixels(answer["image"]), enlarge(grey, 260))


def test_picture_files_are_served_by_their_number_only(server: LiveServer) -> None:
    for index in (0, 11):
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
        connection.request("GET", f"/api/picture?index={index}", headers={"X-Token": server.token})
        response = connection.getresponse()
        assert response.read() == Path(server.model.pictures[index]).read_bytes() and response.headers["X-Name"] == f"{index}.png"
    for wrong in ("-1", "12", "../0.png"):
        assert ask(server, f"/api/picture?index={wrong}")[0] == 400


def test_a_net_that_gives_no_numbers_is_shown_as_that(tmp_path: Path) -> None:
    net = net_of(TEXT)
    net.layer("conv1").blobs[0].data.fill_(float("nan"))
    save_weights(net, tmp_path / "w.caffemodel")
    (tmp_path / "deploy.prototxt").write_text(TEXT)
    with LiveServer(LiveModel(PictureNet(tmp_path / "deploy.prototxt", tmp_path / "w.caffemodel"))) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        status, answer = ask(made, "/api/frame?blob=conv1&unit=0", PICTURE)
        assert status == 200 and answer["value"] is None and {share for _, share in answer["predictions"]} == {None}
        assert ask(made, "/api/quit", b"")[0] == 200
        thread.join(20)
        assert not thread.is_alive()


def test_long_curves_are_thinned_and_have_gaps_where_the_loss_is_not_finite(server: LiveServer, tmp_path: Path) -> None:
    head = "I1124 03:22:05.190337 1 solver.cpp:"
    loss = [2 - i / 1000 if i <= 1900 else float("nan") for i in range(2001)]
    lines = [f"{head}239] Iteration {i}, loss = {x}\n{head}258]     Train net output #0: loss = {x}\n" for i, x in enumerate(loss)]
    (tmp_path / "long.log").write_text("".join(lines))
    with LiveServer(LiveModel(server.model.model, run=tmp_path / "long")) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        status, answer = ask(made, "/api/run")
        made.shutdown()
    assert status == 200
    (line,) = (line for line in answer["lines"] if line["panel"] == "loss")
    assert len(line["x"]) == len(line["y"]) <= 500 and line["x"][-1] == 2000 and line["y"][-1] is None
    assert {x: y for x, y in zip(line["x"], line["y"], strict=True) if y is not None} == {x: 2 - x / 1000 for x in line["x"] if x <= 1900}


def test_top_pictures_and_synthesized_ones(server: LiveServer) -> None:
    status, answer = ask(server, "/api/top?blob=conv1&unit=0")
    assert status == 200 and len(answer["images"]) == 9 and pixels(answer["images"][0]).shape == (84, 84, 3)
    status, answer = ask(server, "/api/synthesize?blob=prob&unit=1")
    assert status == 200 and pixels(answer["image"]).shape == (256, 256, 3)


def test_bad_requests_are_answered_and_the_server_continues(server: LiveServer) -> None:
    assert ask(server, "/api/frame?blob=conv1&unit=0", PICTURE)[0] == 200
    for path, body, message in (
        ("/api/frame?blob=conv1&unit=0", b"no picture", "the frame"),
        ("/api/frame?blob=conv9&unit=0", PICTURE, "no unit 0 of a blob 'conv9'"),
        ("/api/frame?blob=conv1&unit=99", PICTURE, "no unit 99"),
        ("/api/frame?blob=conv1&unit=x", PICTURE, "bad request"),
        ("/api/frame", PICTURE, "bad request"),
        ("/api/explain?blob=ip&unit=0&method=magic", None, "unknown method"),
        ("/nothing?blob=conv1&unit=0", None, "unknown address"),
    ):
        status, answer = ask(server, path, body)
        assert status == 400 and message in answer["error"], path
    assert ask(server, "/api/frame?blob=conv1&unit=0", None, Content_Length="99999999")[0] in (400, 413)
    assert ask(server, "/api/frame?blob=conv1&unit=0", PICTURE)[0] == 200


def test_a_page_that_is_closed_within_a_request_leaves_nothing_on_the_terminal(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, handle = threading.Event(), server.handle_error

    def handled(*arguments: Any) -> None:
        handle(*arguments)
        ended.set()

    monkeypatch.setattr(server, "handle_error", handled)
    with socket.create_connection((live_server.HOST, server.server_address[1])) as connection:
        # The connection is reset when it is closed.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(b"POST /api/frame HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nbegin")
    assert ended.wait(60)
    assert capsys.readouterr().err == ""


def test_a_run_is_followed(server: LiveServer) -> None:
    status, answer = ask(server, "/api/run")
    assert status == 200 and answer["iteration"] is None
    assert {line["panel"] for line in answer["lines"]} == {"loss", "accuracy", "lr"}


def test_a_run_is_a_folder_a_solver_or_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "solver.prototxt").write_text(f'net: "net.prototxt" snapshot_prefix: "{tmp_path / "lenet"}"\n')
    assert run_prefix(tmp_path) == tmp_path / "snapshot", "nothing is written yet"
    (tmp_path / "lenet_iter_20.solverstate").write_bytes(b"")
    for run in (tmp_path, tmp_path / "solver.prototxt", tmp_path / "lenet"):
        assert run_prefix(run) == tmp_path / "lenet"
    with pytest.raises(DataError, match="a run to follow is a folder"):
        run_prefix(tmp_path / "lenet_iter_20.solverstate")


def test_a_new_snapshot_is_loaded(tmp_path: Path) -> None:
    for name in ("tiny_iter_100", "tiny_iter_150"):
        for suffix in (".caffemodel", ".solverstate"):
            shutil.copy(GOLDEN / "logs" / f"{name}{suffix}", tmp_path)
    from tests.cli.test_visualize import DEPLOY

    (tmp_path / "deploy.prototxt").write_text(DEPLOY)
    (tmp_path / "tiny_iter_150.solverstate").rename(tmp_path / "later")
    model = LiveModel(PictureNet(tmp_path / "deploy.prototxt", tmp_path / "tiny_iter_150.caffemodel"), run=tmp_path / "tiny")
    first = model.follow()
    assert first["changed"] and first["iteration"] == 100 and not model.follow(100)["changed"]
    assert model.follow()["changed"], "a second page has not shown them yet"
    early = model.filters()
    (tmp_path / "later").rename(tmp_path / "tiny_iter_150.solverstate")
    assert model.follow()["iteration"] == 150
    later = model.filters()
    assert early is not None and later is not None and not np.array_equal(early, later)


def test_the_page_in_a_browser(server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """<script>
      function done(text) { const p = document.createElement('pre'); p.id = 'result'; p.textContent = text; document.body.append(p); }
      const wait = (test) => new Promise((resolve, reject) => { let n = 0; const t = setInterval(() => {
        if (test()) { clearInterval(t); resolve(); } else if (++n > 400) { clearInterval(t); reject(new Error('waited for ' + test)); } }, 20); });
      window.addEventListener('load', async () => { try {
        const get = (id) => document.getElementById(id), out = [], key = (k) => dispatchEvent(new KeyboardEvent('keydown', { key: k }));
        const canvas = document.createElement('canvas'); canvas.width = canvas.height = 20;
        canvas.getContext('2d').fillRect(3, 3, 9, 9);
        const blob = await new Promise((resolve) => canvas.toBlob(resolve));
        await wait(() => get('name').textContent === '0.png (1 of 12)' && get('sheet').src);
        get('predictions').replaceChildren();
        await window.caffetoolsLive.picture(blob);
        await wait(() => get('sheet').src && get('predictions').children.length === 3);
        out.push(get('predictions').children[0].textContent.includes('class'), get('mark').hidden);
        const box = get('sheet').getBoundingClientRect();
        get('sheet').dispatchEvent(new MouseEvent('click', { clientX: box.right - 3, clientY: box.top + 3 }));
        const mark = get('mark').getBoundingClientRect();
        out.push(get('unit').value, Math.abs(mark.right - box.right) < 3 && Math.abs(mark.width - box.width / 3) < 3);
        out.push(document.documentElement.scrollWidth <= innerWidth && box.right <= innerWidth);
        key('o'); await wait(() => get('blob').value === 'ip'); key('l'); await wait(() => get('unit').value === '1');
        key('x'); await wait(() => get('explanation').src); key('9'); await wait(() => get('tops').children.length === 9);
        key('s'); await wait(() => get('synthesized').src); key('h');
        key('e'); await wait(() => get('name').textContent === '1.png (2 of 12)'); key('w'); await wait(() => get('name').textContent.startsWith('0.png'));
        key('d'); key('u'); await wait(() => get('origin').textContent === 'of unit 1 of ip'); key('b'); key('b'); key('a'); key('t'); key('T');
        await wait(() => get('view').textContent === 'guided-backprop of unit 1 of ip, gamma 0.5, channels scaled alike');
        key('z'); await wait(() => !get('zoomed').hidden); key('Escape'); await wait(() => get('view').textContent === '' && get('zoomed').hidden);
        for (const delay of [0, 5, 40]) {
          const broken = new DataTransfer(); broken.items.add(new File(['text'], 'no.png', { type: 'image/png' }));
          window.caffetoolsLive.picture(blob); await new Promise((resolve) => setTimeout(resolve, delay)); get('error').textContent = '';
          get('file').files = broken.files; get('file').dispatchEvent(new Event('change'));
          await wait(() => get('error').textContent); await new Promise((resolve) => setTimeout(resolve, 400));
          out.push(get('error').textContent.startsWith('no.png: not a picture')); get('error').textContent = '';
        }
        out.push(get('keys').hidden, get('curves').children.length, get('error').textContent, location.search);
        done(out.join('|'));
      } catch (error) { done('error: ' + error); } });</script></body>"""
    real = page.render_template
    monkeypatch.setattr(live_server, "render_template", lambda name, **values: real(name, **values).replace("</body>", script))
    assert open_page(server.url, tmp_path, budget=20000) == "true|false|2|true|true|true|true|true|false|3||"
