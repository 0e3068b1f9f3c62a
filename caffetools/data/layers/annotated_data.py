"""AnnotatedData: batches of pictures with boxes from the databases of SSD (annotated_data_layer.cpp of weiliu89/caffe)."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from caffetools.data.augment import FORK_FIELDS as AUGMENT_FIELDS
from caffetools.data.databases import Database, open_database, shown_key
from caffetools.data.datum import datum_to_array
from caffetools.data.images import decode_image, encode_image, to_planes
from caffetools.data.joint_transforms import (
    FIT_SMALL_SIZE,
    Distort,
    Expand,
    Noise,
    RandomCrop,
    Resize,
    Sample,
    mirror,
    move_to_region,
)
from caffetools.data.layers.batch_source import BatchMaker, ReadingLayer, RecordBatches, Tops, batch_size_of
from caffetools.data.lmdb_file import Record
from caffetools.data.transformer import Transformer
from caffetools.errors import DataError
from caffetools.layers.base import Shape, format_shape
from caffetools.layers.registry import register
from caffetools.layers.traits import Traits
from caffetools.proto.schema import TRAIN, AnnotatedDatum, LayerParameter, TransformationParameter
from caffetools.util.threads import ordered_map

_BBOX = 0
# Columns of the label top: item, group label, instance, xmin, ymin, xmax, ymax, difficult.
_COLUMNS = 8


@register("AnnotatedData")
class AnnotatedData(ReadingLayer):
    """Records of a database of ``AnnotatedDatum``, in the order of their keys, over and over.

    Tops: data (N, C, H, W), float32; and labels (1, 1, B, 8), float32, one row for each of the batch's B boxes: item, group label,
    instance, xmin, ymin, xmax, ymax (shares of the picture) and difficult; a batch without boxes has one row of -1. If neither the
    records nor ``anno_type`` give a type of annotation, the labels are those of the Datum, (N).

    ``transform_param`` is applied as SSD does: ``distort_param``, ``expand_param``, ``batch_sampler``, ``resize_param``,
    ``noise_param``, crop (``crop_size`` or ``crop_h`` and ``crop_w``), mirror, mean, scale; ``emit_constraint`` drops boxes. As in
    SSD, a picture that is stored as a file is compressed as JPEG after each of the first three that is applied. ``label_map_file`` is for the layers that evaluate.
    """

    TRAITS = Traits(role="data", source="data_param", file_source=True, transforms=True, label_tops="labels")
    AUGMENTS = True
    FORK_FIELDS = AUGMENT_FIELDS | {
        "resize_param",
        "noise_param",
        "emit_constraint",
        "crop_h",
        "crop_w",
        "distort_param",
        "expand_param",
        "shuffle",
    }

    @classmethod
    def stored_item(cls, param: LayerParameter) -> Shape | None:
        """Return the shape (C, H, W) that the first record has after ``resize_param``, or None if the database does not exist."""
        source, transform = param.data_param.source, param.transform_param
        if not source or not Path(source).exists():
            return None
        with suppress(DataError, DecodeError), closing(open_database(source)) as database:
            datum = AnnotatedDatum.FromString(next(database.records())[1])
            color = True if transform.force_color else False if transform.force_gray else None
            channels, height, width = datum_to_array(datum.datum, color=color).shape
            if transform.HasField("resize_param"):
                height, width = Resize(transform.resize_param).new_size((height, width))
            return channels, height, width
        return None

    def prefetch_depth(self) -> int:
        return int(self.param.data_param.prefetch)

    def open(self, seed: int) -> BatchMaker:
        size = batch_size_of(self, self.param.data_param.batch_size)
        annotated = self.param.annotated_data_param
        resize = self.param.transform_param.resize_param
        if self.param.transform_param.HasField("resize_param") and resize.resize_mode == FIT_SMALL_SIZE and size != 1:
            raise self.error("resize_mode FIT_SMALL_SIZE gives pictures of different sizes, so batch_size must be 1")
        transformer = JointTransformer(self.param.transform_param, list(annotated.batch_sampler), self.phase)
        anno_type = int(annotated.anno_type) if annotated.HasField("anno_type") else None
        database = open_database(self.param.data_param.source)
        return AnnotatedBatches(
            database, size, transformer, seed, labels=len(self.tops) > 1, anno_type=anno_type, skip_corrupt=self.skip_corrupt
        )


class JointTransformer:
    """What ``transform_param`` and the batch samplers ask for, for one picture with its boxes.

    Args:
        param: A ``TransformationParameter``.
        samplers: ``BatchSampler`` messages.
        phase: ``TRAIN`` or ``TEST``; crops are random in TRAIN.

    Raises:
        DataError: Settings are impossible or exclude each other.
    """

    def __init__(self, param: TransformationParameter, samplers: list[Any], phase: int):
        self.base = Transformer(param, phase)
        self.color, self.mirrored, self.random_crop = self.base.color, bool(param.mirror), phase == TRAIN
        self.emit = param.emit_constraint if param.HasField("emit_constraint") else None
        self.distort = Distort(param.distort_param) if param.HasField("distort_param") else None
        self.expand = Expand(param.expand_param, self.base.values, self.emit) if param.HasField("expand_param") else None
        self.sampler = RandomCrop(samplers, self.emit) if samplers else None
        self.resize = Resize(param.resize_param) if param.HasField("resize_param") else None
        self.noise = Noise(param.noise_param) if param.HasField("noise_param") else None
        self.crop = (param.crop_size, param.crop_size) if param.crop_size else (int(param.crop_h), int(param.crop_w))
        if bool(self.crop[0]) != bool(self.crop[1]):
            raise DataError("transform_param: crop_h and crop_w must be given together")
        if self.expand is not None and self.base.mean is not None:
            raise DataError("transform_param: expand_param needs mean_value, not mean_file, to fill the canvas")

    def top_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the (C, h, w) that a picture of ``shape`` (H, W[, C]) becomes. Raises :class:`DataError` if it does not fit."""
        height, width = self.resize.new_size(shape) if self.resize is not None else shape[:2]
        channels = shape[2] if len(shape) == 3 else 1
        if self.crop[0] > height or self.crop[1] > width:
            raise DataError(f"the crop ({self.crop[1]} x {self.crop[0]}) is larger than the picture ({width} x {height})")
        return (channels, *self.crop) if self.crop[0] else (channels, height, width)

    def __call__(self, sample: Sample, rng: np.random.Generator, *, encoded: bool = False) -> tuple[NDArray[np.float32], Sample]:
        """Transform one picture.

        Args:
            sample: The picture with its boxes.
            rng: All draws come from it.
            encoded: Whether the record has the picture as a file, in place of its pixels.

        Returns:
            The values (C, h, w), float32, and the sample with its boxes in the coordinates of these values.

        Raises:
            DataError: The picture does not fit the settings.
        """
        stored = _as_jpeg if encoded else _as_it_is
        if self.distort is not None:
            sample = stored(self.distort.transform(sample, self.distort.make_params(rng)))
        if self.expand is not None and (canvas := self.expand.make_params(rng, sample.image.shape)) is not None:
            sample = stored(self.expand.transform(sample, canvas))
        if self.sampler is not None and (region := self.sampler.make_params(rng, sample.boxes)) is not None:
            sample = stored(self.sampler.transform(sample, region))
        flip = self.mirrored and bool(rng.integers(2))
        if self.resize is not None:
            sample = self.resize.transform(sample, self.resize.make_params(rng))
        if self.noise is not None:
            sample = self.noise.transform(sample, self.noise.make_params(rng, sample.image.shape))
        sample = self._crop(sample, rng)
        if flip:
            sample = mirror(sample)
        return self._values(sample.image), sample

    def _crop(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.image.shape[:2]
        rows, columns = self.crop if self.crop[0] else (height, width)
        if rows > height or columns > width:
            raise DataError(f"the crop ({columns} x {rows}) is larger than the picture ({width} x {height})")
        top, left = (height - rows) // 2, (width - columns) // 2
        if self.random_crop and self.crop[0]:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        region = (left / width, top / height, (left + columns) / width, (top + rows) / height)
        moved = move_to_region(sample, region, self.emit)
        return Sample(sample.image[top : top + rows, left : left + columns], moved.boxes, moved.attributes)

    def _values(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        planes = image[np.newaxis] if image.ndim == 2 else image.transpose(2, 0, 1)
        values = planes.astype(np.float32)
        if self.base.mean is not None:
            if self.base.mean.shape != values.shape:
                raise DataError(
                    f"the mean file is for pictures of {format_shape(self.base.mean.shape)}, the cropped ones are {format_shape(values.shape)} "
                    "(channels x height x width)"
                )
            values -= self.base.mean
        if self.base.values.size:
            if self.base.values.size not in (1, len(values)):
                raise DataError(f"{self.base.values.size} mean_value(s) for {len(values)} channel(s); give one, or one for each")
            values -= self.base.values.reshape(-1, 1, 1)
        return np.ascontiguousarray(values * self.base.scale) if self.base.scale != 1 else np.ascontiguousarray(values)


def _as_jpeg(sample: Sample) -> Sample:
    """Return ``sample`` as SSD's steps pass it on to each other: its picture compressed as JPEG, at OpenCV's quality (95)."""
    return replace(sample, image=decode_image(encode_image(sample.image, ".jpg"), color=None))


def _as_it_is(sample: Sample) -> Sample:
    return sample


# A record and the seed of its random draws; a record's values and its rows of the label top.
_Work = tuple[Record, int]
_Transformed = tuple[NDArray[np.float32], NDArray[np.float32]]


class AnnotatedBatches(RecordBatches):
    """Batches of ``size`` transformed records of ``database``; its position is the number of the next record.

    Each record has a generator of its own, seeded from the batch's, so the threads that transform do not change the numbers.
    """

    def __init__(
        self,
        database: Database,
        size: int,
        transformer: JointTransformer,
        seed: int,
        *,
        labels: bool,
        anno_type: int | None,
        skip_corrupt: int = 0,
    ):
        super().__init__(database, size, seed, skip_corrupt=skip_corrupt)
        self.transformer, self.labels, self.anno_type = transformer, labels, anno_type
        # Set by the first record that is sound, when the shapes are asked for or a batch is made.
        self._first: tuple[Any, Sample] | None = None

    def shapes(self) -> list[Shape]:
        datum, sample = self._first_sound()
        height, width = self.augmented_shape((1, *sample.image.shape[:2]))[1:]
        data: Shape = (self.size, *self.transformer.top_shape((height, width, *sample.image.shape[2:])))
        if not self.labels:
            return [data]
        boxes = sum(len(group.annotation) for group in datum.annotation_group)
        return [data, (1, 1, max(1, boxes), _COLUMNS) if self._has_type() else (self.size,)]

    def next(self) -> Tops:
        has_type = self._has_type()  # before the threads need it
        work = [self._work() for _ in range(self.size)]
        found = list(zip(work, ordered_map(self._transformed, work), strict=True))
        sound = [(record[0], result) for (record, _), result in found if not isinstance(result, DataError)]
        for _, result in found:
            if isinstance(result, DataError):
                # The records after the batch take the places of damaged ones, at its end: the order stays that of the keys.
                sound.append(self._next_sound(result))
        images = [values for _, (values, _) in sound]
        for key, (image, _) in sound:
            if image.shape != images[0].shape:
                raise DataError(
                    f"{shown_key(self.database.path, key)}: it is {format_shape(image.shape)}, the first of the batch "
                    f"{format_shape(images[0].shape)} (channels x height x width); set resize_param or a crop"
                )
        batch = np.stack(images)
        if not self.labels:
            return (batch,)
        rows = [label for _, (_, label) in sound]
        if not has_type:
            return batch, np.array(rows, np.float32).reshape(-1)
        table = np.concatenate([np.insert(boxes, 0, item, axis=1) for item, boxes in enumerate(rows)])
        if not len(table):
            table = np.full((1, _COLUMNS), -1, np.float32)
        return batch, table[np.newaxis, np.newaxis]

    def _work(self) -> _Work:
        return self.next_owned_record(), int(self.rng.integers(1 << 62))

    def _first_sound(self) -> tuple[Any, Sample]:
        """Return the database's first record that is not damaged."""
        if self._first is None:
            for record in self.database.records(on_error=self.corrupt):
                read = self._read(record)
                if not isinstance(read, DataError):
                    self._first = read
                    return read
                self.corrupt(read)
            raise DataError("no record can be read", path=self.database.path)
        return self._first

    def _has_type(self) -> bool:
        return self.anno_type is not None or bool(self._first_sound()[0].HasField("type"))

    def _next_sound(self, result: _Transformed | DataError) -> tuple[bytes, _Transformed]:
        """Return the next record that is not damaged, transformed, with its key; ``result`` is the error of the one before it."""
        for _ in range(len(self.database) + 1):
            if isinstance(result, DataError):
                self.corrupt(result)
            work = self._work()
            result = self._transformed(work)
            if not isinstance(result, DataError):
                return work[0][0], result
        raise DataError("no record can be read", path=self.database.path)

    def _read(self, record: Record) -> tuple[Any, Sample] | DataError:
        """Return a record's message and its picture with boxes, or why they cannot be read."""
        what = shown_key(self.database.path, record[0])
        try:
            datum = self._parse(record)
            return datum, self._sample(datum, what)
        except DataError as error:
            return error

    def _transformed(self, work: _Work) -> _Transformed | DataError:
        """Return a record's values (C, h, w), and its rows of the label top without the first column, or its label.

        Raises:
            DataError: The record is sound, but does not fit the settings; that of a damaged one is returned.
        """
        record, seed = work
        read = self._read(record)
        if isinstance(read, DataError):
            return read
        datum, sample = read
        try:
            rng = np.random.default_rng(seed)
            values, sample = self.transformer(self._augmented(sample, rng), rng, encoded=datum.datum.encoded)
        except DataError as error:
            raise DataError(f"{shown_key(self.database.path, record[0])}: {error}") from None
        if not self._has_type():
            return values, np.array([datum.datum.label], np.float32)
        group, instance, difficult = (sample.attributes[:, column : column + 1] for column in range(3))
        return values, np.concatenate([group, instance, sample.boxes, difficult], axis=1).astype(np.float32)

    def _augmented(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if self.augmenter is None:
            return sample
        if self.augmenter.config.mixup:
            raise DataError("mixup has no meaning for pictures with boxes; remove it from the augmentation")
        planes = to_planes(sample.image)
        changed = self.augmenter.transform(planes, self.augmenter.make_params(rng, planes.shape), boxes=sample.boxes)
        image = np.ascontiguousarray(changed.image[0] if len(changed.image) == 1 else changed.image.transpose(1, 2, 0))
        return Sample(image, changed.boxes, sample.attributes[changed.kept])

    def _parse(self, record: Record) -> AnnotatedDatum:
        what = shown_key(self.database.path, record[0])
        try:
            datum = AnnotatedDatum.FromString(record[1])
        except DecodeError:
            raise DataError(f"{what}: the record is damaged: its {len(record[1])} bytes are not an AnnotatedDatum") from None
        if not (datum.datum.data or datum.datum.float_data):
            raise DataError(f"{what}: the record is not an AnnotatedDatum with pixels; a database of Datum is read by a Data layer")
        kind = self.anno_type if self.anno_type is not None else datum.type
        if kind != _BBOX:
            raise DataError(f"{what}: annotations of type {kind} are unknown; BBOX (0) is known")
        return datum

    def _image(self, datum: AnnotatedDatum, what: str) -> NDArray[np.uint8]:
        array = datum_to_array(datum.datum, color=self.transformer.color, what=what)
        if array.dtype != np.uint8:
            raise DataError(f"{what}: its picture has float_data; pictures with boxes must be of bytes")
        return np.ascontiguousarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0))

    def _sample(self, datum: AnnotatedDatum, what: str) -> Sample:
        boxes, attributes = [], []
        for group in datum.annotation_group:
            for annotation in group.annotation:
                box = annotation.bbox
                boxes.append((box.xmin, box.ymin, box.xmax, box.ymax))
                attributes.append((group.group_label, annotation.instance_id, box.difficult))
        array = np.array(boxes, np.float32).reshape(-1, 4)
        if not np.isfinite(array).all():
            raise DataError(f"{what}: a box has coordinates that are not finite")
        return Sample(self._image(datum, what), array, np.array(attributes, np.float64).reshape(-1, 3))
