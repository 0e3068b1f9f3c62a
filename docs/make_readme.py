"""Make what the READMEs show of the product: their table of models, and the picture of the demo's report.

``python docs/make_readme.py`` writes the tables. ``python docs/make_readme.py --picture`` also runs the demo in a temporary folder and
photographs its report with Chromium, which must be installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "README.md"
CHINESE = ROOT / "README.zh-CN.md"
PICTURE = Path(__file__).parent / "pictures" / "report.png"
# What the table of models says in English and in Chinese.
_WORDS = {
    "| model | input | parameters | MACs | top-1 % | top-5 % | licence of the weights |": "| 模型 | 输入 | 参数量 | 乘加次数 | top-1 % | top-5 % | 权重许可 |",
    "| unrestricted |": "| 无限制 |",
    "| none stated |": "| 未说明 |",
}
_BLOCK = re.compile(r"(<!-- models -->\n).*?(<!-- /models -->)", re.DOTALL)


def page() -> str:
    """Return README.md with today's table of models."""
    return _with_models(PAGE, models())


def chinese_page() -> str:
    """Return README.zh-CN.md with today's table of models."""
    table = models()
    for english, chinese in _WORDS.items():
        table = table.replace(english, chinese)
    return _with_models(CHINESE, table)


def _with_models(path: Path, table: str) -> str:
    return _BLOCK.sub(lambda match: f"{match[1]}\n{table}\n{match[2]}", path.read_text(encoding="utf-8"))


def models() -> str:
    """Return the table of the zoo's models, as on docs/models.md."""
    sys.path.insert(0, str(Path(__file__).parent))
    from make_models import table

    from caffetools.zoo.cards import get_card, list_models

    return "\n".join(table([get_card(name) for name in list_models()]))


def photograph() -> None:
    """Run the demo and write the first screen of its report as a small PNG."""
    from PIL import Image

    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit("Chromium is not installed")
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([sys.executable, "-m", "caffetools", "demo"], check=True, cwd=place, stdout=subprocess.DEVNULL)
        shot = Path(place) / "shot.png"
        report = (Path(place) / "caffetools-demo" / "report.html").as_uri()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={place}/profile"]
        subprocess.run([browser, *flags, f"--screenshot={shot}", "--window-size=1180,1072", report], check=True, capture_output=True)
        with Image.open(shot) as image:
            image.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    CHINESE.write_text(chinese_page(), encoding="utf-8")
    if "--picture" in sys.argv[1:]:
        photograph()
