"""Reading pictures: what OpenCV makes of unusual ones, and one clear error for those that are no use."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from caffetools.data.images import PixelBudget, decode_image, encode_image, fast_divisor, parse_size, read_image, resize
from caffetools.data.picture_sizes import stated_size
from caffetools.errors import DataError
from caffetools.pycaffe.io import load_image
from caffetools.visualize.thumbnails import thumbnail
from tests.data.drawing import png_bomb


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """A smooth picture, RGB, 40 high and 60 wide."""
    noise = np.random.default_rng(5).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(cv2.resize(noise, (60, 40), interpolation=cv2.INTER_CUBIC), np.uint8)


def saved(path: Path, pixels: NDArray[np.uint8], mode: str = "RGB", **options: object) -> Path:
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def test_pixels_come_as_rows_of_bgr(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    image = read_image(saved(tmp_path / "a.png", pixels))
    np.testing.assert_array_equal(image, pixels[:, :, ::-1], strict=True)


def test_a_grey_picture_gets_three_equal_channels(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    path = saved(tmp_path / "a.png", pixels, "L")
    image, grey = read_image(path), read_image(path, color=False)
    assert image.shape == (40, 60, 3) and grey.shape == (40, 60)
    for channel in range(3):
        np.testing.assert_array_equal(image[:, :, channel], grey)


def test_transparency_is_dropped(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, (40, 60, 1), np.uint8)
    path = saved(tmp_path / "a.png", np.concatenate([pixels, alpha], axis=2), "RGBA")
    np.testing.assert_array_equal(read_image(path), pixels[:, :, ::-1], strict=True)


def test_sixteen_bits_become_their_upper_eight(tmp_path: Path) -> None:
    wide = np.random.default_rng(2).integers(0, 65536, (9, 7, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), wide)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_COLOR), strict=True)
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), wide / 257, atol=1)


def test_sixteen_bits_are_refused_where_a_datum_would_keep_them(tmp_path: Path) -> None:
    _, data = cv2.imencode(".png", np.zeros((4, 4), np.uint16))
    with pytest.raises(DataError, match="16 bits"):
        decode_image(bytes(data), color=None)


def test_cmyk_is_converted_as_opencv_does(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    path = saved(tmp_path / "a.jpg", pixels, "CMYK", quality=95)
    image = read_image(path)
    np.testing.assert_array_equal(image, cv2.imread(str(path), cv2.IMREAD_COLOR), strict=True)
    assert np.abs(image.astype(int) - pixels[:, :, ::-1]).mean() < 4


def test_the_orientation_in_exif_is_applied(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = saved(tmp_path / "a.jpg", pixels, quality=95, exif=exif)
    assert read_image(path).shape == (60, 40, 3)
    assert decode_image(path.read_bytes(), color=None).shape == (40, 60, 3)


def test_resizing_is_opencvs_bilinear(pixels: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(resize(pixels, (23, 31)), cv2.resize(pixels, (23, 31), interpolation=cv2.INTER_LINEAR), strict=True)
    assert resize(pixels, (60, 40)) is pixels


@pytest.mark.parametrize("kind", ["jpg", "progressive.jpg", "exif.jpg", "png", "interlaced.png", "gif", "bmp", "webp", "tif", "ppm"])
def test_a_truncated_picture_is_an_error_wherever_it_was_cut(tmp_path: Path, pixels: NDArray[np.uint8], kind: str) -> None:
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    if kind == "exif.jpg":
        exif = Image.Exif()
        exif[0x010E] = "a \xff\xd9 in the description, as thumbnails have"
        picture.save(buffer, "JPEG", exif=exif)
    else:
        name = {"jpg": "JPEG", "tif": "TIFF"}.get(kind.split(".")[-1], kind.split(".")[-1].upper())
        picture.save(buffer, name, **({"progressive": True} if kind == "progressive.jpg" else {}))
    data = buffer.getvalue()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(data)
    if kind == "gif" and not cv2.haveImageReader(str(path)):
        pytest.skip("OpenCV reads GIF from 4.12 on")
    assert decode_image(data).shape == (40, 60, 3)
    for length in sorted({1, 2, 20, *(len(data) * part // 10 for part in range(1, 10)), len(data) - 2, len(data) - 1}):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match="cut.*" + kind):
            read_image(path)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": True}], ids=str)
def test_a_truncated_jpeg_is_filled_as_opencv_fills_it_where_asked(
    tmp_path: Path, pixels: NDArray[np.uint8], options: dict[str, Any]
) -> None:
    if options.pop("exif", False):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6  # turned by 90 degrees
    data = saved(tmp_path / "a.jpg", pixels, **options).read_bytes()
    begin, path = data.index(b"\xff\xda"), tmp_path / "cut.jpg"
    for length in (begin + 20, begin + 40, *(begin + (len(data) - begin) * part // 5 for part in range(1, 5)), len(data) - 1):
        path.write_bytes(data[:length])
        for color, flag in ((True, cv2.IMREAD_COLOR), (False, cv2.IMREAD_GRAYSCALE)):
            seen: list[DataError] = []
            if (filled := cv2.imread(str(path), flag)) is None:  # cut within a header
                with pytest.raises(DataError, match=r"cut\.jpg"):
                    read_image(path, color=color, on_truncated=seen.append)
                continue
            np.testing.assert_array_equal(read_image(path, color=color, on_truncated=seen.append), filled, strict=True)
            assert len(seen) == 1 and "cut.jpg: the picture is truncated" in str(seen[0])
    path.write_bytes(data[:30])
    with pytest.raises(DataError, match=r"cut\.jpg"):
        read_image(path, on_truncated=seen.append)


def damaged_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG with its end mark, in whose middle a part of the data has become zeros."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    middle = (data.index(b"\xff\xda") + len(data)) // 2
    data[middle : middle + 40] = bytes(40)
    return bytes(data)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library has no streams of the program's own")
def test_a_damaged_jpeg_is_decoded_as_opencv_does_and_named_where_libjpeg_only_prints(
    tmp_path: Path, pixels: NDArray[np.uint8], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = damaged_jpeg(pixels)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert capfd.readouterr().err.startswith("Corrupt JPEG data: ")
    seen: list[DataError] = []
    np.testing.assert_array_equal(decode_image(data, what="a.jpg", on_damaged=seen.append), expected, strict=True)
    assert [str(error).partition(" (")[0] for error in seen] == ["a.jpg: the picture is damaged, and decoded as far as that goes"]
    (tmp_path / "b.jpg").write_bytes(data)
    for _ in range(3):
        read_image(tmp_path / "b.jpg")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [str(tmp_path / "b.jpg")]
    assert not any(line.startswith("Corrupt") for line in capfd.readouterr().err.splitlines())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library has no streams of the program's own")
def test_the_damage_of_a_picture_is_not_reported_of_one_that_another_thread_decodes(pixels: NDArray[np.uint8]) -> None:
    files = {"sound": encode_image(pixels, ".jpg"), "damaged": damaged_jpeg(pixels)}
    seen: list[str] = []

    def decode(what: str) -> None:
        for _ in range(50):
            decode_image(files[what], what=what, on_damaged=lambda error: seen.append(str(error).partition(":")[0]))

    threads = [threading.Thread(target=decode, args=(what,)) for what in (*files, *files)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["damaged"] * 100


def test_bytes_after_the_end_of_a_jpeg_are_no_harm(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    path = saved(tmp_path / "a.jpg", pixels)
    whole = read_image(path)
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    np.testing.assert_array_equal(read_image(path), whole)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"these are words, not a picture\n", "it is text"),
        (b"<!DOCTYPE html><html>404</html>", "it is a web page"),
        (bytes(range(256)), "begins with the bytes 00 01 02 03"),
    ],
)
def test_what_is_not_a_picture_is_named_with_what_it_is(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.jpg: .*{reason}"):
        read_image(path)


def test_a_missing_picture_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.png: cannot read the picture: No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="Is a directory"):
        read_image(tmp_path)


def test_sizes_are_understood_or_refused() -> None:
    assert parse_size(256) == parse_size("256") == (256, 256)
    assert parse_size("320x240") == parse_size((320, 240)) == (320, 240)
    assert parse_size(0) is None
    for bad in ("big", "3x", "-1", "0x5", 70000, ""):
        with pytest.raises(DataError):
            parse_size(bad)


def test_opencvs_messages_are_hidden_while_it_decodes_and_its_log_level_is_restored(capfd: pytest.CaptureFixture[str]) -> None:
    # OpenCV 5 has it in a module of its own.
    level: Callable[[], int] = cv2.getLogLevel if hasattr(cv2, "getLogLevel") else cv2.utils.logging.getLogLevel
    before = level()
    with pytest.raises(DataError):
        decode_image(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0IEND\xae\x42\x60\x82")
    # A line of libpng itself, which older releases of OpenCV let through.
    assert level() == before and capfd.readouterr().err in ("", "libpng error: IEND: out of place\n")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif", ".gif", ".jp2", ".avif"])
def test_a_picture_beyond_the_limit_of_pixels_is_refused_from_its_header(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        done, data = cv2.imencode(suffix, np.full((31, 47, 3), 90, np.uint8))
    except cv2.error:
        done = False
    if not done:
        pytest.skip(f"this OpenCV does not write {suffix}")
    assert stated_size(data.tobytes()) == (47, 31)
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "1456")
    with pytest.raises(DataError, match=r"a\.x: the picture has 47 x 31 pixels, more than the limit of 1,456.*=1457"):
        decode_image(data.tobytes(), what="a.x")
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "1457")
    assert decode_image(data.tobytes()).shape == (31, 47, 3)


def jpeg(width: int, height: int, orientation: int = 1, mode: str = "RGB") -> bytes:
    coarse = np.random.default_rng(6).integers(0, 256, (4, 5, 3), np.uint8)
    pixels = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    exif, stream = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", quality=95, exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize(("size", "divisor"), [((40, 40), 4), ((20, 20), 8), ((20, 40), 4), ((50, 81), 2), ((20, 161), 1), (None, 1)])
def test_a_jpeg_is_divided_as_far_as_it_remains_larger_than_what_is_asked_for(size: tuple[int, int] | None, divisor: int) -> None:
    # Whichever way it is turned.
    assert fast_divisor(jpeg(321, 163), size) == fast_divisor(jpeg(163, 321), size) == divisor
    assert fast_divisor(cv2.imencode(".png", np.zeros((321, 321), np.uint8))[1].tobytes(), size) == 1


@pytest.mark.parametrize("divisor", [2, 4, 8])
@pytest.mark.parametrize(("orientation", "mode"), [(1, "RGB"), (6, "RGB"), (1, "L"), (1, "CMYK")])
@pytest.mark.parametrize("color", [True, False])
def test_a_jpeg_decoded_at_a_reduced_scale_shows_the_same(divisor: int, orientation: int, mode: str, color: bool) -> None:
    data = jpeg(320, 160, orientation, mode)
    full, reduced = decode_image(data, color=color), decode_image(data, color=color, divisor=divisor)
    assert reduced.shape[:2] == (full.shape[0] // divisor, full.shape[1] // divisor) and reduced.ndim == full.ndim
    averages = cv2.resize(full, reduced.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(averages.astype(int) - reduced).mean() < 2


def test_a_jpeg_beyond_the_limit_of_pixels_is_decoded_at_a_reduced_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "5000")
    data = jpeg(201, 101)
    with pytest.raises(DataError, match="201 x 101 pixels, more than the limit of 5,000.*--fast-decode"):
        decode_image(data)
    with pytest.raises(DataError, match="--fast-decode"):
        decode_image(data, divisor=2)
    assert decode_image(data, divisor=4).shape == (26, 51, 3)


@pytest.mark.parametrize("size", [0, 1, 7, 20, 33])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_a_header_that_is_cut_off_has_no_size_or_the_right_one(suffix: str, size: int) -> None:
    data = cv2.imencode(suffix, np.zeros((8, 9, 3), np.uint8))[1].tobytes()
    assert stated_size(data[:size]) in (None, (9, 8))


def test_a_png_that_unpacks_to_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_bomb())
    for read in (read_image, load_image, thumbnail):
        with pytest.raises(
            DataError, match=r"bomb\.png: the picture has 30000 x 30000 pixels, more than the limit of 268,435,456"
        ) as failure:
            read(tmp_path / "bomb.png")
        assert isinstance(failure.value, OSError) == (read is load_image)


def test_pipes_and_links_to_missing_files_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(DataError, match=r"pipe\.jpg: it is not a regular file but a pipe"):
        read_image(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match=r"link\.jpg: cannot read the picture: No such file or directory \(it is a broken link\)"):
        read_image(tmp_path / "link.jpg")


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big")


def test_large_pictures_wait_for_each_other_and_one_beyond_the_budget_is_decoded_alone() -> None:
    budget = PixelBudget(1 << 26)
    half, double, small = png_header(1 << 10, 1 << 15), png_header(1 << 12, 1 << 15), png_header(1 << 10, 1 << 10)

    def enters(data: bytes, entered: threading.Event) -> None:
        with budget(data):
            entered.set()

    with ThreadPoolExecutor(3) as threads:
        for first, waits, passes in ((half, double, half), (double, half, small)):
            waited, passed = threading.Event(), threading.Event()
            with budget(first):
                late = threads.submit(enters, waits, waited)
                threads.submit(enters, passes, passed).result(60)
                assert passed.is_set() and not waited.wait(0.05)
            late.result(60)
            assert waited.is_set()
