"""The commands by name, each imported only when it is used.

``--help`` shows the first sentence of each command's docstring, which is read from the source without an import; one command needs
none of the others.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator, MutableMapping
from functools import cache, partial
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from caffetools.cli.help import Command


class Entry(NamedTuple):
    """A command: where it is shown and where it is defined.

    Attributes:
        panel: Its panel in ``--help``.
        module: Its module in ``caffetools.cli``.
        attribute: Its function, or a typer app of commands; the module's own name if empty.
        example: A right use, for ``--help`` and usage errors.
        alone: Whether it does something without any argument.
        script: Whether everything after its first argument belongs to a script.
        model: Whether it takes DEPLOY WEIGHTS, for both of which a model of the zoo may stand.
    """

    panel: str
    module: str
    attribute: str = ""
    example: str = ""
    alone: bool = False
    script: bool = False
    model: bool = False

    @property
    def help(self) -> str:
        """The first paragraph of the command's docstring."""
        return _summary(self.module, self.attribute or self.module)


class HelpForm(NamedTuple):
    """How help is written, as the object of the context.

    Attributes:
        as_json: As JSON in place of panels.
    """

    as_json: bool = False


HELP_FLAGS = ["-h", "--help"]
_END_TO_END, _DATA, _NETS, _TRAINING = "End to end", "Data", "Networks", "Training"
_INFERENCE, _CONVERSION, _ENVIRONMENT = "Inference", "Export and conversion", "Environment"

# In the order in which a user meets them.
COMMANDS = {
    "demo": Entry(_END_TO_END, "demo", example="caffetools demo", alone=True),
    "finetune": Entry(_END_TO_END, "finetune", example="caffetools finetune photos -o run"),
    "dataset": Entry(_DATA, "dataset", attribute="app", example="caffetools dataset build photos data"),
    "mean": Entry(_DATA, "mean", example="caffetools mean data/train_lmdb mean.binaryproto"),
    "convert-imageset": Entry(_DATA, "convert_imageset", example="caffetools convert-imageset images/ train.txt train_lmdb"),
    "convert-mnist-data": Entry(
        _DATA,
        "dataset_convert",
        attribute="convert_mnist_data",
        example="caffetools convert-mnist-data train-images-idx3-ubyte train-labels-idx1-ubyte mnist_train_lmdb",
    ),
    "convert-mnist-siamese-data": Entry(
        _DATA,
        "dataset_convert",
        attribute="convert_mnist_siamese_data",
        example="caffetools convert-mnist-siamese-data train-images-idx3-ubyte train-labels-idx1-ubyte mnist_siamese_train_leveldb",
    ),
    "convert-cifar-data": Entry(
        _DATA, "dataset_convert", attribute="convert_cifar_data", example="caffetools convert-cifar-data data/cifar10 examples/cifar10 lmdb"
    ),
    "zoo": Entry(_NETS, "zoo", attribute="app", example="caffetools zoo list"),
    "status": Entry(_NETS, "status", example="caffetools status run", alone=True),
    "inspect": Entry(_NETS, "inspect", example="caffetools inspect alexnet"),
    "diff": Entry(_NETS, "diff", example="caffetools diff before.prototxt after.prototxt"),
    "retarget": Entry(_NETS, "retarget", example="caffetools retarget alexnet --classes 120 -o net", alone=True),
    "deploy": Entry(_NETS, "deploy", example="caffetools deploy train_val.prototxt -o deploy.prototxt"),
    "trainable": Entry(_NETS, "trainable", example="caffetools trainable deploy.prototxt -o net"),
    "upgrade": Entry(_NETS, "upgrade", example="caffetools upgrade old.prototxt new.prototxt"),
    "time": Entry(_NETS, "time", example="caffetools time train_val.prototxt"),
    "train": Entry(_TRAINING, "train", example="caffetools train net/solver.prototxt --weights alexnet", alone=True),
    "test": Entry(_TRAINING, "test", example="caffetools test train_val.prototxt --weights weights.caffemodel"),
    "curves": Entry(_TRAINING, "curves", example="caffetools curves net/snapshot.log -o curves.png"),
    "report": Entry(_TRAINING, "report", example="caffetools report run", alone=True),
    "visualize": Entry(_TRAINING, "visualize", attribute="app", example="caffetools visualize filters weights.caffemodel -o filters.png"),
    "classify": Entry(_INFERENCE, "classify", example="caffetools classify googlenet photo.jpg"),
    "detect": Entry(_INFERENCE, "detect", example="caffetools detect deploy.prototxt weights.caffemodel photo.jpg"),
    "infer": Entry(_INFERENCE, "infer", example="caffetools infer squeezenet photo.jpg --outputs fire9/concat,prob -o blobs", model=True),
    "extract-features": Entry(
        _INFERENCE, "extract_features", example="caffetools extract-features weights.caffemodel train_val.prototxt fc7 features_lmdb 10"
    ),
    "export": Entry(_CONVERSION, "export", example="caffetools export deploy.prototxt weights.caffemodel -o model.onnx", model=True),
    "quantize": Entry(
        _CONVERSION,
        "quantize",
        example="caffetools quantize deploy.prototxt weights.caffemodel --calibration photos -o int8.onnx",
        model=True,
    ),
    "bundle": Entry(
        _CONVERSION, "bundle", example="caffetools bundle --target jetson deploy.prototxt weights.caffemodel -o bundle", model=True
    ),
    "import": Entry(_CONVERSION, "import_", example="caffetools import model.onnx -o net"),
    "verify": Entry(_CONVERSION, "verify", example="caffetools verify deploy.prototxt weights.caffemodel model.onnx", model=True),
    "engine": Entry(_ENVIRONMENT, "engine", attribute="app", example="caffetools engine list"),
    "run": Entry(_ENVIRONMENT, "run", example="caffetools run script.py", script=True),
    "shims": Entry(_ENVIRONMENT, "shims", attribute="app", example="caffetools shims install"),
    "device-query": Entry(_ENVIRONMENT, "device_query", example="caffetools device-query", alone=True),
    "doctor": Entry(_ENVIRONMENT, "doctor", example="caffetools doctor", alone=True),
    "version": Entry(_ENVIRONMENT, "doctor", attribute="version", example="caffetools version", alone=True),
}

