"""Retarget a network: replace its classifiers for a new number of classes, and leave all other layers unchanged."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from caffetools.errors import CaffeToolsError, NetError
from caffetools.graph.box_regressors import BOX, box_regressors
from caffetools.graph.classifiers import Head, classifier_param, find_heads, primary_classifier
from caffetools.graph.graph import names_in_use, phases, rename_blob
from caffetools.graph.merges import check_merges, is_classifier
from caffetools.layers.accuracy import Accuracy
from caffetools.layers.registry import traits
from caffetools.layers.traits import field_at
from caffetools.proto.schema import FillerParameter, LayerParameter, NetParameter
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.surgery.changes import COMMON, Change, ignored_labels, manual_review_notes, number, unknown_counts
from caffetools.surgery.detection import other_counts, refit_named_classes, refit_places, renamed_boxes
from caffetools.surgery.freezing import describe_filler, learned_blobs

# How much faster than the rest a new classifier learns, as in Caffe's fine-tuning examples.
HEAD_LR_MULT = 10.0

# What a blob's axis can hold in Caffe's files.
_MOST_CLASSES = 2**31 - 1


@dataclass
class Retargeted:
    """A retargeted net.

    Attributes:
        train_val: The ``NetParameter``.
        changes: The differences from the net given, layer by layer.
        renamed: Old name → new name of every layer that is reinitialized.
        added: The names of inserted layers.
        loss_layer: The loss that reads the primary classifier; "" where it is not known.
        notes: Layers that seem to depend on the number of classes too, and need a manual change.
        remarks: What else to know.
    """

    train_val: NetParameter
    changes: list[Change] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    loss_layer: str = ""
    notes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def reinitialized(self) -> set[str]:
        """The names of all layers that are reinitialized."""
        return {*self.renamed.values(), *self.added}


def retarget(
    train_val: NetParameter,
    classes: int,
    *,
    head_lr_mult: float = HEAD_LR_MULT,
    suffix: str | None = None,
    heads: Iterable[str] | None = None,
    keep_names: bool = False,
    filler: FillerParameter | None = None,
    taken: Iterable[str] = (),
) -> Retargeted:
    """Replace the classifiers for a new number of classes, and rename them, so that loading the old weights reinitializes them.

    The tops of the classifiers are renamed too, and all layers that read them follow. Accuracy layers with a top_k above the number
    of classes are removed. Everything else is kept: other layers, phase rules, fillers, unknown fields.

    Args:
        train_val: A ``NetParameter`` of any age and for both phases; it is not changed.
        classes: The new number of classes, at least 2.
        head_lr_mult: The classifiers' lr_mult values are multiplied by this, unless they already exceed the other
            layers' by that factor. 1 leaves them.
        suffix: The suffix of the new names; by default ``_CLASSES``, replacing the count that an earlier retargeting left there.
        heads: The classifier layers' names, where they are not found from the graph.
        keep_names: Leave the names as they are; weights of the old classifiers must then be taken out of the file before it is loaded.
        filler: A ``FillerParameter`` for the classifiers' weights; by default their own, or else gaussian.
        taken: Names that may not be given, such as those of the layers in the weights that training starts from.

    Raises:
        CaffeToolsError: The number of classes is below 2.
        NetError: No classifier was found, classifiers differ in their number of classes, or one shares its parameters with a layer
            that is not a classifier.
    """
    check_classes(classes)
    net = NetParameter()
    net.CopyFrom(upgrade_net(train_val))
    found = find_heads(net, heads)
    if heads is None and len({head.classes for head in found}) > 1:
        counts = ", ".join(f"'{head.layer}' has {head.classes}" for head in found)
        raise NetError(f"the net's classifiers have different numbers of classes: {counts}; name those to retarget (--head)")
    boxes = {head.layer: box_regressors(phases(net), head) for head in found}
    _check_sharing(net, {*boxes, *(regressor.layer for regressors in boxes.values() for regressor in regressors)})
    result = Retargeted(net, loss_layer=primary_classifier(found).loss_layer)
    usual, names = _usual_rate(net, found), frozenset(taken)
    for head in found:
        fresh = (lambda name: name) if keep_names else partial(_fresh, net, head.classes, classes, suffix, names)
        _rename_head(result, head, fresh)
        learn = partial(_resize, net, filler=filler, factor=head_lr_mult, usual=usual, result=result)
        learn(result.renamed[head.layer], head.type_name, head.outputs_for(classes))
        for regressor in (one for one in boxes[head.layer] if one.layer not in result.renamed):
            # Its top keeps its name, by which scripts read the boxes.
            _rename(net, regressor.layer, fresh(regressor.layer), result)
            learn(result.renamed[regressor.layer], None, BOX * head.outputs_for(classes))
            result.changes += refit_places(net, regressor, head.classes, classes)
        _refit_reshapes(net, head, classes, result)
        _refit_counters(net, head, classes, result)
        _refit_deconvolutions(net, head, classes, result)
        _refit_centers(net, head, classes, fresh, result)
        _refit_embeddings(net, head, classes, fresh, result)
    for count in {head.classes for head in found}:
        result.changes += refit_named_classes(net, count, classes)
    check_merges(phases(net))
    _fit_accuracies(net, classes, result)
    result.changes += _drop_class_weights(net, {head.loss_layer: head.classes for head in found}, classes)
    result.notes = manual_review_notes(net, found, result.renamed) + ignored_labels(net, found, classes)
    result.notes += other_counts(net, found) + unknown_counts(net, found, result.renamed, classes)
    result.remarks = renamed_boxes(net, {one.layer: result.renamed[one.layer] for some in boxes.values() for one in some})
    # A net with both phases has some layers twice; each change is listed once.
    result.changes = list(dict.fromkeys(result.changes))
    return result


def check_classes(classes: int) -> None:
    """Check a number of classes.

    Args:
        classes: The number, from 2 to 2³¹ − 1.

    Raises:
        CaffeToolsError: It is out of this range.
    """
    if classes < 2:
        raise CaffeToolsError(f"{classes} class(es) are too few: a classifier needs at least 2 (--classes)")
    if classes > _MOST_CLASSES:
        raise CaffeToolsError(f"{classes} classes are more than a net can hold; give at most {_MOST_CLASSES} (--classes)")


def fresh_name(net: NetParameter, name: str, before: int, classes: int, suffix: str | None = None, taken: Collection[str] = ()) -> str:
    """Return an unused name for a reinitialized layer or blob that ends in the number of classes.

    ``fc8`` becomes ``fc8_120``, and for 5 classes ``fc8_5``; where that is in use, ``fc8_120_2`` and so on.

    Args:
        net: The net whose names are in use.
        name: The old name.
        before: The old number of classes, which an earlier retargeting may have appended.
        classes: The new number of classes.
        suffix: Another suffix than ``_CLASSES``.
        taken: Further names in use.
    """
    earlier = re.fullmatch(rf"(.+)_{before}(?:_(\d+))?", name) if suffix is None else None
    base, count = (earlier[1], int(earlier[2] or 1)) if earlier else (name, 0)
    end = f"_{classes}" if suffix is None else suffix
    used = {*names_in_use(net), *taken}
    again = count + 1 if earlier and before == classes else 1
    while (new := f"{base}{end}" if again == 1 else f"{base}{end}_{again}") in used:
        again += 1
    return new


def _rename_head(result: Retargeted, head: Head, fresh: Callable[[str], str]) -> None:
    """Rename a classifier, its tops, and the layers with values by class that follow it."""
    net = result.train_val
    # A file with both phases may have a classifier for each, of one name.
    layers = [layer for layer in net.layer if (layer.name, layer.type) == (head.layer, head.type_name)]
    new = fresh(head.layer)
    for top in dict.fromkeys(top for layer in layers for top in layer.top):
        rename_blob(net, top, new if top == head.layer else fresh(top))
    _rename(net, head.layer, new, result)
    for follower in head.followers:
        if follower not in result.renamed:
            _rename(net, follower, fresh(follower), result)


def _refit_reshapes(net: NetParameter, head: Head, classes: int, result: Retargeted) -> None:
    """Set the new number of outputs in the Reshape layers behind a classifier that name it."""
    axes = dict(head.reshapes)
    for layer in net.layer:
        dims = layer.reshape_param.shape.dim
        if layer.name in axes and dims[axes[layer.name]] == head.classes != classes:
            dims[axes[layer.name]] = classes
            result.changes.append(Change(layer.name, "dim", str(head.classes), str(classes)))


def _refit_counters(net: NetParameter, head: Head, classes: int, result: Retargeted) -> None:
    """Set the number of classes in the layers that name it too, such as SSD's MultiBoxLoss."""
    for name, path in head.counters:
        for layer in net.layer:
            if layer.name == name and traits(layer).class_count:
                message, field = field_at(layer, path)
                if getattr(message, field) == head.classes != classes:
                    setattr(message, field, classes)
                    result.changes.append(Change(name, field, str(head.classes), str(classes)))


