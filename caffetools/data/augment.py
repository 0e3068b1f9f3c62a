"""Augmentation beyond Caffe's crop and mirror, off by default: from a YAML file or from the fields of known forks.

The operations are those of ``torchvision.transforms.v2.functional`` (extra ``augment``). All random numbers come from the generator
that is passed in, never from torch's global one, so that batches depend on the layer's seed alone. ``make_params`` draws once for a
picture; ``transform`` applies the draw to the picture, its boxes and its landmarks.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caffetools.errors import DataError, did_you_mean
from caffetools.proto.schema import TransformationParameter

if TYPE_CHECKING:
    from torch import Tensor

PathLike = str | os.PathLike[str]
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Range = tuple[float, float]

_TORCHVISION = (0, 24)  # the first release with boxes that are not cut at the border

# Eigenvalues and eigenvectors (columns) of the colors of ImageNet, RGB from 0 to 1 (Krizhevsky et al., 2012).
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
# Fields of transform_param, as the fork of twtygqyy/caffe-augmentation and those that took it over define them.
FORK_FIELDS = frozenset(
    {
        *("apply_probability", "max_rotation_angle", "min_scaling_factor", "max_scaling_factor", "contrast_brightness_adjustment"),
        *("min_contrast", "max_contrast", "max_brightness_shift", "smooth_filtering", "max_smooth", "max_color_shift"),
        *("min_side", "min_side_min", "min_side_max", "debug_params"),
    }
)


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the random changes; the defaults change nothing.

    Attributes:
        probability: Probability of each change of a picture, 0 to 1.
        rotation: Largest angle in degrees, either way.
        translate: Largest shift as a share of the sides.
        scale: Range of the zoom factor.
        shear: Largest shear in degrees, either way.
        brightness: Factor from 1 - b to 1 + b.
        contrast: Factor from 1 - c to 1 + c.
        saturation: Factor from 1 - s to 1 + s; three channels only.
        hue: Largest shift as a share of the color circle, 0 to 0.5; three channels only.
        brightness_shift: Largest value added to all pixels, in gray levels of 0 to 255.
        contrast_range: Range of the contrast factor about gray level 0, as forks of Caffe define it.
        color_shift: Largest value added to each channel on its own, in gray levels.
        lighting: Standard deviation of PCA lighting noise (AlexNet: 0.1); three channels only.
        blur: Largest standard deviation of a Gaussian blur, in pixels.
        noise: Largest standard deviation of Gaussian noise, in gray levels.
        cutout: Side of a square that is erased, as a share of the shorter side.
        mixup: Parameter alpha of the Beta distribution that pictures of a batch are mixed with; 0 for none. Labels are those of
            the picture with the larger share.
        random_resized_crop: Side, or (height, width), of a random crop that is resized to it; None for none.
        crop_area: Range of the crop's area as a share of the picture.
        crop_ratio: Range of the crop's width over its height.
        min_side: Range of the length that the shorter side is resized to, in pixels; (0, 0) for none.
        fill: Gray level of what lies outside of the picture.
    """

    probability: float = 1.0
    rotation: float = 0.0
    translate: float = 0.0
    scale: Range = (1.0, 1.0)
    shear: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    brightness_shift: float = 0.0
    contrast_range: Range = (1.0, 1.0)
    color_shift: float = 0.0
    lighting: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    cutout: float = 0.0
    mixup: float = 0.0
    random_resized_crop: tuple[int, int] | None = None
    crop_area: Range = (0.08, 1.0)
    crop_ratio: Range = (0.75, 4 / 3)
    min_side: tuple[int, int] = (0, 0)
    fill: float = 0.0

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in ("probability", "translate", "brightness", "contrast", "saturation", "cutout")}
        for name, value in shares.items():
            _check(0 <= value <= 1, f"{name} must be between 0 and 1, not {value:g}")
        _check(0 <= self.hue <= 0.5, f"hue must be between 0 and 0.5, not {self.hue:g}")
        for name in ("rotation", "shear", "brightness_shift", "color_shift", "lighting", "blur", "noise", "mixup"):
            _check(0 <= getattr(self, name) < math.inf, f"{name} must be 0 or more, not {getattr(self, name):g}")
        for name in ("scale", "contrast_range", "crop_area", "crop_ratio"):
            low, high = getattr(self, name)
            _check(0 < low <= high < math.inf, f"{name} must be two numbers above 0, in order, not {low:g} and {high:g}")
        _check(self.crop_area[1] <= 1, "crop_area must not be above 1")
        _check(0 <= self.min_side[0] <= self.min_side[1], "min_side must be two sides in pixels, in order")
        _check(self.random_resized_crop is None or min(self.random_resized_crop) > 0, "random_resized_crop must be above 0")

    @property
    def is_off(self) -> bool:
        """Whether it changes nothing."""
        return dataclasses.replace(self, probability=1.0, fill=0.0) == AugmentConfig()