# Tools of Caffe that have no other command here; they work and are not listed.
CAFFE_TOOLS = {
    "draw-net": Entry(_NETS, "caffe_tools", attribute="draw_net", example="caffetools draw_net train_val.prototxt net.png"),
    "parse-log": Entry(_TRAINING, "caffe_tools", attribute="parse_log", example="caffetools parse_log caffe.log ."),
    "plot-training-log": Entry(
        _TRAINING, "caffe_tools", attribute="plot_training_log", example="caffetools plot_training_log 6 loss.png caffe.log"
    ),
}

# Commands whose output is their result, which --quiet does not leave out.
_ANSWERS = {
    *(
        "status",
        "inspect",
        "diff",
        "time",
        "test",
        "classify",
        "verify",
        "device-query",
        "doctor",
        "version",
        "mean",
        "zoo list",
        "zoo show",
    ),
    *("engine list", "dataset inspect", "dataset verify", "dataset stats", "shims status", "run", "visualize receptive-field"),
}


def is_answer(arguments: list[str]) -> bool:
    """Return whether the output of a command line is its result, and not a report on what it has written.

    Args:
        arguments: The command line, without the program's name.
    """
    words = [word for word in arguments if not word.startswith("-")][:2]
    return bool({"--help", "-h", "--version"} & set(arguments)) or not words or bool({words[0], " ".join(words)} & _ANSWERS)


# An example of each command of a group.
EXAMPLES = {
    "zoo list": "caffetools zoo list",
    "zoo show": "caffetools zoo show squeezenet",
    "zoo fetch": "caffetools zoo fetch squeezenet",
    "zoo copy": "caffetools zoo copy squeezenet squeezenet",
    "engine add": "caffetools engine add opencv4",
    "engine list": "caffetools engine list",
    "shims install": "caffetools shims install",
    "shims remove": "caffetools shims remove",
    "shims status": "caffetools shims status",
    "visualize filters": "caffetools visualize filters squeezenet -o filters.png",
    "visualize activations": "caffetools visualize activations squeezenet photo.jpg -o activations.png",
    "visualize weights": "caffetools visualize weights squeezenet -o weights.png",
    "visualize graph": "caffetools visualize graph squeezenet -o graph.svg",
    "visualize curves": "caffetools visualize curves net/snapshot.log -o curves.png",
    "visualize explain": "caffetools visualize explain squeezenet photo.jpg -o explain.png",
    "visualize occlusion": "caffetools visualize occlusion squeezenet photo.jpg -o occlusion.png",
    "visualize receptive-field": "caffetools visualize receptive-field squeezenet",
    "visualize confusion": "caffetools visualize confusion net/deploy.prototxt weights.caffemodel data -o confusion.png",
    "visualize roc": "caffetools visualize roc net/deploy.prototxt weights.caffemodel data -o roc.png",
    "visualize errors": "caffetools visualize errors net/deploy.prototxt weights.caffemodel data -o errors.png",
    "visualize embedding": "caffetools visualize embedding net/deploy.prototxt weights.caffemodel data -o embedding.html",
    "visualize top-images": "caffetools visualize top-images squeezenet photos --blob conv10 -o top.png",
    "visualize synthesize": "caffetools visualize synthesize squeezenet --unit 3 -o units.png",
    "visualize deepdream": "caffetools visualize deepdream googlenet photo.jpg --blob inception_4c/output -o dream.png",
    "visualize style": "caffetools visualize style vgg19 photo.jpg painting.jpg -o styled.png",
    "visualize live": "caffetools visualize live squeezenet --pictures photos",
    "visualize all": "caffetools visualize all squeezenet photo.jpg -o visualize.html",
}


