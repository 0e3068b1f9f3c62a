"""Inference over many pictures into Parquet files, in this process and on a local Ray."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import caffetools as ct
from caffetools.cancel import CancelToken
from caffetools.data.databases import new_lmdb, record_key
from caffetools.data.datum import array_to_datum
from caffetools.data.sharding import shard_database
from caffetools.engines.torch import TorchEngine
from caffetools.errors import CaffeToolsError, Cancelled, DataError
from caffetools.events import Event, Progress, Warned
from caffetools.infer.bulk import BulkResult, classify_to_parquet, detect_to_parquet
from caffetools.infer.bulk_features import features_to_parquet, picture_features_to_parquet
from caffetools.infer.classifier import UNKNOWN_MEAN, Classifier, PreprocessOptions
from caffetools.infer.detector import Detector
from caffetools.infer.features import extract_features
from caffetools.infer.sources import find_sources
from caffetools.solver.testing import load_test_net
from tests.bundle.conftest import DETECTOR, OBJECTS
from tests.bundle.conftest import write_net as write_detector
from tests.cli.inprocess import run
from tests.infer.colours import DEPLOY, write_labels, write_net, write_pictures

parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'parquet'")


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of all files of a folder, in the order of their names."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.parquet")):
        found += parquet.read_table(path).to_pylist()
    return found


def classify(model: tuple[Path, Path, PreprocessOptions], pictures: list[str], out: Path, **more: Any) -> BulkResult:
    deploy, weights, options = model
    return classify_to_parquet(deploy, weights, options, pictures, out, **more)


def features(net: tuple[Path, Path], blobs: list[str], folders: list[Path], batches: int, **more: Any) -> BulkResult:
    return features_to_parquet(net[0], net[1], blobs, folders, batches, **more)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path, PreprocessOptions]:
    return *write_net(tmp_path), PreprocessOptions(mean="0", labels=write_labels(tmp_path))


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    names = write_pictures(tmp_path) * 2
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    return [*names, str(tmp_path / "broken.png")]


def test_rows_are_the_results_of_a_classifier(tmp_path: Path, model: Any, pictures: list[str]) -> None:
    result = classify(model, pictures, tmp_path / "out", top=2, per_file=3)
    assert (result.rows, len(result.errors)) == (7, 1)
    assert sorted(path.name for path in (tmp_path / "out").glob("part*")) == [f"part-0000{n}.parquet" for n in range(3)]
    assert json.loads((tmp_path / "out/_summary.json").read_text()) == {"rows": 7, "files": 3, "errors": 1}
    for row, wanted in zip(rows(tmp_path / "out"), Classifier(*model).classify(pictures, top=2), strict=True):
        assert (row["picture"], row["error"]) == (wanted.picture, wanted.error)
        assert row["index"] == [guess.index for guess in wanted.guesses]
        assert row["label"] == [guess.label for guess in wanted.guesses]
        assert row["probability"] == [np.float32(guess.probability) for guess in wanted.guesses]


def test_an_existing_folder_is_replaced_by_force_only(tmp_path: Path, model: Any, pictures: list[str]) -> None:
    classify(model, pictures, tmp_path / "out")
    with pytest.raises(DataError, match="out"):
        classify(model, pictures[:1], tmp_path / "out")
    classify(model, pictures[:1], tmp_path / "out", force=True)
    assert len(rows(tmp_path / "out")) == 1


def test_a_full_disk_is_an_error_of_the_folder_asked_for_and_resumes(
    tmp_path: Path, model: Any, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CaffeToolsError) as failure:
            classify(model, pictures, Path("out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(Path("out/part-00000.parquet")) in str(failure.value)
    assert str(failure.value).endswith("what is written so far is in .out.part: once there is room, --resume continues")
    assert [path.name for path in tmp_path.glob("*out*")] == [".out.part"]
    result = classify(model, pictures, Path("out"), resume=True)
    assert (result.rows, len(result.errors)) == (7, 1)
    assert [path.name for path in tmp_path.glob("*out*")] == ["out"]


def test_a_model_that_cannot_be_loaded_leaves_nothing(tmp_path: Path, model: Any, pictures: list[str]) -> None:
    with pytest.raises(CaffeToolsError, match=r"none\.caffemodel"):
        classify((model[0], tmp_path / "none.caffemodel", model[2]), pictures, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def train_net(tmp_path: Path) -> tuple[Path, Path]:
    """The net of colours with a Data layer over 11 records in 3 shards."""
    _, weights = write_net(tmp_path)
    rng = np.random.default_rng(1)
    with new_lmdb(tmp_path / "db") as writer:
        for number in range(11):
            writer.put(record_key(number, "x"), array_to_datum(rng.integers(0, 256, (3, 6, 8), np.uint8), 0).SerializeToString())
    shard_database(tmp_path / "db", tmp_path / "shards", 3)
    lines = DEPLOY.splitlines()
    data = f'layer {{ name: "data" type: "Data" top: "data" data_param {{ source: "{tmp_path}/shards" batch_size: 2 backend: LMDB }} }}'
    (tmp_path / "net.prototxt").write_text("\n".join(data if "Input" in line else line for line in lines))
    return tmp_path / "net.prototxt", weights


def test_features_are_those_of_extract_features(tmp_path: Path, train_net: Any) -> None:
    # 8 batches of 2: the records start over after the 11th.
    events: list[Event] = []
    result = features(train_net, ["mean", "prob"], [tmp_path / "mean", tmp_path / "prob"], 8, per_file=3, events=events.append)
    assert result.rows == 16 and {event.task for event in events} == {"extract"}
    extract_features(load_test_net(*train_net), ["mean", "prob"], [tmp_path / "a", tmp_path / "b"], 8)
    from caffetools.data import LmdbDataset

    for folder, database in (("mean", "a"), ("prob", "b")):
        found = rows(tmp_path / folder)
        assert [row["record"] for row in found] == list(range(16))
        dataset = LmdbDataset(tmp_path / database)
        assert len(dataset) == 16
        for number, row in enumerate(found):
            values, _ = dataset[number]
            assert row["values"] == values.reshape(-1).tolist()


def picture_features(model: tuple[Path, Path, PreprocessOptions], blobs: list[str], pictures: Any, out: Path, **more: Any) -> BulkResult:
    return picture_features_to_parquet(*model, blobs, pictures, out, **more)


def test_features_of_pictures_are_the_blobs_of_the_deployed_net(tmp_path: Path, model: Any, pictures: list[str]) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        writer.put(b"a key", array_to_datum(np.asarray(cv2.imread(pictures[1])).transpose(2, 0, 1), 0).SerializeToString())
        writer.put(b"b key", array_to_datum(np.zeros((2, 3, 3), np.uint8), 0).SerializeToString())
    sources = find_sources([*pictures, tmp_path / "db"])
    result = picture_features(model, ["data", "prob"], sources, tmp_path / "out", per_file=4, batch=3)
    assert (result.rows, len(result.errors)) == (9, 2)
    found = parquet.read_table(tmp_path / "out")
    assert found.column_names == ["picture", "data", "prob", "error"]
    assert json.loads(found.schema.field("data").metadata[b"shape"]) == [3, 6, 8]
    assert found["picture"].to_pylist() == [*pictures, "a key", "b key"]
    assert [row is None for row in found["error"].to_pylist()] == [True] * 6 + [False, True, False]
    assert found["prob"].to_pylist()[6] is None and "2 x 3 x 3" in found["error"].to_pylist()[8]
    net = TorchEngine.load(model[0], model[1]).net
    for name, data, prob in zip(
        [*pictures[:6], pictures[1]],
        *([*found[blob].to_pylist()[:6], found[blob].to_pylist()[7]] for blob in ("data", "prob")),
        strict=True,
    ):
        wanted = cv2.resize(cv2.imread(name), (8, 6)).transpose(2, 0, 1).astype(np.float32)
        np.testing.assert_array_equal(np.array(data, np.float32).reshape(3, 6, 8), wanted)
        with torch.inference_mode():
            np.testing.assert_allclose(prob, net({"data": torch.from_numpy(wanted[None])})["prob"][0].numpy(), rtol=1e-6)


def test_large_blobs_are_written_in_groups_of_rows(
    tmp_path: Path, model: Any, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffetools.infer.bulk_run._GROUP_BYTES", 2 * 3 * 6 * 8 * 4)
    picture_features(model, ["data"], pictures, tmp_path / "out")
    file = parquet.ParquetFile(tmp_path / "out/part-00000.parquet")
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [2, 2, 2, 1]
    monkeypatch.undo()
    picture_features(model, ["data"], pictures, tmp_path / "one")
    assert rows(tmp_path / "out") == rows(tmp_path / "one")


@pytest.mark.parametrize(("blobs", "words"), [(["fc9"], "has no blob 'fc9'"), (["picture"], "not for blobs"), ([], "no blob is named")])
def test_features_of_pictures_that_cannot_be(tmp_path: Path, model: Any, pictures: list[str], blobs: list[str], words: str) -> None:
    with pytest.raises(CaffeToolsError, match=words):
        picture_features(model, blobs, pictures, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mean_that_does_not_fit_is_one_error(tmp_path: Path, model: Any, pictures: list[str]) -> None:
    with pytest.raises(DataError, match="mean has 2 values"):
        picture_features((model[0], model[1], PreprocessOptions(mean="1,2")), ["prob"], pictures, tmp_path / "out")


def test_a_net_without_a_known_mean_is_warned_of_once(tmp_path: Path, model: Any, pictures: list[str]) -> None:
    for write in (classify, lambda net, names, out, **more: picture_features(net, ["prob"], names, out, **more)):
        events: list[Event] = []
        write((model[0], model[1], PreprocessOptions()), pictures, tmp_path / "out", per_file=2, events=events.append, force=True)
        assert [event.message for event in events if isinstance(event, Warned)] == [UNKNOWN_MEAN]


def test_a_cluster_writes_the_same_files(tmp_path: Path, model: Any, pictures: list[str], train_net: Any) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra 'cluster'")
    pytest.importorskip("ray.data", reason="needs the extra 'cluster'")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40, object_store_memory=1 << 27)
    try:
        classify(model, pictures, tmp_path / "cluster", per_file=3, cluster="local:2")
        features(train_net, ["prob"], [tmp_path / "cluster_prob"], 8, per_file=3, cluster="local:2")
        picture_features(model, ["prob"], pictures, tmp_path / "cluster_pictures", per_file=3, cluster="local:2")
    finally:
        ray.shutdown()
    classify(model, pictures, tmp_path / "one", per_file=3)
    features(train_net, ["prob"], [tmp_path / "one_prob"], 8, per_file=3)
    picture_features(model, ["prob"], pictures, tmp_path / "one_pictures", per_file=3)
    for file in (tmp_path / "one_pictures").iterdir():
        assert (tmp_path / "cluster_pictures" / file.name).read_bytes() == file.read_bytes()
    assert rows(tmp_path / "cluster") == rows(tmp_path / "one")
    assert rows(tmp_path / "cluster_prob") == rows(tmp_path / "one_prob")


def test_the_commands(tmp_path: Path, pictures: list[str], train_net: Any) -> None:
    deploy, weights = write_net(tmp_path)
    done = run("classify", deploy, weights, *pictures, "--mean", "0", "--parquet", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == f"Wrote 7 rows to {tmp_path / 'out'}\n"
    assert "1 of 7 pictures could not be read" in done.stderr
    done = run("extract-features", weights, train_net[0], "prob", tmp_path / "prob", 2, "parquet")
    assert (done.returncode, done.stdout) == (0, f"prob: 4 rows in {tmp_path / 'prob'}\n")
    done = run("classify", deploy, weights, *pictures, "--mean", "0", "--parquet", tmp_path / "out", "--force", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["folders"], answer["rows"], len(answer["errors"])) == (2, [str(tmp_path / "out")], 7, 1)
    done = run("extract-features", weights, train_net[0], "prob", tmp_path / "prob", 2, "parquet", "--force", "--json")
    assert json.loads(done.stdout) == [{"blob": "prob", "folder": str(tmp_path / "prob"), "rows": 4}]
    (tmp_path / "list.txt").write_text("blue.png 0\nred.png 1\n")
    pictured = ["--images", tmp_path / "list.txt", "--images", pictures[1], "--mean", "0", "--output", tmp_path / "x.parquet"]
    done = run("extract-features", weights, deploy, "score", *pictured)
    assert (done.returncode, done.stdout) == (0, f"Wrote 3 rows to {tmp_path / 'x.parquet'}\n")
    assert parquet.read_table(tmp_path / "x.parquet")["score"].to_pylist()[2] == pytest.approx([0.2, 2.5, 0.2])
    done = run("extract-features", weights, deploy, "score", tmp_path / "db", 2, "--images", tmp_path)
    assert (done.returncode, "--output" in done.stderr) == (2, True)
    done = run("classify", deploy, weights, *pictures, "--cluster", "local")
    assert done.returncode == 2
    assert "needs Parquet files as output" in done.stderr


@pytest.fixture
def detector(tmp_path: Path) -> tuple[Path, Path, PreprocessOptions]:
    folder = tmp_path / "detector"
    folder.mkdir()
    return *write_detector(folder, DETECTOR), PreprocessOptions(mean="104,117,123", labels=OBJECTS)


def test_detections_are_those_of_the_net_in_pixels_of_the_picture(tmp_path: Path, detector: Any, pictures: list[str]) -> None:
    deploy, weights, _ = detector
    found = Detector(*detector).detect(pictures[:3], batch=2)
    net = TorchEngine.load(deploy, weights).net
    assert sum(len(result.objects) for result in found) > 3
    for path, result in zip(pictures[:3], found, strict=True):
        image = cv2.resize(cv2.imread(path), (32, 24))
        blob = (image.astype(np.float32) - np.array([104, 117, 123], np.float32)).transpose(2, 0, 1)[None]
        with torch.inference_mode():
            wanted = net({"data": torch.from_numpy(np.ascontiguousarray(blob))})["found"].numpy().reshape(-1, 7)
        wanted = wanted[np.argsort(-wanted[:, 2], kind="stable")]
        assert (result.width, result.height) == (20, 12)
        assert [item.index for item in result.objects] == wanted[:, 1].astype(int).tolist()
        assert [item.label for item in result.objects] == [OBJECTS[int(label) - 1] for label in wanted[:, 1]]
        np.testing.assert_allclose([item.score for item in result.objects], wanted[:, 2], rtol=1e-5)
        np.testing.assert_allclose([item.box for item in result.objects], wanted[:, 3:] * [20, 12, 20, 12], rtol=1e-4, atol=1e-4)
    best = Detector(*detector).detect(pictures[:1], threshold=found[0].objects[1].score, top=2)[0]
    assert best.objects == found[0].objects[:2]
    array = cv2.imread(pictures[0])
    given = [pictures[0], Image.open(pictures[0]), array[:, :, ::-1].copy()]
    results = ct.detect(given, deploy, weights, mean="104,117,123", labels=OBJECTS, threshold=0)
    results += ct.detect(array, deploy, weights, mean="104,117,123", labels=OBJECTS, threshold=0, channel_order="BGR")
    assert [result.objects for result in results] == [found[0].objects] * 4


def test_detections_of_files_lists_and_databases_in_parquet(tmp_path: Path, detector: Any, pictures: list[str]) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfblue.png 0\r\n\r\nred.png\r\n")
    with new_lmdb(tmp_path / "db") as writer:
        for number, name in enumerate(pictures[:3]):
            array = np.asarray(cv2.imread(name)).transpose(2, 0, 1)
            writer.put(record_key(number, "x"), array_to_datum(array, 0).SerializeToString())
        writer.put(record_key(3, "x"), b"\xff\xff")
        writer.put(record_key(4, "x"), array_to_datum(np.zeros((2, 3, 3), np.uint8), 0).SerializeToString())
    sources = find_sources([*pictures[-2:], tmp_path / "db"], [tmp_path / "list.txt"])
    events: list[Event] = []
    result = detect_to_parquet(detector[0], detector[1], detector[2], sources, tmp_path / "out", per_file=3, batch=2, events=events.append)
    assert {event.task for event in events} == {"detect"}
    found = rows(tmp_path / "out")
    assert (result.rows, len(result.errors)) == (9, 3) == (len(found), sum(row["error"] is not None for row in found))
    names = [*pictures[-2:], *(f"{number:08d}_x" for number in range(5)), str(tmp_path / "blue.png"), str(tmp_path / "red.png")]
    assert [row["picture"] for row in found] == names
    wanted = Detector(*detector).detect(pictures[:3])
    for row, one in zip(found[2:5], wanted, strict=True):
        assert (row["width"], row["height"], row["index"]) == (20, 12, [item.index for item in one.objects])
        np.testing.assert_allclose(row["score"], [item.score for item in one.objects], rtol=1e-5)
        np.testing.assert_allclose(row["xmax"], [item.box[2] for item in one.objects], rtol=1e-4)


def test_an_interrupted_run_continues_with_the_missing_tasks_only(tmp_path: Path, model: Any, pictures: list[str]) -> None:
    token = CancelToken()

    def stop(event: Event) -> None:
        if isinstance(event, Progress):
            token.cancel()

    with pytest.raises(Cancelled):
        classify(model, pictures, tmp_path / "out", per_file=2, cancel=token, events=stop)
    part = tmp_path / ".out.part"
    assert [path.name for path in sorted(part.glob("*.parquet"))] == ["part-00000.parquet"]
    with pytest.raises(DataError, match="other arguments"):
        classify(model, pictures, tmp_path / "out", per_file=2, top=1, resume=True)
    # The first task is not run again: its pictures are missing now.
    Path(pictures[0]).rename(tmp_path / "kept.png")
    done = classify(model, pictures[:2], tmp_path / "other", per_file=2)
    assert len(done.errors) == 1
    (part / "part-00001.parquet").write_bytes(b"half")
    resumed = classify(model, pictures, tmp_path / "out", per_file=2, resume=True)
    assert (resumed.rows, len(resumed.errors)) == (7, 2)
    (tmp_path / "kept.png").rename(pictures[0])
    classify(model, pictures, tmp_path / "whole", per_file=2)
    whole, found = rows(tmp_path / "whole"), rows(tmp_path / "out")
    assert [row for row in found if row["picture"] != pictures[0]] == [row for row in whole if row["picture"] != pictures[0]]
    assert found[0] == whole[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_summary.json", *(f"part-0000{n}.parquet" for n in range(4))]


def test_the_command_detects(tmp_path: Path, detector: Any, pictures: list[str]) -> None:
    deploy, weights, _ = detector
    (tmp_path / "labels.txt").write_text("".join(f"{name}\n" for name in OBJECTS))
    done = run("detect", deploy, weights, pictures[0], "--labels", tmp_path / "labels.txt", "--threshold", 0.3, "--json")
    assert done.returncode == 0, done.stderr
    (shown,) = json.loads(done.stdout)
    assert shown["objects"] and shown["objects"][0]["label"] in OBJECTS
    done = run("detect", deploy, weights, "--list", tmp_path / "none.txt")
    assert done.returncode == 2
    assert "none.txt" in done.stderr
    done = run("detect", deploy, weights, *pictures, "--parquet", tmp_path / "out")
    assert done.returncode == 2
    assert "1 of 7 pictures could not be read" in done.stderr
    net, values, _ = *write_net(tmp_path), None
    done = run("detect", net, values, pictures[0])
    assert (done.returncode, "use classify" in done.stderr) == (2, True)
