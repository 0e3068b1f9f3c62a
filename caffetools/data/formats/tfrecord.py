"""TFRecord files of tf.train.Example messages, with all checksums verified.

The framing is that of tensorflow/core/lib/io/record_writer.h: length (8 bytes), its checksum, the bytes, their checksum.
"""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from google.protobuf.message import DecodeError

from caffetools.data.formats.examples import ConvertOptions, Example, Part, checked_label, example_file, example_pixels, in_files
from caffetools.errors import DataError
from caffetools.util import urls
from caffetools.util.checksums import masked_crc32c
from caffetools.util.files import atomic_write

PathLike = str | os.PathLike[str]
# Names that the scripts of TensorFlow's models and datasets use.
_PICTURES = ("image/encoded", "image", "image_raw", "encoded")
_LABELS = ("image/class/label", "label", "image/label", "class")
_SHAPE = (("image/channels", "channels", "depth"), ("image/height", "height"), ("image/width", "width"))
_MOST_BYTES = 1 << 30


def tfrecord_parts(source: PathLike, options: ConvertOptions) -> list[Part]:
    """Return the one part of a TFRecord file (also gzip), or of all files in a folder whose name has ``tfrecord`` in it.

    A picture is a feature of bytes (``image/encoded``, ``image``, ``image_raw``), a file or, with height, width and channels, raw bytes
    (H, W, C); or ``data``, floats with ``shape``, as :func:`write_tfrecord` writes them. ``options.data`` and ``options.label`` name others.

    Raises:
        DataError: No such file exists.
    """
    if not urls.is_folder(source):
        files = [os.fspath(source)]
    else:
        files = [urls.join(source, name) for name in urls.list_files(source) if "tfrecord" in name.lower()]
    if not files:
        raise DataError("it holds no file with tfrecord in its name", path=source)
    return [Part("", lambda: _examples(files, options))]


def write_tfrecord(path: Path, examples: Iterable[Example], options: ConvertOptions) -> int:
    """Write files data-00000.tfrecord … of ``options.per_file`` examples each into the folder ``path``; return the number of examples.

    Features: ``image/encoded``, ``image/format``, ``image/height``, ``image/width``, ``image/channels``, ``image/class/label``; values
    that no picture's file holds become ``data`` (floats) and ``shape`` (C, H, W).

    Raises:
        DataError: A picture cannot be decoded; names it.
    """
    count = 0
    for number, examples_of_file in enumerate(in_files(examples, options.per_file)):
        with atomic_write(path / f"data-{number:05d}.tfrecord") as stream:
            for example in examples_of_file:
                stream.write(_framed(_message(example, options)))
                count += 1
    return count


def read_records(path: PathLike) -> Iterator[bytes]:
    """Yield the records of a TFRecord file, plain or gzip.

    Raises:
        DataError: The file is truncated, or a checksum differs; names the record.
    """
    stream = urls.open_binary(path)
    with stream:
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        source = cast("IO[bytes]", gzip.GzipFile(fileobj=stream)) if packed else stream
        number = 0
        try:
            while head := source.read(12):
                yield _record(source, head, path, number)
                number += 1
        except (EOFError, OSError) as error:
            raise DataError(f"record {number} cannot be read: {error}", path=path) from None


def _record(source: IO[bytes], head: bytes, path: PathLike, number: int) -> bytes:
    if len(head) < 12:
        raise DataError(f"the file is truncated within the header of record {number}", path=path)
    length, checksum = struct.unpack("<QI", head)
    if masked_crc32c(head[:8]) != checksum:
        reason = "this is not a TFRecord file" if not number else f"the header of record {number} fails its checksum"
        raise DataError(reason, path=path, hint=None if number else "the first record's header fails its checksum")
    if length > _MOST_BYTES:
        raise DataError(f"record {number} has {length} bytes, more than the {_MOST_BYTES} that are read", path=path)
    data = source.read(length + 4)
    if len(data) < length + 4:
        raise DataError(f"the file is truncated within record {number}", path=path)
    if masked_crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise DataError(f"record {number} fails its checksum", path=path)
    return data[:-4]


def _framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def _examples(files: list[str], options: ConvertOptions) -> Iterator[Example]:
    count = 0
    for file in files:
        for number, data in enumerate(read_records(file)):
            yield _example(data, f"{file}: record {number}", f"{count:08d}", options)
            count += 1