def _refit_deconvolutions(net: NetParameter, head: Head, classes: int, result: Retargeted) -> None:
    """Resize the Deconvolutions that upsample a classifier's maps: one group a class, initialized to bilinear interpolation."""
    # Maps of several classifiers that are summed are upsampled together.
    done = {change.layer for change in result.changes if change.what == "num_output"}
    names = {result.renamed[name] for name in head.followers} - done
    for layer in net.layer:
        if layer.name not in names or traits(layer).coordinates != "transposed":
            continue
        param = layer.convolution_param
        if param.num_output != head.num_output:
            raise NetError(
                f"makes {param.num_output} maps of the {head.num_output} of '{head.layer}'; change that by hand", layer=layer.name
            )
        result.changes.append(Change(layer.name, "num_output", str(param.num_output), str(classes)))
        if param.group != classes:
            result.changes.append(Change(layer.name, "group", str(param.group), str(classes)))
        param.num_output = param.group = classes
        if param.weight_filler.type != "bilinear":
            result.changes.append(Change(layer.name, "weight_filler", param.weight_filler.type, "bilinear"))
            param.weight_filler.Clear()
            param.weight_filler.type = "bilinear"


def _refit_centers(net: NetParameter, head: Head, classes: int, fresh: Callable[[str], str], result: Retargeted) -> None:
    """Resize the CenterLoss layers that keep one center for each of the classifier's classes."""
    for layer in net.layer:
        facts = traits(layer)
        if facts.role != "loss" or not facts.outputs or facts.num_output(layer) != head.num_output or layer.name in result.renamed.values():
            continue
        _rename(net, layer.name, fresh(layer.name), result)
        if head.num_output != classes:
            result.changes.append(Change(layer.name, facts.outputs, str(head.num_output), str(classes)))
        setattr(facts.settings_of(layer), facts.outputs, classes)


