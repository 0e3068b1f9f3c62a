"""The report of one or several fine-tuning runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import caffetools
from caffetools.graph.summary import summarize
from caffetools.onnx.export import DEFAULT_OPSET
from caffetools.project.run import FinetuneResult
from caffetools.proto.text import read_net
from caffetools.results import Step
from caffetools.visualize.model import FileEntry, KeyFigure, LayerRow, OnnxCheck, Phase, Report


def make_report(
    title: str, summary: str, learned: Sequence[FinetuneResult], titles: Sequence[str], steps: Sequence[Step], repeat: str
) -> Report:
    """A report of what was learned, a phase each; network, ONNX check and files are those of the last.

    Args:
        titles: The phases' titles. steps: Everything that was done. repeat: The one command that does it all again.
    """
    last = learned[-1]
    return Report(
        title=title,
        summary=summary,
        created=time.strftime("%Y-%m-%d %H:%M"),
        figures=_figures(learned, titles, steps),
        steps=steps,
        phases=[_phase(item, name) for item, name in zip(learned, titles, strict=True)],
        network=_network(last.deploy),
        onnx=_onnx(last),
        files=_files(learned),
        repeat=[repeat],
        environment=_environment(last),
    )


def _figures(learned: Sequence[FinetuneResult], titles: Sequence[str], steps: Sequence[Step]) -> list[KeyFigure]:
    figures = []
    for item, title in zip(learned, titles, strict=True):
        confusion = item.evaluation.confusion
        note = f"{confusion.right} of {confusion.total} held-out pictures"
        figures.append(KeyFigure(f"{confusion.accuracy:.1%}", "accuracy" if len(learned) == 1 else f"accuracy, {title}", note))
    last = learned[-1]
    figures.append(KeyFigure(str(len(last.card.classes)), "classes", f"{last.card.train_count} pictures to learn from"))
    figures.append(KeyFigure(f"{sum(step.seconds or 0 for step in steps):.0f} s", "from pictures to ONNX", f"{os.cpu_count()} CPU cores"))
    size = last.run.onnx.stat().st_size / 1e6
    figures.append(KeyFigure(f"{size:.1f} MB", "ONNX model", f"{last.verification.largest:.0e} from caffetools"))
    return figures


def _phase(item: FinetuneResult, title: str) -> Phase:
    start = f"started from {item.run.weights.name}" if item.run.weights else "started from scratch"
    note = (
        f"{item.run.model} on {', '.join(item.card.classes[:12])}{', …' if len(item.card.classes) > 12 else ''}; {start}; "
        f"{item.schedule.updates} updates of {item.schedule.batch} pictures, learning rate {item.schedule.base_lr:g}."
    )
    return Phase(title, note, item.evaluation.confusion, item.evaluation.samples, {item.run.model: item.log}, [item.filters])


def _network(deploy: Path) -> list[LayerRow]:
    return [
        LayerRow(layer.name, layer.type_name, layer.shapes[0] or (), layer.parameter_count, layer.macs)
        for layer in summarize(read_net(deploy)).layers
    ]


def _onnx(item: FinetuneResult) -> OnnxCheck:
    check = item.verification
    return OnnxCheck(
        file=item.run.onnx.name,
        opset=DEFAULT_OPSET,
        runtime=f"onnxruntime {importlib.metadata.version('onnxruntime')}",
        largest_difference=check.largest,
        tolerance=check.tolerance,
        pictures=item.evaluation.confusion.total,
        agreeing=item.agreeing,
    )


def _files(learned: Sequence[FinetuneResult]) -> list[FileEntry]:
    entries = []
    for item in learned:
        nets = item.run.nets
        for path, what in (
            (item.card.train_lmdb, "pictures to learn from, LMDB of Datum"),
            (item.card.val_lmdb, "held-out pictures"),
            (item.card.mean_file, "mean of the pictures"),
            (item.card.labels_file, "class names"),
            (nets / "train_val.prototxt", "network for training"),
            (nets / "solver.prototxt", "training settings"),
            (item.deploy, "network for use"),
            (item.weights, "weights"),
            (item.run.onnx, "ONNX model"),
        ):
            if path is not None:
                entries.append(FileEntry(str(path), _size(path), what))
    return entries


def _size(path: Path) -> int:
    return sum(inner.stat().st_size for inner in path.iterdir()) if path.is_dir() else path.stat().st_size


def _environment(item: FinetuneResult) -> dict[str, str]:
    return {
        "caffetools": caffetools.__version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "device": item.run.config.device,
        "seed": str(item.run.config.seed),
    }
