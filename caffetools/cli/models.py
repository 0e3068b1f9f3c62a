"""Networks of the zoo in place of files: the same names in every command, fetched on use."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from caffetools.cli.show import note, progress
from caffetools.util.standard_input import open_input

if TYPE_CHECKING:
    from caffetools.infer.classifier import PreprocessOptions
    from caffetools.results import Preprocessing


# Places of a deployed net, for both of which a model of the zoo may stand.
DeployArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DEPLOY",
        help="The deploy prototxt; or a network of the zoo, whose weights are fetched on use.",
        show_default=False,
        autocompletion=lambda incomplete: complete_model(incomplete),
    ),
]
WeightsArgument = Annotated[
    Path, typer.Argument(metavar="WEIGHTS", help="Its .caffemodel; the zoo's for a network of it.", show_default=False)
]


def complete_model(incomplete: str) -> list[str]:
    """Return the models of the zoo that start with a word, for the shell's completion."""
    from caffetools.zoo.names import known_names

    return [name for name in known_names() if name.startswith(incomplete.lower())]


def prototxt(path: str | Path) -> Path:
    """Return the path of a prototxt; ``-`` is standard input, which is kept in a file until the process ends.

    Args:
        path: A path, or ``-``.
    """
    return _stdin_file() if str(path) == "-" else Path(path)


def only_here(found: list[Path], kind: str, kinds: str) -> Path | None:
    """Return the only file of a kind that was found, and mention it; None where there is none.

    Args:
        found: The files.
        kind: What one is.
        kinds: What several are.

    Raises:
        CaffeToolsError: There are several; lists them.
    """
    from caffetools.cli.show import note
    from caffetools.errors import CaffeToolsError

    if len(found) > 1:
        raise CaffeToolsError(f"several {kinds} are here: {', '.join(map(str, found))}", hint="give one of them")
    if found:
        note(f"{found[0]}: the only {kind} here")
    return found[0] if found else None


def is_stdin(path: str) -> bool:
    """Return whether a path is that of the file in which standard input is kept."""
    return _stdin_file.cache_info().currsize > 0 and Path(path) == _stdin_file()


@cache
def _stdin_file() -> Path:
    folder = tempfile.mkdtemp(prefix="caffetools-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "stdin.prototxt"
    with open_input("-") as stream:
        path.write_bytes(stream.read())
    return path


def net_file(net: str | Path, kind: str) -> Path:
    """Return a net's prototxt: the file, standard input (``-``), or that of a model of the zoo.

    Args:
        net: A path, ``-``, or the name of a model.
        kind: ``"train_val"``, ``"deploy"`` or ``"solver"``, for a model.
    """
    from caffetools.zoo.names import is_model
    from caffetools.zoo.networks import prototxt_path

    return prototxt_path(str(net), kind) if is_model(str(net)) else prototxt(net)


def weights_file(weights: str | Path) -> Path:
    """Return a weights file: the file, or the published weights of a model of the zoo, fetched if they are not in the cache.

    Args:
        weights: A path, or the name of a model.

    Raises:
        ZooError: The model has no published weights, or they cannot be fetched.
    """
    from caffetools.zoo.cards import get_card
    from caffetools.zoo.fetch import fetch_weights
    from caffetools.zoo.names import is_model

    if not is_model(str(weights)):
        return Path(weights)
    card = get_card(str(weights))
    with progress(f"Fetching {card.name} (MB)") as advance:
        return fetch_weights(card, progress=lambda done, total: advance(done // 10**6, max(total // 10**6, 1)), note=note).path


def model_preprocessing(net: str | Path) -> Preprocessing | None:
    """Return the preprocessing on the card of a model of the zoo; None for a file.

    Args:
        net: A prototxt, or the name of a model.
    """
    from caffetools.infer.zoo_models import card_preprocessing
    from caffetools.zoo.cards import get_card
    from caffetools.zoo.names import is_model

    return card_preprocessing(get_card(str(net))) if is_model(str(net)) else None


def model_shapes(net: str | Path) -> dict[str, tuple[int, ...]]:
    """Return the input's shape (1, C, H, W) by the card of a model of the zoo whose net does not give it; none for other nets.

    Args:
        net: A net for training, or the name of a model.
    """
    from caffetools.graph.summary import summarize
    from caffetools.proto.text import read_net
    from caffetools.zoo.cards import get_card
    from caffetools.zoo.names import is_model

    if not is_model(str(net)) or not summarize(read_net(net_file(net, "train_val"))).unknown:
        return {}
    return {"": (1, *get_card(str(net)).input.shape)}


def deployed(deploy: str | Path, weights: str | Path, given: PreprocessOptions) -> tuple[Path, Path, PreprocessOptions]:
    """Return the files and the preprocessing of a deployed net, any of which may come from the zoo.

    Args:
        deploy: A deploy prototxt, ``-``, or the name of a model.
        weights: A .caffemodel, or the name of a model, which is fetched if it is not in the cache.
        given: Preprocessing from the command line.
    """
    from caffetools.infer.zoo_models import merge_options

    return net_file(deploy, "deploy"), weights_file(weights), merge_options(given, deploy)


class ModelCommand(TyperCommand):
    """A command of DEPLOY WEIGHTS …, in place of both of which a model of the zoo may be named once, also by ``--model NAME``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, with a model's name in the places of DEPLOY and WEIGHTS."""
        return super().parse_args(ctx, named_twice(args, self._flags_with_values()))

    def _flags_with_values(self) -> set[str]:
        options = [param for param in self.params if param.param_type_name == "option" and not getattr(param, "is_flag", False)]
        return {flag for option in options for flag in (*option.opts, *option.secondary_opts)}


def named_twice(arguments: list[str], with_values: set[str]) -> list[str]:
    """Return arguments in which a model of the zoo at the place of DEPLOY also stands at the place of WEIGHTS.

    Args:
        arguments: Of a command of DEPLOY WEIGHTS.
        with_values: Its options that take a value.

    Example:
        >>> named_twice(["-o", "m.onnx", "googlenet"], {"-o"}), named_twice(["squeezenet", "mine.caffemodel"], set())
        (['-o', 'm.onnx', 'googlenet', 'googlenet'], ['squeezenet', 'mine.caffemodel'])
    """
    from caffetools.zoo.names import is_model

    words = list(arguments)
    named = [index for index, word in enumerate(words) if word == "--model" or word.startswith("--model=")]
    if named and "--model" not in with_values:
        at = named[0]
        name = words.pop(at).partition("=")[2] or (words.pop(at) if at < len(words) else "")
        words.insert(0, name)
    places, index = [], 0
    while index < len(words) and words[index] != "--":
        if words[index] in with_values:
            index += 1
        elif not words[index].startswith("-") or words[index] == "-":
            places.append(index)
        index += 1
    if places and is_model(words[places[0]]):
        second = words[places[1]] if len(places) > 1 else ""
        if not (second.endswith((".caffemodel", ".h5")) or is_model(second)):
            words.insert(places[0] + 1, words[places[0]])
    return words