def _refit_embeddings(net: NetParameter, head: Head, classes: int, fresh: Callable[[str], str], result: Retargeted) -> None:
    """Resize the Embed layers with a row for each class: those that read the labels, or that have as many rows as there are classes."""
    labels = {bottom for layer in net.layer if layer.name == head.loss_layer for bottom in layer.bottom[1:]}
    for layer in net.layer:
        facts = traits(layer)
        if not facts.rows or layer.name in result.renamed.values() or getattr(facts.settings_of(layer), facts.rows) != head.classes:
            continue
        # Two rows or three may be those of something else.
        if head.classes in COMMON and not labels.intersection(layer.bottom):
            continue
        _rename(net, layer.name, fresh(layer.name), result)
        if head.classes != classes:
            result.changes.append(Change(layer.name, facts.rows, str(head.classes), str(classes)))
        setattr(facts.settings_of(layer), facts.rows, classes)


def _fresh(net: NetParameter, before: int, classes: int, suffix: str | None, taken: Collection[str], name: str) -> str:
    return fresh_name(net, name, before, classes, suffix, taken)


def _resize(
    net: NetParameter,
    name: str,
    type_name: str | None,
    outputs: int,
    *,
    filler: FillerParameter | None,
    factor: float,
    usual: float,
    result: Retargeted,
) -> None:
    """Give the layers of a name (and a type) other outputs, and let them learn ``factor`` times as fast."""
    for layer in net.layer:
        if layer.name == name and (type_name is None or layer.type == type_name):
            _resize_classifier(layer, outputs, filler, result)
            _raise_rates(layer, factor, usual, result)


