"""The confusion matrix: its counts, what follows from them, and its picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from caffetools.errors import DataError
from caffetools.results import ClassScore, ConfusedPair, Confusion, share_text
from caffetools.visualize.confusion import confusion_figure, draw_confusion
from caffetools.visualize.style import DARK, LIGHT, shorten_all

TRUE = [0, 0, 0, 1, 1, 2, 2, 2]
GIVEN = [0, 0, 1, 1, 1, 0, 0, 2]
NAMES = ["cat", "dog", "emu", "fox"]


def test_counts_scores_and_pairs() -> None:
    confusion = Confusion.from_labels(TRUE, GIVEN, NAMES)
    assert confusion.counts.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]]
    assert (confusion.total, confusion.right, confusion.accuracy) == (8, 5, 5 / 8)
    assert confusion.scores()[0] == ClassScore("cat", 3, 2, 4)
    assert (confusion.scores()[2].accuracy, confusion.scores()[2].precision) == (1 / 3, 1.0)
    assert (confusion.scores()[3].accuracy, confusion.scores()[3].precision) == (None, None)
    assert confusion.most_confused() == [ConfusedPair("emu", "cat", 2, 2 / 3), ConfusedPair("cat", "dog", 1, 1 / 3)]
    assert confusion.most_confused(1) == [ConfusedPair("emu", "cat", 2, 2 / 3)]


def test_a_share_below_one_is_not_rounded_up_to_one() -> None:
    assert [share_text(share) for share in (1.0, 0.99996, 0.9994, 0.5, 0.0)] == ["100.0%", "99.9%", "99.9%", "50.0%", "0.0%"]
    assert [share_text(share, ".4f") for share in (1.0, 0.99999, 0.99994)] == ["1.0000", "0.9999", "0.9999"]
    almost = Confusion(np.array([[5000, 0], [1, 4999]]), ("cat", "dog"))
    assert confusion_figure(almost).axes[0].get_title(loc="left") == "9,999 of 10,000 right (99.9%)"


def test_the_numbers_are_those_of_scikit_learn() -> None:
    # Imported here, since it takes seconds and every worker imports all files of tests.
    from sklearn.metrics import confusion_matrix, precision_score, recall_score

    rng = np.random.default_rng(3)
    true, given = rng.integers(0, 7, 500), rng.integers(0, 7, 500)
    confusion = Confusion.from_labels(true, given, [str(i) for i in range(7)])
    np.testing.assert_array_equal(confusion.counts, confusion_matrix(true, given))
    np.testing.assert_allclose([s.accuracy for s in confusion.scores()], recall_score(true, given, average=None))
    np.testing.assert_allclose([s.precision for s in confusion.scores()], precision_score(true, given, average=None))


@pytest.mark.parametrize(
    ("true", "given", "message"),
    [
        ([0, 1], [0], "2 true labels, but 1 predicted"),
        ([], [], "no labels"),
        ([0, 4], [0, 0], "true label 1 is 4, but there are 4 classes, labelled 0 to 3"),
        ([0, 0], [-1, 0], "predicted label 0 is -1"),
        ([0.5, 0], [0, 0], "true label 0 is 0.5"),
        ([[0], [1]], [0, 0], "2 axes"),
    ],
)
def test_labels_that_cannot_be_are_refused(true: list[float], given: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Confusion.from_labels(true, given, NAMES)


def test_few_classes_are_written_and_named() -> None:
    figure = confusion_figure(Confusion.from_labels(TRUE, GIVEN, NAMES))
    axes = figure.axes[0]
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {
        ((0, 0), "2"), ((1, 0), "1"), ((1, 1), "2"), ((0, 2), "2"), ((2, 2), "1")
    }  # fmt: skip
    assert [t.get_text() for t in axes.get_yticklabels()] == NAMES
    assert axes.get_title(loc="left") == "5 of 8 right (62.5%)"


def test_colours_are_the_share_of_the_row() -> None:
    confusion = Confusion.from_labels([0] * 4 + [1] * 400, [0] * 4 + [1] * 100 + [0] * 300, ["a", "b"])
    for theme in (LIGHT, DARK):
        image = np.asarray(confusion_figure(confusion, theme=theme).axes[0].images[0].get_array())
        np.testing.assert_allclose(image[0, 0], to_rgb(theme.good), err_msg="all of the row: the full colour, few as they are")
        far = [np.abs(image[cell] - to_rgb(end)).sum() for cell, end in (((1, 1), theme.good), ((1, 0), theme.bad))]
        assert far[0] > far[1] > 0, "three quarters are stronger than one"


def test_many_classes_have_no_numbers_and_fewer_names() -> None:
    labels = np.arange(1000)
    confusion = Confusion.from_labels(labels, np.roll(labels, 1), [f"class number {i} with a long name" for i in labels])
    axes = confusion_figure(confusion).axes[0]
    assert not axes.texts
    assert len(axes.get_xticklabels()) == len(axes.get_yticklabels()) == 25
    assert axes.get_yticklabels()[1].get_text() == "class number 40 with a…"
    assert len(confusion.most_confused()) == 10


def test_each_cell_of_a_thousand_classes_can_be_seen(tmp_path: Path) -> None:
    counts = np.zeros((1000, 1000), np.int64)
    counts[np.arange(1000), np.arange(1000)] = 50
    counts[300, 700] = 1
    draw_confusion(Confusion(counts, tuple(map(str, range(1000)))), tmp_path / "big.png")
    picture = cv2.imread(str(tmp_path / "big.png")).astype(int)
    half = picture[:, picture.shape[1] // 2 :]  # the one mistake lies in the right half; its blue is weaker than its red
    assert ((half[..., 2] - half[..., 0]) > 40).any()


def test_odd_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    confusion = Confusion.from_labels([0, 1], [1, 1], ["$dollar$", "<b>\n日本"])
    draw_confusion(confusion, tmp_path / "odd.svg")
    text = (tmp_path / "odd.svg").read_text(encoding="utf-8")
    assert "$dollar$" in text and "&lt;b&gt; 日本" in text
    draw_confusion(confusion, tmp_path / "odd.png")
    with pytest.raises(DataError, match=r"\.png or \.svg"):
        draw_confusion(confusion, tmp_path / "odd.txt")


def test_cut_names_keep_the_words_in_which_they_differ() -> None:
    names = [f"species number {index:04d} with a longer name" for index in range(3)]
    assert shorten_all(names, 18) == ["…cies number 0000…", "…cies number 0001…", "…cies number 0002…"]
    assert shorten_all(["cat", "dog"], 18) == ["cat", "dog"]
    assert shorten_all(["n01440764 tench, Tinca tinca", "n01443537 goldfish, Carassius"], 18) == [
        "n01440764…ca tinca",
        "n01443537…arassius",
    ]
    assert shorten_all(["a" * 30, "a" * 30], 18) == ["a" * 9 + "…" + "a" * 8] * 2
