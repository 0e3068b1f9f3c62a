"""Checks of a run before anything is written: images, sizes, net and weights that do not fit each other."""

from __future__ import annotations

import os

from caffetools.data.datasets.listing import Listing
from caffetools.data.images import parse_size
from caffetools.errors import CaffeToolsError, DataError, NetError
from caffetools.graph.inputs import data_layers
from caffetools.graph.stages import Stages, choose_stages
from caffetools.graph.weights_diff import FITS
from caffetools.layers.base import format_shape
from caffetools.net.net import error_context
from caffetools.project.retargeting import DataOptions, compare, prepare_retarget, read_mean_option
from caffetools.project.run import FinetuneRun
from caffetools.proto.binary import read_binaryproto
from caffetools.proto.schema import TRAIN
from caffetools.proto.text import read_net
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.solver.run import choose_device
from caffetools.util.arguments import MOST_SEED

PathLike = str | os.PathLike[str]


def net_crop(net: PathLike, stage: str | None = None) -> int:
    """Return the crop size of the TRAIN data layers of a prototxt, in a stage or in the one that it needs; 0 if they do not crop."""
    layers = data_layers(choose_stages(upgrade_net(read_net(net)), stage and [stage]).net, TRAIN)
    return max((layer.transform_param.crop_size for layer in layers), default=0)


def check_run(run: FinetuneRun, listing: Listing) -> None:
    """Compare the settings of a run with each other, its images and its files, as far as that is quick.

    Args:
        run: The resolved run.
        listing: Its images.

    Raises:
        CaffeToolsError: A setting is out of range.
        DataError: Sizes or mean do not fit.
        NetError: The net cannot be retargeted, or the weights belong to another net.
    """
    config, found = run.config, len(listing.classes)
    if config.classes is not None and config.classes != found:
        raise CaffeToolsError(
            f"--classes {config.classes}, but {config.pictures} has {found} folders of pictures: {_some(listing.classes)}; "
            "leave --classes out to learn them all"
        )
    if not 0 < config.val < 1:
        raise CaffeToolsError(f"--val {config.val:g}: the fraction of held-out pictures must be between 0 and 1, such as 0.2")
    if not 0 <= config.seed <= MOST_SEED:
        raise CaffeToolsError(f"--seed must be from 0 to {MOST_SEED}, not {config.seed}")
    choose_device(config.device)
    size, crop = parse_size(run.size), config.crop or net_crop(run.net, config.stage)
    if size is not None and crop > min(size):
        raise DataError(f"squares of {crop} x {crop} cannot be cut out of pictures of {size[0]} x {size[1]}; give a larger --size")
    channels = 1 if run.gray else 3
    _check_mean(run.mean, channels, size)
    pictures = sum(map(len, listing.pictures))
    if config.batch is not None and config.batch > pictures:
        raise CaffeToolsError(f"--batch {config.batch} is more than all {pictures} pictures")
    shape = None if crop or size is None else (1, channels, size[1], size[0])
    options = DataOptions(mean=run.mean, crop=config.crop)
    project = prepare_retarget(
        run.net, found, run.nets, trained_by=run.trained_by, data=options, input_shape=shape, stages=_stages(config.stage)
    )
    if run.weights is not None:
        with error_context(run.net):
            comparison = compare(project, run.weights)
        if FITS not in {layer.status for layer in comparison.layers} and not comparison.named("unchecked"):
            raise NetError(f"{run.weights} has no layer of the net {run.net}: these are another net's weights")


def _stages(stage: str | None) -> Stages | None:
    return None if stage is None else Stages((stage,), (stage,))


def _check_mean(mean: str | None, channels: int, size: tuple[int, int] | None) -> None:
    file, values = read_mean_option(mean)
    if file is not None:
        shape = read_binaryproto(file).shape[-3:]
        if size is not None and shape != (channels, size[1], size[0]):
            raise DataError(
                f"{file}: a mean of {format_shape(shape)}, but the pictures are {channels} x {size[1]} x {size[0]}; give --size, or values"
            )
    if values is not None and len(values) not in (1, channels):
        raise DataError(f"--mean {mean}: {len(values)} values for pictures of {channels} channel(s); give one, or one for each")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