def _resize_classifier(layer: LayerParameter, classes: int, filler: FillerParameter | None, result: Retargeted) -> None:
    param = classifier_param(layer)
    if param.num_output != classes:
        result.changes.append(Change(layer.name, "num_output", str(param.num_output), str(classes)))
        param.num_output = classes
    if filler is not None:
        before = param.weight_filler.type if param.HasField("weight_filler") else ""
        param.weight_filler.CopyFrom(filler)
        result.changes.append(Change(layer.name, "weight_filler", before, describe_filler(filler)))
    elif not param.HasField("weight_filler"):
        # Zeros, the default, would keep all gradients from the layers below at the first step.
        param.weight_filler.type, param.weight_filler.std = "gaussian", 0.01
        result.changes.append(Change(layer.name, "weight_filler", "", "gaussian, std 0.01"))


def _rename(net: NetParameter, old: str, new: str, result: Retargeted) -> None:
    for layer in net.layer:
        if layer.name == old:
            layer.name = new
    result.renamed[old] = new
    if new != old:
        result.changes.append(Change(new, "name", old, new))


def _usual_rate(net: NetParameter, heads: list[Head]) -> float:
    """Return the median lr_mult of the weights of the learning layers that are not heads; 0 where there are none."""
    names = {head.layer for head in heads}
    others = [layer for layer in net.layer if is_classifier(layer) and layer.name not in names]
    rates = [layer.param[0].lr_mult if layer.param else 1.0 for layer in others]
    return statistics.median([rate for rate in rates if rate > 0] or [0.0])


def _raise_rates(layer: LayerParameter, factor: float, usual: float, result: Retargeted) -> None:
    if factor == 1:
        return
    # A classifier with fields that are not computed here (Intel's int8) is not known by its class.
    blobs = learned_blobs(layer) or 1 + getattr(classifier_param(layer), "bias_term", False)
    before = [layer.param[i].lr_mult if i < len(layer.param) else 1.0 for i in range(blobs)]
    if usual and before[0] >= factor * usual:
        return
    while len(layer.param) < blobs:
        layer.param.add()
    for spec, rate in zip(layer.param, before, strict=False):
        # A frozen classifier must learn again, since it is reinitialized.
        spec.lr_mult = (rate or 1.0) * factor
    after = [spec.lr_mult for spec in layer.param[:blobs]]
    result.changes.append(Change(layer.name, "lr_mult", " / ".join(map(number, before)), " / ".join(map(number, after))))


def _drop_class_weights(net: NetParameter, losses: Mapping[str, int], classes: int) -> list[Change]:
    """Remove the weights of the old classes from losses (SegNet), in place; return what changed.

    Args:
        net: The net.
        losses: The name of each loss of a classifier → its old number of classes.
        classes: The new number of classes.
    """
    changes = []
    for layer in net.layer:
        weights = layer.loss_param.class_weighting
        if len(weights) and losses.get(layer.name, classes) != classes:
            changes.append(Change(layer.name, "class_weighting", f"of {len(weights)} classes", ""))
            layer.loss_param.ClearField("class_weighting")
            layer.loss_param.ClearField("weight_by_label_freqs")
    return changes


def _fit_accuracies(net: NetParameter, classes: int, result: Retargeted) -> None:
    """Remove the Accuracy layers with a top_k above ``classes``; the only one of a blob gets top_k 1 instead."""
    accuracies = [layer for layer in net.layer if traits(layer).settings == Accuracy.TRAITS.settings]
    kept = [layer for layer in accuracies if layer.accuracy_param.top_k <= classes]
    read = {bottom for layer in net.layer for bottom in layer.bottom}
    for layer in accuracies:
        top_k = layer.accuracy_param.top_k
        if top_k <= classes:
            continue
        if any(other.bottom[:1] == layer.bottom[:1] for other in kept) and not read.intersection(layer.top):
            net.layer.remove(layer)
            result.changes.append(Change(layer.name, "layer", f"{layer.type} of the top {top_k}", ""))
        else:
            layer.accuracy_param.top_k = 1
            kept.append(layer)
            result.changes.append(Change(layer.name, "top_k", str(top_k), "1"))


def _check_sharing(net: NetParameter, names: Collection[str]) -> None:
    shared = {spec.name: layer.name for layer in net.layer if layer.name not in names for spec in layer.param if spec.name}
    for layer in net.layer:
        for spec in layer.param if layer.name in names else ():
            if spec.name in shared:
                raise NetError(
                    f"shares its parameter '{spec.name}' with layer '{shared[spec.name]}', which is not a classifier; "
                    "give one of them another name",
                    layer=layer.name,
                )
