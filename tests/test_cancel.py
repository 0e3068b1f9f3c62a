"""Work of the public API that is cancelled at each kind of its events: nothing half-made is left, and the next call makes the same bytes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import caffetools as ct
from caffetools.data.databases import open_database
from caffetools.data.datasets.adding import add_pictures
from caffetools.data.datasets.card import load_card
from caffetools.data.datasets.export import export_database
from caffetools.data.datasets.merging import merge_datasets, subset_dataset
from caffetools.data.datasets.verify import verify_database
from caffetools.data.formats.convert import convert_dataset
from caffetools.data.means import compute_mean
from caffetools.data.sharding import shard_database
from caffetools.infer.bulk import classify_to_parquet
from caffetools.infer.bulk_features import features_to_parquet
from caffetools.infer.classifier import Classifier, PreprocessOptions
from caffetools.project.evaluate import evaluate

Work = Callable[[Path, bool, ct.events.EventSink, ct.CancelToken], object]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images, a dataset of them, a LeNet for them, its weights, and an ONNX file."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(1)
    for name, level in (("dark", 40), ("light", 200)):
        (folder / "pictures" / name).mkdir(parents=True)
        (folder / "more" / name).mkdir(parents=True)
        for number in range(8):
            image = rng.normal(level, 20, (28, 28)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / "pictures" / name / f"{number}.png"), image)
        cv2.imwrite(str(folder / "more" / name / "new.png"), rng.integers(0, 256, (28, 28), dtype=np.uint8))
    data = ct.build_dataset(folder / "pictures", folder / "data", size="28", gray=True)
    subset_dataset(folder / "data", folder / "fewer", per_class=2)
    net = ct.retarget(ct.zoo_prototxt("lenet", "train_val"), dataset=data)
    net.save(folder / "net")
    text = (folder / "net" / "solver.prototxt").read_text()
    (folder / "net" / "solver.prototxt").write_text(text + "random_seed: 3\n")
    trained = ct.train(folder / "net" / "solver.prototxt", device="cpu", max_iter=2)
    assert trained.snapshot is not None
    Path(trained.snapshot.weights).rename(folder / "w.caffemodel")
    ct.export_onnx(folder / "net" / "deploy.prototxt", folder / "w.caffemodel", folder / "m.onnx")
    for path in (folder / "net").glob("snapshot*"):
        path.unlink()
    options = PreprocessOptions(mean=[0], labels=["dark", "light"])
    ct.build_bundle(folder / "net" / "deploy.prototxt", folder / "w.caffemodel", folder / "bundle", "onnxruntime", options)
    shutil.copytree(folder / "net", folder / "project")
    (folder / "project" / "solver.prototxt").write_text((text + "random_seed: 3\n").replace(f"{folder}/net/", f"{folder}/project/"))
    ct.train(folder / "project" / "solver.prototxt", device="cpu", max_iter=1)
    return folder


def dataset(place: Path) -> Work:
    def work(out: Path, resume: bool, events: ct.events.EventSink, cancel: ct.CancelToken) -> object:
        return ct.build_dataset(place / "pictures", out / "data", size="28", gray=True, resume=resume, events=events, cancel=cancel)

    return work


def train(place: Path) -> Work:
    def work(out: Path, resume: bool, events: ct.events.EventSink, cancel: ct.CancelToken) -> object:
        text = (place / "net" / "solver.prototxt").read_text().replace(f"{place}/net/snapshot", str(out / "snapshot"))
        for name, value in (("max_iter", 6), ("display", 2), ("snapshot", 4), ("test_interval", 3), ("test_iter", 1)):
            lines = [line for line in text.splitlines() if not line.startswith(f"{name}:")]
            text = "\n".join([*lines, f"{name}: {value}", ""])
        (out / "solver.prototxt").write_text(text)
        done = ct.train(out / "solver.prototxt", device="cpu", resume=resume, events=events, cancel=cancel)
        if done.stopped:
            raise ct.Cancelled("stopped with a snapshot")
        return done.solver.iteration

    return work


def score(place: Path) -> Work:
    return lambda out, resume, events, cancel: ct.test(
        place / "net" / "train_val.prototxt", place / "w.caffemodel", iterations=3, events=events, cancel=cancel
    )


def export(place: Path) -> Work:
    return lambda out, resume, events, cancel: ct.export_onnx(
        place / "net" / "deploy.prototxt", place / "w.caffemodel", out / "m.onnx", events=events, cancel=cancel
    )


def verify(place: Path) -> Work:
    return lambda out, resume, events, cancel: ct.verify(
        place / "m.onnx", place / "net" / "deploy.prototxt", place / "w.caffemodel", events=events, cancel=cancel
    )


def quantize(place: Path) -> Work:
    def work(out: Path, resume: bool, events: ct.events.EventSink, cancel: ct.CancelToken) -> object:
        deploy, weights = place / "net" / "deploy.prototxt", place / "w.caffemodel"
        return ct.quantize(
            deploy, weights, out / "int8.onnx", place / "pictures", mean=[0], batch=4, resume=resume, events=events, cancel=cancel
        )

    return work


def import_(place: Path) -> Work:
    return lambda out, resume, events, cancel: ct.import_onnx(place / "m.onnx", out / "net", events=events, cancel=cancel)


def check(place: Path) -> Work:
    return lambda out, resume, events, cancel: ct.check_bundle(place / "bundle", engine="onnxruntime", events=events, cancel=cancel)


def classify(place: Path) -> Work:
    # Two batches.
    pictures = [place / "pictures" / name for name in ("dark", "light")] * 2
    return lambda out, resume, events, cancel: ct.Project.open(place / "project").classify(pictures, events=events, cancel=cancel)


def of_records(call: Callable[..., object]) -> Callable[[Path], Work]:
    """Work of the data room: ``call(training database, dataset, out, events=, cancel=)``."""
    return lambda place: (
        lambda out, resume, events, cancel: call(place / "data" / "train_lmdb", place / "data", out / "made", events=events, cancel=cancel)
    )


def add(place: Path) -> Work:
    def work(out: Path, resume: bool, events: ct.events.EventSink, cancel: ct.CancelToken) -> object:
        shutil.copytree(place / "data", out / "data", dirs_exist_ok=True)
        return add_pictures(out / "data", place / "more", out=out / "made", events=events, cancel=cancel)

    return work


def bulk(place: Path) -> Work:
    pictures = [path for name in ("dark", "light") for path in sorted((place / "pictures" / name).iterdir())]

    def work(out: Path, resume: bool, events: ct.events.EventSink, cancel: ct.CancelToken) -> object:
        deploy, weights, options = place / "net" / "deploy.prototxt", place / "w.caffemodel", PreprocessOptions(mean=[0])
        return classify_to_parquet(
            deploy, weights, options, pictures, out / "made", per_file=4, resume=resume, events=events, cancel=cancel
        ).rows  # fmt: skip

    return work


def features(place: Path) -> Work:
    def work(out: Path, resume: bool, events: ct.events.EventSink, cancel: ct.CancelToken) -> object:
        net, weights = place / "net" / "train_val.prototxt", place / "w.caffemodel"
        return features_to_parquet(
            net, weights, ["ip1"], [out / "made"], 1, per_file=1, resume=resume, events=events, cancel=cancel
        ).rows  # fmt: skip

    return work


def evaluation(place: Path) -> Work:
    card = load_card(place / "data")
    options = PreprocessOptions(mean=[0], labels=list(card.classes))

    def work(out: Path, resume: bool, events: ct.events.EventSink, cancel: ct.CancelToken) -> object:
        classifier = Classifier(place / "net" / "deploy.prototxt", place / "w.caffemodel", options)
        return evaluate(classifier, card, events=events, cancel=cancel).predicted

    return work


def bundle(place: Path) -> Work:
    options = PreprocessOptions(mean=[0], labels=["dark", "light"])
    return lambda out, resume, events, cancel: ct.build_bundle(
        place / "net" / "deploy.prototxt", place / "w.caffemodel", out / "made", "onnxruntime", options, events=events, cancel=cancel
    )


# What each makes, in its own folder.
MADE = {
    "dataset": (dataset, ["data/train_lmdb", "data/val_lmdb", "data/mean.binaryproto", "data/train.txt", "data/val.txt"]),
    "train": (train, ["snapshot_iter_6.caffemodel", "snapshot_iter_6.solverstate"]),
    "test": (score, []),
    "export": (export, ["m.onnx"]),
    "verify": (verify, []),
    "quantize": (quantize, ["int8.onnx", "int8.tensorrt.cache"]),
    "import": (import_, ["net/deploy.prototxt", "net/weights.caffemodel"]),
    "check": (check, []),
    "classify": (classify, []),
    "merge": (
        of_records(lambda _, data, out, **control: merge_datasets([data, data.parent / "fewer"], out, **control)),
        ["made/train_lmdb", "made/mean.binaryproto"],
    ),
    "subset": (of_records(lambda _, data, out, **control: subset_dataset(data, out, per_class=3, **control)), ["made/train_lmdb"]),
    "add": (add, ["made/train_lmdb", "made/val_lmdb", "made/train.txt"]),
    "shard": (of_records(lambda database, _, out, **control: shard_database(database, out, 3, **control)), ["made/index.json"]),
    "write pictures": (of_records(lambda database, _, out, **control: export_database(database, out, **control)), ["made/list.txt"]),
    "convert": (
        of_records(lambda database, _, out, **control: convert_dataset("lmdb", database, out, to="hdf5", **control)),
        ["made/data_0000.h5"],
    ),
    "mean": (of_records(lambda database, _, out, **control: compute_mean(database, **control).tobytes()), []),
    "verify records": (of_records(lambda database, _, out, **control: verify_database(database, **control)), []),
    "classify many": (bulk, ["made/part-00000.parquet", "made/part-00003.parquet"]),
    "features": (features, ["made/part-00000.parquet"]),
    "evaluate": (evaluation, []),
    "bundle": (bundle, ["made/model.onnx", "made/SHA256SUMS"]),
}


def content(path: Path) -> object:
    """The bytes of a file; of a database its records, whose pages depend on when they were committed."""
    if path.is_file():
        return path.read_bytes()
    with contextlib.closing(open_database(path)) as database:
        return list(database.records())


@pytest.mark.parametrize("name", MADE)
def test_work_cancelled_at_each_kind_of_event_is_done_again_to_the_same_bytes(name: str, place: Path, tmp_path: Path) -> None:
    make, files = MADE[name]
    work, seen, out = make(place), list[str](), tmp_path / "out"
    out.mkdir()
    whole = work(out, False, lambda event: seen.append(event.kind), ct.CancelToken())
    made = [content(out / file) for file in files]
    kinds = list(dict.fromkeys(seen))
    assert "progress" in kinds
    # What has a beginning ends with its end: nothing comes after it.
    assert "finished" not in seen or seen[-1] == "finished", f"{name} goes on after its end: {seen[-3:]}"
    for kind in kinds:
        shutil.rmtree(out)
        out.mkdir()
        token = ct.CancelToken()

        def sink(event: ct.events.Event, kind: str = kind, token: ct.CancelToken = token) -> None:
            if event.kind == kind:
                token.cancel()

        try:
            result = work(out, False, sink, token)
        except ct.Cancelled:
            result = work(out, True, ct.events.ignore, ct.CancelToken())
        else:
            # The work was complete when the event came.
            assert kind not in ("started", "metrics"), kind
        assert [content(out / file) for file in files] == made, f"{name}, cancelled at {kind}"
        assert files or result == whole
        assert not [path.name for path in out.iterdir() if path.name.startswith(".")], f"{name}, cancelled at {kind}"


@pytest.mark.parametrize("make", [import_, check, classify])
def test_work_stops_between_its_parts(make: Callable[[Path], Work], place: Path, tmp_path: Path) -> None:
    """Cancelled at its first progress, it makes no further one, and ends as cancelled where it has a beginning and an end."""
    token, seen = ct.CancelToken(), list[ct.events.Event]()

    def sink(event: ct.events.Event) -> None:
        seen.append(event)
        if isinstance(event, ct.events.Progress):
            assert event.done < event.total
            token.cancel()

    with pytest.raises(ct.Cancelled):
        make(place)(tmp_path, False, sink, token)
    assert sum(isinstance(event, ct.events.Progress) for event in seen) == 1
    assert [event.status for event in seen if isinstance(event, ct.events.Finished)] == ["cancelled"] * (make is not classify)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [import_, check])
def test_the_events_begin_and_end_and_count_all_parts(make: Callable[[Path], Work], place: Path, tmp_path: Path) -> None:
    seen = list[ct.events.Event]()
    make(place)(tmp_path, False, seen.append, ct.CancelToken())
    assert seen[0].kind == "started" and isinstance(seen[-1], ct.events.Finished) and seen[-1].status == "done"
    steps = [event for event in seen if isinstance(event, ct.events.Progress)]
    for unit in dict.fromkeys(step.unit for step in steps):
        counted = [(step.done, step.total) for step in steps if step.unit == unit]
        assert counted == [(number, len(counted)) for number in range(1, len(counted) + 1)]
    written = [Path(event.path) for event in seen if isinstance(event, ct.events.ArtifactWritten)]
    assert sorted(written) == sorted(path for path in tmp_path.rglob("*") if path.is_file())


def test_nothing_is_written_by_a_cancelled_export(place: Path, tmp_path: Path) -> None:
    token = ct.CancelToken()
    with pytest.raises(ct.Cancelled):
        export(place)(tmp_path, False, lambda event: token.cancel() if event.kind == "progress" else None, token)
    assert list(tmp_path.iterdir()) == []