@dataclass(frozen=True)
class AugmentParams:
    """What was drawn for one picture; None or the neutral value for what is not applied."""

    window: tuple[int, int, int, int] | None = None
    size: tuple[int, int] | None = None
    angle: float = 0.0
    translate: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    shear: tuple[float, float] = (0.0, 0.0)
    factors: tuple[tuple[str, float], ...] = ()
    levels: tuple[float, tuple[float, ...]] = (1.0, (0.0, 0.0, 0.0))
    blur: float = 0.0
    noise: tuple[float, int] | None = None
    cutout: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Augmented:
    """A transformed picture.

    Attributes:
        image: (C, H, W), uint8.
        boxes: (N, 4), float32: xmin, ymin, xmax, ymax as shares of the sides; clipped to the picture.
        kept: (M), bool: which of the M given boxes these are.
        points: (P, 2), float32: x and y as shares of the sides; may lie outside of the picture.
    """

    image: Pixels
    boxes: Floats
    kept: NDArray[np.bool_]
    points: Floats


def load_augment(path: PathLike) -> AugmentConfig:
    """Read an ``augment.yaml``: a mapping of the fields of :class:`AugmentConfig`.

    Ranges are lists of two numbers; ``random_resized_crop`` and ``min_side`` may be one number.

    Raises:
        DataError: The file cannot be read, or a field is unknown or impossible; names the file.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path=path) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise DataError(f"not YAML: {getattr(error, 'problem', error)}", path=path, line=mark.line + 1 if mark else 0) from None
    if not isinstance(values, dict):
        raise DataError("must be a mapping, such as 'rotation: 15'", path=path)
    fields = {field.name: field for field in dataclasses.fields(AugmentConfig)}
    settings: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise DataError(f"'{name}' is unknown{did_you_mean(str(name), fields)}", path=path)
        settings[name] = _value(name, value, fields[name].default, path)
    try:
        return AugmentConfig(**settings)
    except DataError as error:
        raise error.located(path) from None


def config_of_fork(param: TransformationParameter) -> AugmentConfig:
    """Return the augmentation that the fork fields of a ``TransformationParameter`` describe. Raises :class:`DataError`."""
    adjust = bool(param.contrast_brightness_adjustment)
    sides = (int(param.min_side_min), int(param.min_side_max)) if param.min_side_max else (int(param.min_side), int(param.min_side))
    scaled = param.HasField("min_scaling_factor") or param.HasField("max_scaling_factor")
    return AugmentConfig(
        probability=float(param.apply_probability) if param.HasField("apply_probability") else 0.5,
        rotation=float(param.max_rotation_angle),
        scale=(float(param.min_scaling_factor), float(param.max_scaling_factor)) if scaled else (1.0, 1.0),
        contrast_range=(float(param.min_contrast), float(param.max_contrast)) if adjust else (1.0, 1.0),
        brightness_shift=float(param.max_brightness_shift) if adjust else 0.0,
        blur=float(param.max_smooth) / 6 if param.smooth_filtering else 0.0,
        color_shift=float(param.max_color_shift),
        min_side=sides,
    )


def release_of(version: str) -> tuple[int, int]:
    """Return major and minor of a version such as ``"0.24.1+cpu"``; zeros where it has other words."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


