"""Write docs/models.md, the page of the zoo's models, from the cards: python docs/make_models.py (a test compares them)."""

from __future__ import annotations

from pathlib import Path

from caffetools.cli.show import shortened
from caffetools.graph.summary import summarize
from caffetools.proto.text import read_net
from caffetools.zoo.cards import ModelCard, get_card, list_models
from caffetools.zoo.names import short_name

PAGE = Path(__file__).resolve().parent / "models.md"

HEAD = """# Models

`classify`, `retarget`, `train --weights`, `finetune`, `export`, `visualize` and `inspect` take a model's name. Case, dashes, underscores
and dots do not matter. The prototxts are part of caffetools; weights are fetched from their publisher on first use, checked, and kept in
the cache folder (`caffetools doctor` shows it). A mirror of your own is given by the environment variable `CAFFETOOLS_ZOO_MIRROR`.

```
caffetools zoo list
caffetools zoo show resnet50
caffetools zoo copy squeezenet_v1.1 net
```

Parameters and multiply–accumulates (MACs) are counted by caffetools for one image of the stated size. Accuracies are those that the
publishers state for the validation set of ILSVRC 2012, one central crop unless the source says otherwise; none is measured here.
Generated from the cards in `zoo/` by `python docs/make_models.py`.
"""
TABLE = ["| model | input | parameters | MACs | top-1 % | top-5 % | licence of the weights |", "|---|---|---|---|---|---|---|"]


def page() -> str:
    """Return the text of docs/models.md."""
    cards = [get_card(name) for name in list_models()]
    return "\n".join([HEAD, *table(cards), "", *map(_section, cards)]).rstrip() + "\n"


def table(cards: list[ModelCard]) -> list[str]:
    """Return the lines of the table of models; parameters and MACs are counted from the deploy nets."""
    lines = list(TABLE)
    for card in sorted(cards, key=lambda card: short_name(card.name)):
        summary = summarize(read_net(card.network("deploy")), shapes={"": (1, *card.input.shape)})
        accuracy = card.accuracy
        top = [f"{value:.1f}" if value else "–" for value in ((accuracy.top1, accuracy.top5) if accuracy else (None, None))]
        size = "\u00a0x\u00a0".join(map(str, card.input.shape))  # A size has one line in a narrow table.
        lines.append(
            f"| `{short_name(card.name)}` | {size} | {shortened(summary.parameters)} | {shortened(summary.macs)} "
            f"| {top[0]} | {top[1]} | {card.licence} |"
        )
    return lines


def _section(card: ModelCard) -> str:
    weights, accuracy = card.weights, card.accuracy
    rows = [("name in files", f"`{card.name}`"), ("publisher", f"<{card.page}>" if card.page else "–")]
    if card.paper:
        rows.append(("paper", f"<{card.paper}>"))
    if weights is None:
        rows.append(("weights", card.no_weights or "none published"))
    else:
        rows.append(
            ("weights", f"`{weights.file}`, {weights.megabytes:g} MB; checked against {', '.join(weights.checksums) or 'its format'}")
        )
    mean = ", ".join(f"{value:g}" for value in card.input.mean)
    rows.append(("input", f"{card.input.channel_order}, 0 to {card.input.raw_scale:g}, minus {mean}, times {card.input.scale:g}"))
    if accuracy and accuracy.source:
        rows.append(("accuracy from", accuracy.source))
    return "\n".join(
        [f"## {card.title}", "", card.about, "", "| property | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
