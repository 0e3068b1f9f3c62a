"""``caffetools retarget``: replace the classifiers of a trained network for the user's own classes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caffetools.cli.models import complete_model, only_here, prototxt, weights_file
from caffetools.cli.numbers import TrainingSeed
from caffetools.cli.options import ADD_WEIGHTS, Dialect, Force, Plugin, Stage, not_standard_output
from caffetools.cli.show import console, note, print_json, print_next, print_table

if TYPE_CHECKING:
    from caffetools.data.datasets.card import DatasetCard
    from caffetools.graph.stages import Stages
    from caffetools.graph.weights_diff import Comparison
    from caffetools.project.retargeting import RetargetResult
    from caffetools.surgery.class_incremental import Classes
    from caffetools.surgery.layer_edits import LayerEdits
    from caffetools.surgery.retarget import Retargeted

Net = Annotated[
    Path | None,
    typer.Argument(
        metavar="NET",
        help="The train_val prototxt of a trained net, or a network of the zoo; by default the only one of this folder.",
        show_default=False,
        autocompletion=complete_model,
    ),
]
Count = Annotated[int | None, typer.Option(help="Number of classes; by default that of --dataset.")]
Model = Annotated[
    str | None, typer.Option(help="A network of the zoo in place of NET, such as squeezenet_v1.1.", autocompletion=complete_model)
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder to write to.", callback=not_standard_output)]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="The trained .caffemodel, or a network of the zoo; lists which layers take their weights from it.",
        autocompletion=complete_model,
    ),
]
WriteWeights = Annotated[
    bool, typer.Option("--write-weights", help="Also write a .caffemodel with the weights of --weights that fit the new net.")
]
GrowFrom = Annotated[
    Path | None,
    typer.Option(
        help="labels.txt of the classes that --weights was trained on; classes in both keep their rows of the classifier's weights."
    ),
]
Labels = Annotated[Path | None, typer.Option(help="labels.txt of the new classes, for --grow-from; by default that of --dataset.")]
Dataset = Annotated[
    Path | None, typer.Option(help="Folder made by `caffetools dataset build`: sets classes, sources, mean and batch sizes.")
]
TrainSource = Annotated[str | None, typer.Option(help="Database of the training pictures.")]
ValSource = Annotated[str | None, typer.Option(help="Database of the validation pictures.")]
Mean = Annotated[str | None, typer.Option(help="Mean file (.binaryproto), or values as 104,117,123 (BGR).")]
TrainBatch = Annotated[int | None, typer.Option(min=1, help="Batch size in training.")]
ValBatch = Annotated[int | None, typer.Option(min=1, help="Batch size in testing.")]
Crop = Annotated[
    int | None,
    typer.Option("--crop", "--input-size", min=1, help="Side of the square crop that the net sees; in training at a random position."),
]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training pictures; needs --dataset or an existing --train-source.")]
BaseLr = Annotated[float | None, typer.Option(help="Base learning rate; by default a tenth of the net's own.")]
LrMult = Annotated[float, typer.Option(min=0, help="Factor on lr_mult of all layers except the classifiers.")]
HeadLrMult = Annotated[
    float | None,
    typer.Option(min=0, help="Factor on lr_mult of the new classifiers and layers; by default 10.", show_default=False),
]
Freeze = Annotated[str | None, typer.Option(metavar="LAYER", help="Freeze this layer and all before it (lr_mult: 0).")]
Dropout = Annotated[float | None, typer.Option(help="dropout_ratio of every Dropout layer.")]
Filler = Annotated[str | None, typer.Option(help="Weight filler of the new classifiers and layers: xavier, msra, gaussian:0.01.")]
DropAfter = Annotated[
    str | None, typer.Option(metavar="LAYER", help="Remove the layers between this layer and the classifier: a shallower net.")
]
AddLayer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[AFTER=]LAYER",
        help="A new layer before the classifier, or after layer AFTER: InnerProduct:256, ReLU, Dropout:0.5, or its prototxt. May be repeated.",
    ),
]
KeepNames = Annotated[bool, typer.Option("--keep-names", help="Keep the classifiers' names.")]
Head = Annotated[list[str] | None, typer.Option(help="Name of a classifier layer that is not found from the losses. May be repeated.")]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        help="Shape of the net's input, 1x3x227x227, or NAME=SHAPE for one of several; by default the crop of the data layer. May be repeated."
    ),
]
TrainStage = Annotated[
    list[str] | None, typer.Option(help="Stage in training, for layers with include or exclude rules on stages. May be repeated.")
]
TestStage = Annotated[
    list[str] | None, typer.Option(help="Stage in testing, for layers with include or exclude rules on stages. May be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print what changed as JSON.")]


def retarget(
    *,
    net: Net = None,
    classes: Count = None,
    model: Model = None,
    out: Out = Path("retargeted"),
    weights: Weights = None,
    write_weights: WriteWeights = False,
    grow_from: GrowFrom = None,
    labels: Labels = None,
    dataset: Dataset = None,
    train_source: TrainSource = None,
    val_source: ValSource = None,
    mean: Mean = None,
    train_batch: TrainBatch = None,
    val_batch: ValBatch = None,
    crop: Crop = None,
    epochs: Epochs = 20,
    base_lr: BaseLr = None,
    seed: TrainingSeed = None,
    lr_mult: LrMult = 1.0,
    head_lr_mult: HeadLrMult = None,
    freeze: Freeze = None,
    dropout: Dropout = None,
    filler: Filler = None,
    drop_after: DropAfter = None,
    add_layer: AddLayer = None,
    keep_names: KeepNames = False,
    head: Head = None,
    input_shape: InputShape = None,
    force: Force = False,
    as_json: AsJson = False,
    stage: Stage = None,
    train_stage: TrainStage = None,
    test_stage: TestStage = None,
    dialect: Dialect = None,
    plugin: Plugin = None,
) -> None:
    """Replace the classifier for a new number of classes: write train_val, solver and deploy prototxts, and list what changed.

    The classifiers, found from what the losses read, get new names, so that they are reinitialized when old weights are loaded, and learn faster.
    """
    from caffetools.project import retargeting
    from caffetools.surgery.freezing import Tuning, parse_filler

    _check_out(out, force=force)
    source, trained_by, shapes = _resolve_net(net, model, input_shape or [], crop, _stored_size(dataset))
    given, weights = weights, weights_file(weights) if weights is not None else None
    base_lr, head_lr_mult = _rates(base_lr, head_lr_mult, source, None if weights is not None else trained_by)
    card, grown, count = _resolve_classes(classes, dataset, grow_from, labels, weights)
    taken = _weights_to_write(weights, write_weights or grown is not None)
    known: dict[str, Any] = {"trained_by": trained_by, "input_shape": shapes, "weights": weights, "dataset": card, "partial": True}
    known |= {"epochs": epochs, "base_lr": base_lr, "seed": seed, "head_lr_mult": head_lr_mult, "heads": head or None}
    made = retargeting.prepare_retarget(
        source,
        count,
        out,
        data=retargeting.DataOptions(train_source, val_source, mean, train_batch, val_batch, crop),
        tuning=Tuning(lr_mult, freeze, dropout, keep_names, parse_filler(filler)),
        edits=_layer_edits(drop_after, add_layer or [], grown),
        stages=_stages(stage, train_stage, test_stage),
        **known,
    )
    _write(made, out, taken, weights, grown, given, force=force, as_json=as_json)


def _check_out(out: Path, *, force: bool) -> None:
    """Raise where the files cannot be written, before weights are fetched; which ones there are to be, a detector's net decides later."""
    from caffetools.project import retargeting
    from caffetools.project.config import FILES
    from caffetools.util.files import check_writable

    check_writable(out / FILES[0])
    if (out / FILES[0]).exists() and (out / FILES[2]).exists():
        retargeting.check_free(out, force=force)


