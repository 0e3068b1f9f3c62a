"""Record a short session of the command line as an animated SVG: python docs/make_terminal.py (a minute).

The commands run in a temporary folder with drawn pictures; what they print is what the picture shows, line by line. The text is real text,
the animation is CSS, and it stands still where motion is not wanted.
"""

from __future__ import annotations

import html
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

PICTURE = Path(__file__).parent / "pictures" / "terminal.svg"
COLUMNS, LINES_SHOWN = 108, 24
CHARACTER, LINE, MARGIN, BAR = 8.4, 19, 16, 34
# Seconds: before a command is typed, for it, for each line of its output, and at the end.
PAUSE, TYPING, OUTPUT, END = 0.7, 1.2, 0.12, 6.0
COMMANDS = [
    "caffetools dataset build pictures data --size 40",
    "caffetools retarget cifar10_quick --dataset data --crop 32 --base-lr 0.003 --epochs 120 -o net --seed 1",
    "caffetools train net/solver.prototxt --device cpu --quiet",
    "caffetools classify net/deploy.prototxt net/snapshot_iter_240.caffemodel pictures/square/000.png --top 3",
    "caffetools export net/deploy.prototxt net/snapshot_iter_240.caffemodel -o model.onnx",
]


def draw_pictures(folder: Path) -> None:
    """Draw 60 pictures each of circles, crosses and squares."""
    rng = np.random.default_rng(0)
    for name in ("circle", "cross", "square"):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            image = rng.integers(0, 70, (40, 40, 3), np.uint8)
            colour = [int(v) for v in rng.integers(120, 255, 3)]
            x, y = (int(v) for v in rng.integers(12, 28, 2))
            if name == "circle":
                cv2.circle(image, (x, y), 9, colour, -1)
            elif name == "square":
                cv2.rectangle(image, (x - 8, y - 8), (x + 8, y + 8), colour, -1)
            else:
                cv2.line(image, (x - 8, y - 8), (x + 8, y + 8), colour, 4)
                cv2.line(image, (x - 8, y + 8), (x + 8, y - 8), colour, 4)
            cv2.imwrite(str(folder / name / f"{number:03d}.png"), image)


def record() -> list[tuple[str, list[str]]]:
    """Run the commands and return each with the lines that it printed, those that are too wide shortened."""
    with tempfile.TemporaryDirectory() as place:
        draw_pictures(Path(place) / "pictures")
        environment = {**os.environ, "COLUMNS": str(COLUMNS), "NO_COLOR": "1"}
        session = []
        for command in COMMANDS:
            words = [sys.executable, "-m", *shlex.split(command)]
            done = subprocess.run(
                words, cwd=place, env=environment, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            lines = [line.rstrip().replace(f"{place}/", "") for line in done.stdout.splitlines() if line.strip()]
            session.append((command, [line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…" for line in lines]))
        return session


def picture(session: list[tuple[str, list[str]]]) -> str:
    """Return the SVG of a session: its lines appear one after the other, and older ones move up."""
    shown: list[tuple[str, str, float]] = []  # (kind, text, when it appears)
    now = 0.0
    for command, lines in session:
        now += PAUSE
        shown.append(("prompt", f"$ {command}", now))
        now += TYPING
        for line in lines:
            shown.append(("output", line, now))
            now += OUTPUT
    total = now + END
    width, height = MARGIN * 2 + COLUMNS * CHARACTER, BAR + MARGIN * 2 + LINES_SHOWN * LINE
    rules, texts = [], []
    for index, (kind, text, start) in enumerate(shown):
        rules.append(
            f"@keyframes l{index}{{0%,{100 * start / total:.2f}%{{opacity:0}}{100 * (start + 0.01) / total:.2f}%,100%{{opacity:1}}}}"
        )
        y = BAR + MARGIN + (index + 1) * LINE - 5
        texts.append(f'<text class="{kind}" x="{MARGIN}" y="{y}" style="animation-name:l{index}">{html.escape(text)}</text>')
    steps, moved = ["0%{transform:translateY(0)}"], 0
    for index, (_, _, start) in enumerate(shown):
        if index >= LINES_SHOWN:
            steps.append(f"{100 * start / total:.2f}%{{transform:translateY(-{moved}px)}}")
            moved += LINE
            steps.append(f"{100 * (start + 0.01) / total:.2f}%{{transform:translateY(-{moved}px)}}")
    steps.append(f"100%{{transform:translateY(-{moved}px)}}")
    words = html.escape("; ".join(command for command, _ in session))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="title">
<title id="title">A session in a terminal: {words}</title>
<style>
text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre;fill:#d8dee9;
animation-duration:{total:.1f}s;animation-iteration-count:infinite;animation-timing-function:linear}}
.prompt{{fill:#a3e0b0;font-weight:600}}
g.lines{{animation:move {total:.1f}s linear infinite}}
{chr(10).join(rules)}
@keyframes move{{{"".join(steps)}}}
@media (prefers-reduced-motion:reduce){{text,g.lines{{animation:none}}g.lines{{transform:translateY(-{moved}px)}}}}
</style>
<rect width="100%" height="100%" rx="10" fill="#1f2430"/>
<circle cx="20" cy="17" r="6" fill="#ff5f57"/><circle cx="40" cy="17" r="6" fill="#febc2e"/><circle cx="60" cy="17" r="6" fill="#28c840"/>
<svg x="0" y="{BAR}" width="{width:.0f}" height="{height - BAR - 6:.0f}" viewBox="0 {BAR} {width:.0f} {height - BAR - 6:.0f}">
<g class="lines">
{chr(10).join(texts)}
</g>
</svg>
</svg>
"""


if __name__ == "__main__":
    PICTURE.write_text(picture(record()), encoding="utf-8")
