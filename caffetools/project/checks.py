"""What can be seen to be wrong with a job before anything of it is made: pictures, sizes, net and weights that do not fit."""

from __future__ import annotations

import os

from caffetools.data.datasets.listing import Listing
from caffetools.data.images import parse_size
from caffetools.errors import CaffeToolsError, DataError, NetError
from caffetools.graph.weights_diff import FITS
from caffetools.layers.base import format_shape
from caffetools.net.net import error_context
from caffetools.project.data_config import data_layers
from caffetools.project.retargeting import DataOptions, compare, prepare_retarget, read_mean_option
from caffetools.project.run_finetune import Job
from caffetools.project.solver_config import MOST_SEED
from caffetools.proto.binary import read_binaryproto
from caffetools.proto.schema import TRAIN
from caffetools.proto.text import read_net
from caffetools.proto.upgrades.v1 import upgrade_net
from caffetools.solver.run import choose_device

PathLike = str | os.PathLike[str]


def net_crop(net: PathLike) -> int:
    """The side of the squares that the TRAIN data layers of the net in the file ``net`` cut out; 0 where they cut nothing."""
    layers = data_layers(upgrade_net(read_net(net)), TRAIN)
    return max((layer.transform_param.crop_size for layer in layers), default=0)


def check_job(job: Job, listing: Listing) -> None:
    """Hold the settings of ``job`` against each other, its pictures and its files, as far as that is quickly done.

    Raises:
        CaffeToolsError: a setting makes no sense. DataError: sizes or mean do not fit.
        NetError: the net cannot be retargeted, or ``weights`` are another net's.
    """
    found = len(listing.classes)
    if job.classes is not None and job.classes != found:
        raise CaffeToolsError(
            f"--classes {job.classes}, but {job.pictures} has {found} folders of pictures: {_some(listing.classes)}; "
            "leave --classes out to learn them all"
        )
    if not 0 < job.val < 1:
        raise CaffeToolsError(f"--val {job.val:g}: the share of held-out pictures must lie between 0 and 1, such as 0.2")
    if not 0 <= job.seed <= MOST_SEED:
        raise CaffeToolsError(f"--seed must be from 0 to {MOST_SEED}, not {job.seed}")
    choose_device(job.device)
    size, crop = parse_size(job.size), job.crop or net_crop(job.net)
    if size is not None and crop > min(size):
        raise DataError(f"squares of {crop} x {crop} cannot be cut out of pictures of {size[0]} x {size[1]}; give a larger --size")
    channels = 1 if job.gray else 3
    _check_mean(job.mean, channels, size)
    pictures = sum(map(len, listing.pictures))
    if job.batch is not None and job.batch > pictures:
        raise CaffeToolsError(f"--batch {job.batch} is more than all {pictures} pictures")
    shape = None if crop or size is None else (1, channels, size[1], size[0])
    options = DataOptions(mean=job.mean, crop=job.crop)
    project = prepare_retarget(job.net, found, job.nets, trained_by=job.trained_by, data=options, input_shape=shape)
    if job.weights is not None:
        with error_context(job.net):
            comparison = compare(project, job.weights)
        if FITS not in {layer.status for layer in comparison.layers} and not comparison.named("unchecked"):
            raise NetError(f"{job.weights} has no layer of the net {job.net}: these are another net's weights")


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