def _rates(base_lr: float | None, head_lr_mult: float | None, source: Path, trained_by: Path | None) -> tuple[float | None, float]:
    """Return the base learning rate (None for a tenth of the net's own) and how many times as fast the classifiers learn.

    Nobody publishes weights of the small networks of the zoo, so without weights they keep their own rates.
    """
    from caffetools.proto.text import read_solver
    from caffetools.surgery.retarget import HEAD_LR_MULT

    if trained_by is not None and trains_from_scratch(source):
        own = read_solver(trained_by).base_lr if base_lr is None else base_lr
        return own, 1.0 if head_lr_mult is None else head_lr_mult
    return base_lr, HEAD_LR_MULT if head_lr_mult is None else head_lr_mult


def _write(
    made: RetargetResult,
    out: Path,
    taken: Path | None,
    weights: Path | None,
    grown: Classes | None,
    given: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Write the files, and those of the weights ``taken`` that fit; say what changed and what will load."""
    from caffetools.project import retargeting
    from caffetools.project.config import FILES
    from caffetools.project.find import missing_sources
    from caffetools.project.output import WEIGHTS

    retargeting.check_free(out, force=force, weights=taken is not None, files=made.files)
    comparison = retargeting.compare(made, weights, trimmed=taken is not None) if weights is not None else None
    starting = retargeting.starting_weights(made, taken, grown) if taken is not None else None
    start = str(out / WEIGHTS) if starting is not None else str(given or "")
    planned = _training_command(made, out, start) if FILES[1] in made.files else ""
    files = retargeting.write_retarget(made, out, starting, planned=planned)
    _note(made.retargeted, files[0])
    _note_size(made, files[0])
    _note_missing_files(made, out)
    if as_json:
        print_json(_as_json(made.retargeted, comparison, files))
        return
    changes = [(change.layer, change.what, change.before, change.after) for change in made.retargeted.changes]
    print_table(("Layer", "What", "Was", "Is"), changes)
    if comparison is not None:
        _show_weights(comparison, grown=grown is not None)
    if grown is not None:
        known = sum(row is not None for row in grown.row_map)
        console.print(f"{known} of the {len(grown.new)} classes are known and keep what was learned of them.", markup=False)
    for path in files:
        console.print(f"Wrote {path}", markup=False)
    if not planned:
        return
    if missing := missing_sources(made.train_val):
        _note_missing_data(missing)
    if " --weights " not in planned and _zoo_model(made.source) is None:
        console.print(f"No weights are next to the net: {ADD_WEIGHTS}", markup=False)
    print_next(planned)


def _note_missing_files(made: RetargetResult, out: Path) -> None:
    """Note which files a detector's net has no content for, and what gives them."""
    from caffetools.project.config import FILES

    if why := made.missing.get(FILES[2]):
        note(f"{out / FILES[2]} is not written: {why}. Retarget the net for testing too")
    if why := made.missing.get(FILES[0]):
        note(f"{out / FILES[2]} alone is written: {why}. Retarget the net for training too")


def _note_missing_data(missing: list[str]) -> None:
    from caffetools.project.next_step import dataset_command

    build = dataset_command(Path("data")) or "caffetools dataset build PICTURES data"
    console.print(
        f"Its data layers read {', '.join(missing)}, which {'does' if len(missing) == 1 else 'do'} not exist here: build a dataset with "
        f"`{build}`, and give --dataset data",
        markup=False,
    )


def _training_command(made: RetargetResult, out: Path, weights: str) -> str:
    """Return the command that trains the net: with ``weights``, else those that were published or are next to the net, else none."""
    from caffetools.project.config import command
    from caffetools.project.next_step import find_weights, has_published_weights
    from caffetools.zoo.cards import get_card

    model = _zoo_model(made.source)
    if not weights and model is None:
        weights = str(find_weights(made.source) or "")
    elif not weights and model is not None and not trains_from_scratch(made.source):
        weights = model if has_published_weights(model) else ""
        if not weights:
            note(f"{get_card(model).no_weights.rstrip('.')}: {ADD_WEIGHTS}")
    return command("train", out / "solver.prototxt", *(["--weights", weights] if weights else []))


def _zoo_model(source: Path) -> str | None:
    """Return the model of the zoo whose prototxt ``source`` is, or None."""
    from caffetools.zoo.names import find_model

    return find_model(source.parent.name) if source.parent.parent.name in ("prototxt", "_prototxt") else None


def trains_from_scratch(source: Path) -> bool:
    """Return whether a prototxt is that of a small network of the zoo that is trained from random weights."""
    from caffetools.zoo.cards import get_card

    model = _zoo_model(source)
    return model is not None and get_card(model).scratch


def _note(retargeted: Retargeted, file: Path) -> None:
    from caffetools.graph.graph import phases_present
    from caffetools.graph.summary import summarize

    for row in summarize(retargeted.train_val, phases_present(retargeted.train_val)[-1]).unknown_types:
        note(f"{file}: layer '{row.name}': {row.note}; it is left unchanged")
    for left in retargeted.notes:
        note(f"{file}: {left}; change it by hand")
    for remark in retargeted.remarks:
        note(f"{file}: {remark}")


def _note_size(made: RetargetResult, file: Path) -> None:
    """Note where a network of the zoo now takes pictures of another size, because it crops none and the dataset's are larger or smaller."""
    from caffetools.zoo.cards import get_card

    model = _zoo_model(made.source)
    if model is None or any(layer.transform_param.crop_size for layer in made.train_val.layer):
        return
    channels, *size = get_card(model).input.shape
    shape = next((list(layer.input_param.shape[0].dim) for layer in made.deploy.layer if layer.input_param.shape), [])
    if len(shape) == 4 and shape[1:] != [channels, *size]:
        given, own = (" x ".join(map(str, dims)) for dims in (shape[1:], (channels, *size)))
        how = f"--size {size[1]}" + (" --gray" if channels == 1 else "")
        note(f"{file}: the net now takes pictures of {given}, and {model} is made for {own}; for those, build the dataset with {how}")


def _weights_to_write(weights: Path | None, wanted: bool) -> Path | None:
    from caffetools.errors import CaffeToolsError

    if wanted and weights is None:
        raise CaffeToolsError("--write-weights takes from the file of --weights, which is not given")
    return weights if wanted else None


def _resolve_classes(
    classes: int | None, dataset: Path | None, grow_from: Path | None, labels: Path | None, weights: Path | None
) -> tuple[DatasetCard | None, Classes | None, int]:
    """Return the dataset's card, the classes before and after where known ones are to be kept, and how many there are to be."""
    from caffetools.data.datasets.card import load_card
    from caffetools.errors import CaffeToolsError
    from caffetools.project.data_config import classes_of
    from caffetools.surgery.class_incremental import Classes, read_classes

    card = load_card(dataset) if dataset is not None else None
    if labels is not None and grow_from is None:
        raise CaffeToolsError("--labels names the new classes for --grow-from, which is not given")
    if grow_from is None:
        if card is None and classes is None:
            raise CaffeToolsError("how many classes are there to be? Give --classes, or a dataset by --dataset")
        return card, None, classes_of(card, classes) if card is not None else int(classes or 0)
    if weights is None:
        raise CaffeToolsError("--grow-from keeps what --weights knows; give the .caffemodel of the old classes too")
    names = read_classes(labels) if labels is not None else card.classes if card is not None else None
    if names is None:
        raise CaffeToolsError("--grow-from needs the names of the new classes: give --labels labels.txt, or --dataset")
    for count, where in ((classes, "--classes"), (len(card.classes) if card else None, "--dataset")):
        if count not in (None, len(names)):
            raise CaffeToolsError(f"the new labels are {len(names)} classes, but {where} has {count}")
    return card, Classes(read_classes(grow_from), names), len(names)


def _stages(stage: list[str] | None, train: list[str] | None, test: list[str] | None) -> Stages | None:
    """Return the stages that are named, or None to let the net decide."""
    from caffetools.graph.stages import Stages

    if not (stage or train or test):
        return None
    return Stages(tuple(train or stage or ()), tuple(test or stage or ()))


def _layer_edits(drop_after: str | None, add_layer: list[str], grown: Classes | None) -> LayerEdits:
    from caffetools.errors import CaffeToolsError
    from caffetools.surgery.layer_edits import LayerEdits
    from caffetools.surgery.layer_spec import parse_added

    if grown is not None and (drop_after or add_layer):
        option = "--drop-after" if drop_after else "--add-layer"
        raise CaffeToolsError(f"--grow-from keeps a classifier that fits what it reads, and {option} changes that; give one of the two")
    return LayerEdits(drop_after, [parse_added(text) for text in add_layer])


def _resolve_net(
    net: Path | None, model: str | None, input_shape: list[str], crop: int | None, stored: tuple[int, int] | None
) -> tuple[Path, Path | None, dict[str, tuple[int, ...]]]:
    """Return the net's file, the solver that it was trained with, and the shapes of its inputs, as far as they are known."""
    from caffetools.errors import CaffeToolsError
    from caffetools.graph.inputs import parse_shapes
    from caffetools.graph.summary import summarize
    from caffetools.proto.text import read_net
    from caffetools.zoo.names import is_model
    from caffetools.zoo.networks import prototxt_path

    if net is not None and model is None and is_model(str(net)):
        net, model = None, str(net)
    if net is not None and model is not None:
        raise CaffeToolsError("give either the prototxt of a NET, or the name of one of the zoo's networks by --model")
    if net is None and model is None:
        net = _only_net_here()
    shapes = parse_shapes(input_shape)
    if net is not None:
        return prototxt(net), None, shapes
    name = str(model)
    if not shapes:
        # LeNet's train_val does not say how large its pictures are; its deploy net does. Pictures that are not cropped are read whole.
        made = summarize(read_net(prototxt_path(name, "deploy"))).layers[0].shapes[0]
        side = (crop, crop) if crop else None if _crops(prototxt_path(name)) else stored
        shapes = {"": (made[1], *(side or made[2:]))} if made else {}
    return prototxt_path(name), prototxt_path(name, "solver"), shapes


def _stored_size(dataset: Path | None) -> tuple[int, int] | None:
    """Return the height and width of a dataset's pictures, or None where they have sizes of their own."""
    from caffetools.data.datasets.card import load_card

    card = load_card(dataset) if dataset is not None else None
    return (card.height, card.width) if card is not None and card.width else None


def _crops(source: Path) -> bool:
    """Return whether a net for training crops its pictures."""
    from caffetools.proto.text import read_net

    return any(layer.transform_param.crop_size for layer in read_net(source).layer)


def _only_net_here() -> Path:
    """Return the only net for training in the current folder.

    Raises:
        CaffeToolsError: There is none, or there are several.
    """
    from caffetools.errors import CaffeToolsError
    from caffetools.project.find import training_nets

    if found := only_here(training_nets(Path()), "net for training", "nets for training"):
        return found
    raise CaffeToolsError(
        "no net for training is in this folder; give the prototxt of a NET, or the name of a network (caffetools zoo list)"
    )


def _show_weights(comparison: Comparison, *, grown: bool) -> None:
    loaded, fresh = comparison.named("fits") + comparison.named("unchecked"), comparison.named("fresh")
    taken = "1 layer takes its weights" if len(loaded) == 1 else f"{len(loaded)} layers take their weights"
    if grown:
        verb = "takes" if len(fresh) == 1 else "take"
        console.print(f"{taken} from the file; {', '.join(fresh)} {verb} those of the classes in it.", markup=False)
        return
    verb = "is" if len(fresh) == 1 else "are"
    console.print(f"{taken} from the file; {len(fresh)} {verb} reinitialized: {', '.join(fresh)}", markup=False)
    if comparison.unused:
        console.print(f"The file also has {', '.join(comparison.unused)}, which the net has no more.", markup=False)


def _as_json(retargeted: Retargeted, comparison: Comparison | None, files: list[Path]) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "renamed": retargeted.renamed,
        "changes": [asdict(change) for change in retargeted.changes],
        "files": [str(path) for path in files],
    }
    if comparison is not None:
        loaded = comparison.named("fits") + comparison.named("unchecked")
        answer["weights"] = {"loaded": loaded, "fresh": comparison.named("fresh"), "unused": comparison.unused}
    return answer
