"""The command to run next, with the real paths, weights and pictures of the user's files filled in.

Each function returns a command line that works when it is pasted into a shell, or "" where no such command is known.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from caffetools.data.datasets.card import DatasetCard
from caffetools.errors import CaffeToolsError
from caffetools.graph.graph import graphs_present, phases_present
from caffetools.graph.inputs import data_layers
from caffetools.graph.summary import parameter_shapes
from caffetools.graph.weights_diff import all_fit
from caffetools.infer.data_preprocessing import card_of
from caffetools.layers.registry import is_known, layer_class
from caffetools.project.config import command
from caffetools.project.evaluate import held_out
from caffetools.project.find import missing_sources
from caffetools.project.surroundings import picture_folders
from caffetools.proto.binary import read_caffemodel
from caffetools.proto.file_names import read_net_near_files
from caffetools.proto.schema import TEST, TRAIN, LayerParameter, NetParameter
from caffetools.proto.text import read_solver
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.solver.checkpoints.resume import newest_snapshot
from caffetools.solver.control import no_log
from caffetools.solver.paths import find_base, find_net, snapshot_prefix
from caffetools.zoo.cards import get_card
from caffetools.zoo.names import find_model, is_model

PathLike = str | os.PathLike[str]


def dataset_command(data: Path) -> str:
    """Return the command that builds a dataset of the pictures in this folder; "" where there are none, or a dataset.

    Args:
        data: Folder for the dataset.
    """
    pictures = picture_folders(Path())
    return command("dataset", "build", pictures[0], data) if pictures and not data.exists() else ""


def lacks_data(net: PathLike) -> bool:
    """Return whether a net for training reads data that does not exist."""
    with suppress(CaffeToolsError, OSError):
        return bool(missing_sources(_read(net)))
    return False


def after_training(solver: Path, weights: Path, iterations: int) -> str:
    """Return the command after ``train``: test the new weights, or deploy where the net has no TEST phase.

    Args:
        solver: The solver's prototxt.
        weights: The new .caffemodel.
        iterations: Test batches of the solver; 0 if it does not test.
    """
    with suppress(CaffeToolsError):
        net = net_of_solver(solver)
        if net is not None and TEST in phases_present(_read(net)):
            return command("test", net, "--weights", weights, *(["--iterations", iterations] if iterations else []))
        return after_test(net, weights) if net is not None else ""
    return ""


def after_test(net: PathLike, weights: PathLike) -> str:
    """Return the command after ``test``: write the deploy net, or use it where it exists.

    Args:
        net: The net for training.
        weights: The tested .caffemodel.
    """
    deploy = Path(net).with_name("deploy.prototxt")
    if deploy.exists() or get_model(net):
        return _use(deploy, weights, find_picture(net)) if deploy.exists() else ""
    return command("deploy", net, "-o", deploy)


def after_deploy(deploy: Path, train_val: Path) -> str:
    """Return the command after ``deploy``: classify with the newest weights, or export; inspect where neither is possible.

    Args:
        deploy: The deploy prototxt.
        train_val: The net it was made of.
    """
    weights = find_weights(train_val)
    if weights is None:
        return command("inspect", deploy)
    return _use(deploy, weights, find_picture(train_val)) or command("inspect", deploy, weights)


def after_classify(deploy: PathLike, weights: PathLike | None) -> str:
    """Return the command after ``classify``: export the net, or verify the exported model where there is one.

    "" for a net that cannot be exported.

    Args:
        deploy: The deploy prototxt, or a model of the zoo.
        weights: Its weights, or a model of the zoo; None for an ONNX file.
    """
    if weights is None:
        folder = Path(deploy).parent
        return next((found for nets in (folder, folder / "net") if (found := _bundle(nets / "deploy.prototxt"))), "")
    onnx = _onnx_path(deploy)
    words = [deploy] if get_model(deploy) and get_model(weights) == get_model(deploy) else [deploy, weights]
    if onnx.exists():
        return command("verify", *words, onnx)
    return command("export", *words, "-o", onnx) if has_onnx_form(deploy) else ""


def after_export(deploy: PathLike, weights: PathLike, onnx: Path, *, own_inputs: bool = True) -> str:
    """Return the command after ``export``: classify a picture of the dataset, or compare the model with the net.

    Args:
        deploy: The deploy prototxt, or a model of the zoo.
        weights: Its weights, or a model of the zoo.
        onnx: The exported model.
        own_inputs: Whether the model takes the inputs of the prototxt, on which the two are compared.
    """
    picture = None if get_model(deploy) else find_picture(deploy)
    if picture is not None:
        return command("classify", onnx, picture)
    return command("verify", deploy, weights, onnx) if own_inputs else ""


def after_verify(deploy: PathLike, weights: PathLike) -> str:
    """Return the command after ``verify``: quantize, calibrated on the dataset that the net was trained on.

    Args:
        deploy: The deploy prototxt, or a model of the zoo.
        weights: Its weights.
    """
    card = None if get_model(deploy) else find_dataset(deploy)
    out = _onnx_path(deploy).with_suffix(".int8.onnx")
    if card is None or not card.train_lmdb.exists() or out.exists():
        return ""
    return command("quantize", deploy, weights, "--calibration", card.train_lmdb, "-o", out)


def after_quantize(deploy: PathLike, onnx: Path) -> str:
    """Return the command after ``quantize``: classify a picture of the dataset with the quantized model."""
    picture = None if get_model(deploy) else find_picture(deploy)
    return command("classify", onnx, picture) if picture is not None else ""


def in_place_of_a_report(folder: Path) -> str:
    """Return what draws the results of a net that was trained step by step, for an error about a missing run; "" where none was.

    Args:
        folder: Its project, or the folder of its prototxts.
    """
    nets = folder if (folder / "solver.prototxt").is_file() else folder / "net"
    net, deploy = nets / "train_val.prototxt", nets / "deploy.prototxt"
    weights = find_weights(net)
    if weights is None or not deploy.is_file():
        return ""
    lines = [command("visualize", "all", deploy, weights, *filter(None, [find_picture(net)]), "-o", "visualize.html")]
    card = find_dataset(net)
    if card is not None:
        lines.append(command("visualize", "confusion", deploy, weights, card.folder, "-o", "confusion.html"))
    log = Path(f"{str(weights).partition('_iter_')[0]}.log")
    if log.is_file():
        lines.append(command("curves", log, "-o", "curves.html"))
    return "of a net that was trained step by step, pages are drawn by " + "; ".join(lines)


def has_onnx_form(net: PathLike) -> bool:
    """Return whether the type of each layer of a net has an ONNX form, or the net cannot be read; without it ``export`` refuses the net.

    Args:
        net: A deploy prototxt, or a model of the zoo, whose layers all have one.
    """
    with suppress(CaffeToolsError, OSError):
        graph = list(graphs_present(_read(net)).values())[-1]
        return all(_is_exported(layer) for layer in graph.layers.values())
    return True


def _is_exported(layer: LayerParameter) -> bool:
    if not is_known(layer.type):
        return False
    kind = layer_class(layer.type)
    return kind.IS_DATA or kind.has_onnx_form()


def find_weights(net: PathLike) -> Path | None:
    """Return the weights next to a net: the newest snapshot of its solver, else the only .caffemodel of the folder that fits it.

    Args:
        net: A prototxt.
    """
    folder = Path(net).parent
    solver = folder / "solver.prototxt"
    if solver.is_file():
        with suppress(CaffeToolsError):
            found = newest_snapshot(snapshot_prefix(read_solver(solver), solver))
            if found is not None:
                return found.weights
    files = sorted(folder.glob("*.caffemodel"))
    return files[0] if len(files) == 1 and _fits(files[0], net) else None


def _fits(weights: Path, net: PathLike) -> bool:
    """Return whether a .caffemodel has weights of the right shapes for every layer of a net that has some.

    Where the shapes are not known, because the size of the data is not, each layer with weights in the file must be one of the net.
    """
    with suppress(CaffeToolsError, OSError):
        blobs = read_caffemodel(weights).blobs
        param = _read(net)
        phase, graph = list(graphs_present(param).items())[-1]
        layers = list(graph.layers.values())
        learned = {layer.name: shapes for layer, shapes in zip(layers, parameter_shapes(layers, param, phase), strict=True)}
        if None in learned.values() and not blobs.keys() <= learned.keys():
            return False
        return all(name in blobs and all_fit(blobs[name], shapes) for name, shapes in learned.items() if shapes)
    return False


def find_dataset(net: PathLike) -> DatasetCard | None:
    """Return the dataset that a net for training, or the one in the folder of a deploy net, reads.

    Args:
        net: A prototxt.
    """
    path = Path(net)
    for candidate in (path, path.with_name("train_val.prototxt")):
        with suppress(CaffeToolsError, OSError):
            param = _read(candidate)
            layers = [layer for phase in (TEST, TRAIN) for layer in data_layers(param, phase)]
            if card := next((found for layer in layers if (found := card_of(layer)) is not None), None):
                return card
    return None


def find_picture(net: PathLike) -> Path | None:
    """Return the first held-out picture of the dataset that a net was trained on; None if it does not exist.

    Args:
        net: A prototxt; see :func:`find_dataset`.
    """
    card = find_dataset(net)
    if card is not None:
        with suppress(CaffeToolsError, OSError):
            return next((path for path, _ in held_out(card) if path.is_file()), None)
    return None


def _bundle(deploy: Path) -> str:
    """Return the command that bundles a deploy net with its newest weights; "" without them, or where there is a bundle."""
    weights, out = find_weights(deploy), deploy.parent / "bundle"
    if not deploy.is_file() or weights is None or out.exists():
        return ""
    return command("bundle", deploy, weights, "--target", "onnxruntime", "-o", out)


def get_model(net: PathLike) -> str | None:
    """Return the model of the zoo that a word names, or None for a file."""
    return find_model(os.fspath(net)) if is_model(os.fspath(net)) else None


def has_published_weights(model: str) -> bool:
    """Return whether a model of the zoo has weights that can be fetched."""
    return get_card(model).weights is not None


def _use(deploy: PathLike, weights: PathLike, picture: Path | None) -> str:
    return command("classify", deploy, weights, picture) if picture is not None else after_classify(deploy, weights)


def _onnx_path(deploy: PathLike) -> Path:
    model = get_model(deploy)
    return Path(f"{os.fspath(deploy)}.onnx") if model else Path(deploy).with_name("model.onnx")


def net_of_solver(solver: Path) -> Path | None:
    """Return the path of the net that a solver names, found as ``train`` finds it; None if it names none.

    Args:
        solver: The solver's prototxt.

    Raises:
        PrototxtError: The solver cannot be read, or the net does not exist.
    """
    param = read_solver(solver)
    return Path(os.path.relpath(find_net(param.net, find_base(param, solver), solver, no_log))) if param.net else None


def _read(path: PathLike) -> NetParameter:
    return upgrade_net(read_net_near_files(path))