def _example(data: bytes, place: str, key: str, options: ConvertOptions) -> Example:
    try:
        features = dict(example_class().FromString(data).features.feature)
    except DecodeError:
        raise DataError(f"{place}: it is not a tf.train.Example") from None
    label = _number(features, (options.label,) if options.label else _LABELS, place)
    if options.label and label is None:
        raise DataError(f"{place}: it has no integer '{options.label}' but {', '.join(sorted(features))}")
    for name in (options.data,) if options.data else (*_PICTURES, "data"):
        if name not in features:
            continue
        feature = features[name]
        if feature.WhichOneof("kind") == "float_list":
            return Example(key, label, array=_floats(feature, features, place), place=place)
        if len(feature.bytes_list.value) == 1:
            content = feature.bytes_list.value[0]
            sizes = [_number(features, names, place) for names in _SHAPE]
            if not _is_file(content) and None not in sizes and int(np.prod([size or 0 for size in sizes])) == len(content):
                channels, height, width = (int(size or 0) for size in sizes)
                array = np.frombuffer(content, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
                return Example(key, label, array=np.ascontiguousarray(array), place=place)
            return Example(key, label, content, place=place)
    raise DataError(f"{place}: it has no picture but {', '.join(sorted(features)) or 'nothing'}", hint="name the feature with --data")


def _is_file(content: bytes) -> bool:
    return content.startswith((b"\xff\xd8\xff", b"\x89PNG", b"BM", b"GIF8", b"RIFF"))


def _number(features: dict[str, Any], names: Iterable[str], place: str) -> int | None:
    for name in names:
        if name in features and len(features[name].int64_list.value) == 1:
            return checked_label(features[name].int64_list.value[0], place)
    return None


def _floats(feature: Any, features: dict[str, Any], place: str) -> np.ndarray[Any, Any]:
    shape = [int(side) for side in features["shape"].int64_list.value] if "shape" in features else []
    values = np.array(feature.float_list.value, np.float32)
    if len(shape) != 3 or min(shape) < 1 or int(np.prod(shape)) != values.size:
        raise DataError(f"{place}: its {values.size} floats do not fill the shape {shape} (channels, height, width)")
    return values.reshape(shape)


def _message(example: Example, options: ConvertOptions) -> bytes:
    message = example_class()()
    feature = message.features.feature
    if example.label is not None:
        feature["image/class/label"].int64_list.value.append(example.label)
    if example.array is not None and (example.array.dtype != np.uint8 or len(example.array) not in (1, 3, 4)):
        array = example_pixels(example, options)
        feature["data"].float_list.value.extend(array.astype(np.float32).flat)
        feature["shape"].int64_list.value.extend(array.shape)
    else:
        data = example_file(example, options)
        channels, height, width = example_pixels(example, options).shape
        feature["image/encoded"].bytes_list.value.append(data)
        feature["image/format"].bytes_list.value.append(b"jpeg" if data.startswith(b"\xff\xd8") else b"png")
        for name, value in (("channels", channels), ("height", height), ("width", width)):
            feature[f"image/{name}"].int64_list.value.append(value)
    serialized: bytes = message.SerializeToString(deterministic=True)
    return serialized


@cache
def example_class() -> Any:
    """Return the message class of tf.train.Example, made in a descriptor pool of its own so that TensorFlow's does not collide."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    lists = (("BytesList", kinds.TYPE_BYTES), ("FloatList", kinds.TYPE_FLOAT), ("Int64List", kinds.TYPE_INT64))
    for name, kind in lists:
        message = file.message_type.add(name=name)
        message.field.add(name="value", number=1, type=kind, label=kinds.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, _) in enumerate(lists, 1):
        field = f"{name.removesuffix('List').lower()}_list"
        kind = kinds.TYPE_MESSAGE
        feature.field.add(name=field, number=number, type=kind, type_name=f".tensorflow.{name}", label=kinds.LABEL_OPTIONAL, oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, type_name=".tensorflow.Feature", label=kinds.LABEL_OPTIONAL)
    inner = ".tensorflow.Features.FeatureEntry"
    features.field.add(name="feature", number=1, type=kinds.TYPE_MESSAGE, type_name=inner, label=kinds.LABEL_REPEATED)
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, type=kinds.TYPE_MESSAGE, type_name=".tensorflow.Features", label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
