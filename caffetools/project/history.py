"""history.json: what a run resolved, did and measured, from which its report can be written again."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import caffetools
from caffetools.errors import CaffeToolsError
from caffetools.project.config import FinetuneConfig
from caffetools.project.manifest import HISTORY, SETTINGS, path_from_here
from caffetools.proto.sniff import wrong_kind
from caffetools.results import Step
from caffetools.solver.run import choose_device
from caffetools.util.checksums import file_sha256
from caffetools.util.files import write_text
from caffetools.util.threads import cpu_count
from caffetools.visualize.model import OnnxCheck

CPU_THREADS = "CPU threads"


@dataclass(frozen=True)
class RunHistory:
    """What was done in the folder of a run.

    Attributes:
        settings: All settings as plain values; run.json leaves out those that say where and how fast a run is computed.
        model: Name of the network.
        start: The weights that the training started from; None for random ones.
        environment: Software, device and seed, by name.
        seconds: Duration of each step by its title, interrupted attempts included.
        folder: The working directory, from which the paths in the steps' commands start.
        steps: All steps; empty until the run is finished.
        onnx: Check of the exported model; None until the run is finished.
        digests: SHA-256 of the weights and of the model that ``onnx`` is about.
    """

    settings: dict[str, Any]
    model: str
    start: str | None
    environment: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    folder: str = ""
    steps: Sequence[Step] = ()
    onnx: OnnxCheck | None = None
    digests: Sequence[str] = ()

    def describes(self, weights: Path, onnx: Path) -> bool:
        """Return whether the steps and the check are about these two files, as they are now."""
        return self.onnx is not None and onnx.is_file() and list(self.digests) == digests(weights, onnx)

    def start_from_here(self, folder: Path) -> Path | None:
        """Return the weights that the run in ``folder`` started from, as they are found from the working directory."""
        return Path(path_from_here(self.start, folder / HISTORY)) if self.start else None


def describe_environment(device: str, seed: int) -> dict[str, str]:
    """Return the versions and settings that numbers and durations depend on; ``auto`` as the device that it stands for."""
    return {
        "caffetools": caffetools.__version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(choose_device(device)),
        CPU_THREADS: str(cpu_count()),
        "seed": str(seed),
    }


def digests(weights: Path, onnx: Path) -> list[str]:
    """Return the SHA-256 of the two files of a finished run."""
    return [file_sha256(weights), file_sha256(onnx)]


def write_history(folder: Path, history: RunHistory) -> None:
    """Write the history of the run in ``folder``."""
    write_text(folder / HISTORY, json.dumps(dataclasses.asdict(history), indent=2, ensure_ascii=False) + "\n")


def read_history(folder: Path) -> RunHistory | None:
    """Return the history of the run in ``folder``; None where there is none that can be read."""
    # It only adds to what the other files of the run say: the run is reported without it, too.
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        values = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
        values["steps"] = [Step(**step) for step in values["steps"]]
        values["onnx"] = OnnxCheck(**values["onnx"]) if values["onnx"] else None
        return RunHistory(**values)
    return None


def read_config(folder: Path, history: RunHistory | None) -> FinetuneConfig:
    """Return the settings of the run in ``folder``, with paths as they are found from the working directory.

    Args:
        folder: The run's folder.
        history: Its history, for the settings that are not in run.json.

    Raises:
        CaffeToolsError: It is not the folder of a run, or its run.json is damaged.
    """
    path = folder / SETTINGS
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values = {**(history.settings if history is not None else {}), **values}
        values.pop("inputs", None)
        for name in ("pictures", "model", "weights", "mean"):
            # A model's name, or values of a mean, are no files.
            found = path_from_here(values[name], path) if values.get(name) else ""
            values |= {name: found} if found and (name == "pictures" or Path(found).is_file()) else {}
    except OSError:
        if not folder.is_dir():
            if other := wrong_kind(CaffeToolsError, folder, "the folder that caffetools finetune wrote (-o)"):
                raise other from None
            raise CaffeToolsError("there is no such folder; name the folder that caffetools finetune wrote (-o)", path=folder) from None
        above = folder.resolve().parent
        hint = f"the run is {above}" if (above / SETTINGS).is_file() else None
        raise CaffeToolsError(f"{folder}: not the folder of a run of caffetools finetune: it has no {SETTINGS}", hint=hint) from None
    except (ValueError, AttributeError, TypeError):
        raise CaffeToolsError(f"{path}: damaged; it is not what caffetools finetune wrote") from None
    try:
        return FinetuneConfig.from_dict({**values, "out": str(folder)})
    except CaffeToolsError as error:
        raise error.located(path) from None