class Augmenter:
    """Draws and applies an augmentation.

    Args:
        config: What to draw.

    Raises:
        DataError: torchvision is not installed, or is older than 0.24.
    """

    def __init__(self, config: AugmentConfig):
        hint = "pip install -U 'caffetools[augment]'"
        try:
            import torchvision
        except ImportError:
            raise DataError("augmentation needs torchvision", hint=hint) from None
        if release_of(torchvision.__version__) < _TORCHVISION:
            wanted = ".".join(map(str, _TORCHVISION))
            raise DataError(f"augmentation needs torchvision {wanted} or newer; {torchvision.__version__} is installed", hint=hint)
        self.config = config

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the (C, H, W) that a picture of ``shape`` (C, H, W) becomes; with a range of ``min_side``, the smallest one."""
        channels, height, width = shape
        if self.config.random_resized_crop is not None:
            return channels, *self.config.random_resized_crop
        return channels, *_short_side(height, width, self.config.min_side[0])

    def make_params(self, rng: np.random.Generator, shape: tuple[int, ...]) -> AugmentParams:
        """Draw the changes of one picture.

        Args:
            rng: All draws come from it.
            shape: The picture's (C, H, W).
        """
        config, (channels, height, width) = self.config, shape
        window, size = self._draw_window(rng, height, width)
        height, width = size or (height, width)

        def symmetric(limit: float) -> float:
            return float(rng.uniform(-limit, limit)) if limit and rng.random() < config.probability else 0.0

        def between(limits: Range) -> float:
            return float(rng.uniform(*limits)) if limits != (1.0, 1.0) and rng.random() < config.probability else 1.0

        factors = [
            (name, 1 + symmetric(getattr(config, name))) for name in ("brightness", "contrast", "saturation") if getattr(config, name)
        ]
        if config.hue:
            factors.append(("hue", symmetric(config.hue)))
        if channels != 3:
            factors = [item for item in factors if item[0] in ("brightness", "contrast")]
        shift = symmetric(config.brightness_shift)
        shifts = np.array([shift + symmetric(config.color_shift) for _ in range(max(3, channels))])
        if config.lighting and channels == 3 and rng.random() < config.probability:
            shifts += 255 * _EIGENVECTORS @ (rng.normal(0, config.lighting, 3) * _EIGENVALUES)
        noise = abs(symmetric(config.noise))
        return AugmentParams(
            window=window,
            size=size,
            angle=symmetric(config.rotation),
            translate=(symmetric(config.translate) * width, symmetric(config.translate) * height),
            scale=between(config.scale),
            shear=(symmetric(config.shear), symmetric(config.shear)),
            factors=tuple(factors[index] for index in rng.permutation(len(factors))),
            levels=(between(config.contrast_range), tuple(shifts.tolist())),
            blur=abs(symmetric(config.blur)),
            noise=(noise, int(rng.integers(1 << 62))) if noise else None,
            cutout=self._draw_cutout(rng, height, width),
        )

    def transform(self, image: Pixels, params: AugmentParams, *, boxes: Floats | None = None, points: Floats | None = None) -> Augmented:
        """Apply what :meth:`make_params` drew.

        Args:
            image: (C, H, W), uint8; BGR if C is 3.
            params: The draw.
            boxes: (M, 4), shares of the sides.
            points: (P, 2), shares of the sides.
        """
        import torch

        boxes = np.zeros((0, 4), np.float32) if boxes is None else boxes
        points = np.zeros((0, 2), np.float32) if points is None else points
        # The channels in RGB order, which hue, saturation and lighting need.
        tensor = torch.from_numpy(np.array(image[::-1] if image.shape[0] == 3 else image, order="C"))
        tensor, boxes, points = self._geometry(tensor, boxes, points, params)
        array = self._colors(tensor, params).numpy()
        array = array[::-1] if array.shape[0] == 3 else array
        clipped = np.clip(boxes, 0, 1)
        kept = np.asarray((clipped[:, 2:] > clipped[:, :2]).all(axis=1))
        return Augmented(np.ascontiguousarray(array), clipped[kept], kept, points)

    def batch(self, pictures: list[Pixels], rng: np.random.Generator) -> list[Pixels]:
        """Return pictures (C, H, W), uint8, each with a draw of its own, mixed with each other if ``mixup`` is set.

        Raises:
            DataError: Pictures that are not bytes, or not of one size with mixup.
        """
        if any(picture.dtype != np.uint8 for picture in pictures):
            raise DataError("augmentation needs pictures of bytes; these have float_data")
        changed = [self.transform(picture, self.make_params(rng, picture.shape)).image for picture in pictures]
        if not self.config.mixup:
            return changed
        if len({picture.shape for picture in changed}) != 1:
            raise DataError("mixup needs pictures of one size; set random_resized_crop, or resize them in the database")
        shares = rng.beta(self.config.mixup, self.config.mixup, len(changed))
        partners = rng.permutation(len(changed))
        return [mixed(changed[i], changed[partners[i]], max(share, 1 - share)) for i, share in enumerate(shares)]

    def _draw_window(self, rng: np.random.Generator, height: int, width: int) -> tuple[tuple[int, int, int, int] | None, Any]:
        """Draw the (top, left, height, width) to take, and the (height, width) to resize to."""
        config = self.config
        if config.random_resized_crop is None:
            if not config.min_side[1]:
                return None, None
            side = int(rng.integers(config.min_side[0], config.min_side[1] + 1))
            return (0, 0, height, width), _short_side(height, width, side)
        for _ in range(10):
            area = rng.uniform(*config.crop_area) * height * width
            ratio = math.exp(rng.uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])))
            rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < rows <= height and 0 < columns <= width:
                top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
                return (top, left, rows, columns), config.random_resized_crop
        return (0, 0, height, width), config.random_resized_crop

    def _draw_cutout(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int] | None:
        side = round(self.config.cutout * min(height, width))
        if not side or rng.random() >= self.config.probability:
            return None
        return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side

    def _geometry(self, image: Tensor, boxes: Floats, points: Floats, params: AugmentParams) -> tuple[Tensor, Floats, Floats]:
        import torch
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import InterpolationMode, functional

        size = (image.shape[1], image.shape[2])
        scale = torch.tensor([size[1], size[0]], dtype=torch.float32)
        items: list[Any] = [
            tv_tensors.Image(image),
            tv_tensors.BoundingBoxes(torch.from_numpy(boxes) * scale.repeat(2), format="XYXY", canvas_size=size, clamping_mode=None),
            tv_tensors.KeyPoints(torch.from_numpy(points) * scale, canvas_size=size),
        ]
        if params.window is not None and params.size is not None:
            items = [functional.resized_crop(item, *params.window, list(params.size), antialias=True) for item in items]
        if params.angle or params.scale != 1 or any(params.translate) or any(params.shear):
            options = {"interpolation": InterpolationMode.BILINEAR, "fill": [self.config.fill] * image.shape[0]}
            translate, shear = list(params.translate), list(params.shear)
            items = [functional.affine(item, params.angle, translate, params.scale, shear, **options) for item in items]
        height, width = items[0].shape[-2:]
        back = torch.tensor([width, height], dtype=torch.float32)
        return items[0].as_subclass(torch.Tensor), (items[1] / back.repeat(2)).numpy(), (items[2] / back).numpy()

    def _colors(self, image: Tensor, params: AugmentParams) -> Tensor:
        import torch
        from torchvision.transforms.v2 import functional

        for name, amount in params.factors:
            adjust = getattr(functional, f"adjust_{name}")
            # torchvision knows colors and gray; each of any other channels is a gray picture of its own.
            image = adjust(image, amount) if len(image) in (1, 3) else torch.cat([adjust(channel[None], amount) for channel in image])
        contrast, shifts = params.levels
        if contrast != 1 or any(shifts):
            added = torch.tensor(shifts[: len(image)]).reshape(-1, 1, 1)
            image = (image.float() * contrast + added).round().clamp(0, 255).to(torch.uint8)
        if params.blur > 0.1:
            side = 2 * math.ceil(2 * params.blur) + 1
            if side // 2 < min(image.shape[1:]):
                image = functional.gaussian_blur(image, [side, side], [params.blur, params.blur])
        if params.noise is not None:
            values = np.random.default_rng(params.noise[1]).normal(0, params.noise[0], tuple(image.shape)).astype(np.float32)
            image = (image.float() + torch.from_numpy(values)).round().clamp(0, 255).to(torch.uint8)
        if params.cutout is not None:
            top, left, side = params.cutout
            fill = torch.full((len(image), 1, 1), round(self.config.fill), dtype=torch.uint8)
            image = functional.erase(image, top, left, side, side, fill)
        return image


def mixed(first: Pixels, second: Pixels, share: float) -> Pixels:
    """Return ``share`` of ``first`` and the rest of ``second``, rounded."""
    values = first.astype(np.float32) * np.float32(share) + second.astype(np.float32) * np.float32(1 - share)
    return np.asarray(np.rint(values), np.uint8)


def _short_side(height: int, width: int, side: int) -> tuple[int, int]:
    if not side:
        return height, width
    return (side, round(width * side / height)) if height <= width else (round(height * side / width), side)


def _value(name: str, value: Any, default: Any, path: PathLike) -> Any:
    pair = isinstance(default, tuple) or name == "random_resized_crop"
    numbers = value if isinstance(value, list) and pair else [value]
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers):
        raise DataError(f"{name} must be {'two numbers' if pair else 'a number'}, not {value!r}", path=path)
    if not pair:
        return float(value)
    if len(numbers) == 1 and name in ("random_resized_crop", "min_side"):
        numbers = numbers * 2
    if len(numbers) != 2:
        raise DataError(f"{name} must be two numbers, not {value!r}", path=path)
    whole = name in ("random_resized_crop", "min_side")
    return (int(numbers[0]), int(numbers[1])) if whole else (float(numbers[0]), float(numbers[1]))


def _check(fulfilled: bool, reason: str) -> None:
    if not fulfilled:
        raise DataError(reason)
