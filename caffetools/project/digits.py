"""The 1,797 handwritten digits that scikit-learn ships (UCI ML optical digits, 8 x 8 pixels, 17 grey levels), as folders of PNGs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from caffetools.errors import CaffeToolsError, WriteFailed


def write_digits(folder: Path, digits: Iterable[int]) -> int:
    """Write the pictures of ``digits`` as ``folder/<digit>/<number>.png``, grey, 8 x 8; an existing folder is replaced when all are there.

    Returns:
        How many pictures were written.

    Raises:
        CaffeToolsError: scikit-learn is not installed.
        WriteFailed: they cannot be written.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise CaffeToolsError("the demo's digits come with scikit-learn: pip install 'caffetools[demo]'") from None
    import cv2

    wanted = set(digits)
    data = load_digits()
    # Ink is bright on a dark ground, as in MNIST; levels 0 to 16 become 0 to 255.
    pictures = (data.images * (255 / 16)).round().astype("uint8")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    written = 0
    try:
        for number, (picture, digit) in enumerate(zip(pictures, data.target, strict=True)):
            if int(digit) not in wanted:
                continue
            path = temporary / str(digit) / f"{number:04d}.png"
            path.parent.mkdir(exist_ok=True)
            if not cv2.imwrite(str(path), picture):
                raise WriteFailed(folder, "is the disk full?")
            written += 1
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written
