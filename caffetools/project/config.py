"""Settings of a fine-tuning run, each stated once.

The command line's options, the printed commands, run.json and web forms are generated from the fields of :class:`FinetuneConfig`.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

from caffetools.errors import CaffeToolsError, did_you_mean

T = TypeVar("T", bound="Config")

# The prototxts of a project.
FILES = ("train_val.prototxt", "solver.prototxt", "deploy.prototxt")


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    flags: tuple[str, ...] = (),
    metavar: str | None = None,
    minimum: float | None = None,
    positional: bool = False,
    shows_default: bool = True,
    identity: bool = True,
) -> Any:
    """Declare a field of a :class:`Config`.

    Args:
        default: Its default; a field without one is required.
        help: One line for ``--help`` and for forms.
        flags: Flags in place of ``--name-of-the-field``.
        metavar: Placeholder of the value in ``--help``.
        minimum: Smallest number allowed.
        positional: Whether it is an argument, not an option.
        shows_default: Whether ``--help`` shows the default.
        identity: Whether another value makes another run; False for what only changes where or how fast it is computed.
    """
    metadata = {
        "help": help,
        "flags": flags,
        "metavar": metavar,
        "minimum": minimum,
        "positional": positional,
        "shows_default": shows_default,
        "identity": identity,
    }
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Base of the settings of a command: a dataclass whose fields are declared by :func:`option`."""

    COMMAND: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Bring the values to the fields' types, so that a path may be given as text; refuse others, and numbers that are too small."""
        hints = get_type_hints(type(self))
        for item in dataclasses.fields(self):
            value = _converted(item.name, getattr(self, item.name), hints[item.name])
            minimum = item.metadata["minimum"]
            if minimum is not None and value is not None and not value >= minimum:
                raise CaffeToolsError(f"the setting '{item.name}' must be at least {minimum}, not {value}")
            object.__setattr__(self, item.name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values for JSON; paths become text."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}

    def identity(self) -> dict[str, Any]:
        """Return the settings that make a run what it is: two runs with the same identity compute the same."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self) if item.metadata["identity"]}

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """Return the settings that :meth:`to_dict` gave ``values`` of, or that a form sent.

        Raises:
            CaffeToolsError: A name is unknown, a value is missing, or has the wrong type.
        """
        known = {item.name: item for item in dataclasses.fields(cls)}
        if unknown := [name for name in values if name not in known]:
            raise CaffeToolsError(f"unknown setting '{unknown[0]}'{did_you_mean(unknown[0], known)}")
        if missing := [name for name, item in known.items() if item.default is MISSING and values.get(name) is None]:
            raise CaffeToolsError(f"the setting '{missing[0]}' is missing")
        hints = get_type_hints(cls)
        return cls(**{name: _converted(name, value, hints[name]) for name, value in values.items()})

    @classmethod
    def form(cls) -> list[dict[str, Any]]:
        """Return a description of every setting for a form: name, label, type, default, help, minimum, required."""
        hints = get_type_hints(cls)
        return [
            {
                "name": item.name,
                "label": item.name.replace("_", " "),
                "type": _base_type(hints[item.name]).__name__.lower(),
                "default": None if item.default is MISSING else _plain(item.default),
                "help": item.metadata["help"],
                "minimum": item.metadata["minimum"],
                "required": item.default is MISSING,
            }
            for item in dataclasses.fields(cls)
        ]

    def words(self) -> list[str]:
        """Return the command line as words: every setting that differs from its default."""
        words = [self.COMMAND]
        for item in dataclasses.fields(self):
            value, flag = getattr(self, item.name), flags_of(item)[0]
            if item.metadata["positional"]:
                words.insert(1, str(value))
            elif value != item.default and value is not None and value is not False:
                words += [flag] if value is True else [flag, _text(value)]
        return words

    def command(self) -> str:
        """Return the command line that runs these settings, quoted for a shell."""
        return command(*self.words())


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """Settings of ``caffetools finetune``; None leaves the choice to caffetools.

    Example:
        >>> FinetuneConfig(Path("photos"), Path("run"), epochs=3).command()
        'caffetools finetune photos -o run --epochs 3'
    """

    COMMAND: ClassVar[str] = "finetune"

    pictures: Path = option(help="Folder with one subfolder of images per class.", metavar="PICTURES", positional=True)
    out: Path = option(help="Folder of the run.", flags=("-o", "--out"), identity=False)
    model: str = option("squeezenet_v1.1", "Network of the zoo, or path of a train_val prototxt.")
    classes: int | None = option(None, "Expected number of classes; an error if the folders are more or fewer.")
    epochs: int | None = option(None, "Passes over the training images; by default enough for their number.", minimum=1)
    weights: Path | None = option(
        None, "Weights (.caffemodel) to start from, or a network of the zoo; by default the network's published ones."
    )
    from_scratch: bool = option(False, "Start from random weights.")
    batch: int | None = option(None, "Images per batch.", minimum=1)
    base_lr: float | None = option(None, "Base learning rate; by default a tenth of the network's own, or its own with --from-scratch.")
    size: str | None = option(None, "Size of the stored images: 256, or 320x240 (width x height).")
    crop: int | None = option(None, "Side of the square crop that the network sees; by default its own.", minimum=1)
    gray: bool = option(False, "Store one channel.")
    mean: str | None = option(None, "Mean file, or values in BGR order such as 104,117,123; by default the weights' or the dataset's.")
    stage: str | None = option(None, "A stage, for layers with include or exclude rules on stages.")
    val: float = option(0.2, "Fraction of each class that is held out for validation.")
    seed: int = option(1, "Seed of the split, the initial weights and the order of the images.", minimum=0)
    device: str = option("auto", "cpu, cuda, cuda:N or auto.", identity=False)
    precision: str = option("fp32", "fp32 (as Caffe), tf32, bf16 or fp16.", identity=False)
    checkpoint_memory: bool = option(
        False, "Recompute most activations in the backward pass: less memory, the same weights.", identity=False
    )


def command(*words: object) -> str:
    """Return a command line of caffetools, quoted where a shell needs it."""
    return shlex.join(["caffetools", *(str(word) for word in words)])


def flags_of(item: dataclasses.Field[Any]) -> tuple[str, ...]:
    """Return the flags of a field of a :class:`Config`, the printed one first."""
    return item.metadata["flags"] or (f"--{item.name.replace('_', '-')}",)


def _base_type(hint: Any) -> type:
    """Return ``int`` for ``int | None``."""
    kind: type = next((part for part in getattr(hint, "__args__", ()) if part is not type(None)), hint)
    return kind


def _converted(name: str, value: object, hint: Any) -> Any:
    kind = _base_type(hint)
    if value is None:
        if kind is not hint:
            return None
        raise CaffeToolsError(f"the setting '{name}' is missing")
    try:
        if kind is bool:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if kind is int and isinstance(value, float) and value != int(value):
            raise ValueError
        return kind(value)
    except (ValueError, TypeError, OverflowError):
        raise CaffeToolsError(f"the setting '{name}' must be of type {kind.__name__.lower()}, not {value!r}") from None


def _plain(value: object) -> Any:
    return str(value) if isinstance(value, Path) else value


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return short if float(short := f"{value:g}") == value else repr(value)