@cache
def _summary(module: str, attribute: str) -> str:
    """Return the first paragraph of a function's docstring, or the ``help`` of a typer app, without importing its module."""
    tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == attribute:
            return flowing(ast.get_docstring(node) or "").split("\n\n")[0]
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == attribute and isinstance(node.value, ast.Call):
            return next((str(k.value.value) for k in node.value.keywords if k.arg == "help" and isinstance(k.value, ast.Constant)), "")
    return ""


class NoSuchCommand(typer.BadParameter):
    """A name of which its group has no command.

    Attributes:
        word: The name as it was typed.
        known: The names that the group has.
    """

    def __init__(self, word: str, known: list[str], ctx: Any):
        super().__init__(f"there is no command '{word}'", ctx=ctx)
        self.word, self.known = word, known


class Group(TyperGroup):
    """A group of commands; a name of which it has none is an error of its own type."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the name, the command and its arguments. Raises :class:`NoSuchCommand`."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            raise NoSuchCommand(args[0], list(self.commands), ctx)
        return super().resolve_command(ctx, args)


class Commands(Group):
    """A group that builds each command when it is used."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.commands: MutableMapping[str, Any] = _Loaded()
        self._listing = False

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C is one line and exit code 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.stderr.write("caffetools: interrupted\n")
            sys.exit(130)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; for the list of all, only what is listed."""
        if self._listing and cmd_name in COMMANDS:
            entry = COMMANDS[cmd_name]
            return TyperCommand(cmd_name, help=entry.help, rich_help_panel=entry.panel)
        return super().get_command(ctx, cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the list of all commands, for which none is imported."""
        self._listing = True
        try:
            _write_help(self, ctx, formatter)
        finally:
            self._listing = False


class _Loaded(MutableMapping[str, Any]):
    """Name → command, built on first use."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = _build(name, (COMMANDS | CAFFE_TOOLS)[name])
        return self._built[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        del self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _build(name: str, entry: Entry) -> Any:
    thing = getattr(importlib.import_module(f"caffetools.cli.{entry.module}"), entry.attribute or entry.module)
    example = f"Example: {entry.example}" if entry.example else None
    if isinstance(thing, typer.Typer):
        for info in thing.registered_commands:
            info.help = flowing(info.callback.__doc__ or "" if info.callback else "")
            inner = info.name or (info.callback.__name__.replace("_", "-") if info.callback else "")
            info.epilog = f"Example: {EXAMPLES[f'{name} {inner}']}" if f"{name} {inner}" in EXAMPLES else info.epilog
        thing.info.cls = Group
        group = typer.main.get_group(thing)
        group.name, group.epilog = name, example
        for command in (group, *group.commands.values()):
            _complete(command)
        return group
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    context = {"allow_interspersed_args": False} if entry.script else None
    kind = importlib.import_module("caffetools.cli.models").ModelCommand if entry.model else None
    more: dict[str, Any] = {"epilog": example, "no_args_is_help": not entry.alone, "context_settings": context}
    app.command(name, cls=kind, help=flowing(thing.__doc__ or ""), **more)(thing)
    command = typer.main.get_command(app)
    _complete(command)
    return command


def _complete(command: Any) -> None:
    """Give a command of typer our own help, and the check that all commands make of numbers."""
    vars(command)["format_help"] = partial(_write_help, command)
    vars(command)["parse_args"] = partial(_parse_args, command)


def _parse_args(command: TyperCommand | TyperGroup, ctx: typer.Context, args: list[str]) -> list[str]:
    from caffetools.cli.numbers import check_numbers

    kind: Any = type(command)
    rest: list[str] = kind.parse_args(command, ctx, args)
    check_numbers(ctx)
    return rest


def _write_help(command: Command, ctx: typer.Context, formatter: object) -> None:
    """Write a command's help in place of typer's ``format_help``; rich is imported for it only."""
    from caffetools.cli.help import write_help, write_help_as_json

    form = ctx.find_root().obj
    write = write_help_as_json if isinstance(form, HelpForm) and form.as_json else write_help
    write(command, ctx)


def flowing(docstring: str) -> str:
    """Return a docstring with each paragraph on one line, for the terminal to break; its sections (``Args:``…) are left out."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in cleandoc(docstring).split("\n\n")]
    return "\n\n".join(paragraph for paragraph in paragraphs if not paragraph.startswith(("Args:", "Raises:", "Returns:", "Example:")))
