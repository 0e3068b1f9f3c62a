"""The quick reader of prototxt's common form gives what protobuf's parser gives, or leaves the text to it."""

from __future__ import annotations

import random

import pytest
from google.protobuf import text_format

from caffetools.proto.plain_text import merge_plain
from caffetools.proto.schema import Message, NetParameter, SolverParameter
from caffetools.zoo.networks import prototxt_path

FOLDER = prototxt_path("lenet", "train_val").parents[1]
FILES = sorted(FOLDER.rglob("*.prototxt"))


def same_as_protobuf(text: str, plain: Message, other: Message) -> bool:
    """Return whether the text has the common form; then both readers must give the same message."""
    if not merge_plain(text, plain):
        return False
    text_format.Parse(text, other)
    assert plain.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True), text
    return True


def is_read(text: str) -> bool:
    return same_as_protobuf(text, NetParameter(), NetParameter()) or same_as_protobuf(text, SolverParameter(), SolverParameter())


def test_our_own_networks_have_the_common_form() -> None:
    texts = [path.read_text() for path in FILES if path.stat().st_size < 100_000]
    assert len(texts) > 10
    assert all(map(is_read, texts))


def test_damaged_texts_are_read_as_protobuf_reads_them_or_left_to_it() -> None:
    random_numbers = random.Random(5)
    texts = [path.read_text() for path in FILES if path.stat().st_size < 6_000]
    read = 0
    for _ in range(2_000):
        text = random_numbers.choice(texts)
        place, other = random_numbers.randrange(len(text)), random_numbers.randrange(len(text))
        how = random_numbers.randrange(3)
        if how == 0:
            text = text[:place] + random_numbers.choice("{}:;,\"'#\\<>[]-+.01ex \n\xa0té") + text[place:]
        elif how == 1:
            text = text[:place] + text[place + random_numbers.randint(1, 3) :]
        else:
            text = text[:place] + text[other : other + random_numbers.randint(1, 30)] + text[place:]
        read += is_read(text)
    assert 100 < read < 1_950


@pytest.mark.parametrize(
    "text",
    [
        "name: 'a'",
        'name: "ä # no comment"  # one',
        "layer { top: 'a' top: 'b' } layer: { } ;",
        "layer { convolution_param { pad: 1, kernel_size: 3; bias_term: false } }",
        "layer { loss_weight: -1.5e-3 loss_weight: .5 loss_weight: 2. loss_weight: 1e60 phase: TEST }",
        "#\n# only\n",
    ],
)
def test_what_has_the_common_form(text: str) -> None:
    assert same_as_protobuf(text, NetParameter(), NetParameter())


@pytest.mark.parametrize(
    "text",
    [
        'name: "a" "b"',
        'name: "a\\n"',
        "name: a",
        'name: "a" name: "b"',
        "name: '\udc80'",
        "layer {",
        "layer { } }",
        "layer < >",
        "layer: 3",
        "layer { loss_weight: 01 }",
        "layer { loss_weight: 1_0 }",
        "layer { loss_weight: 1f }",
        "layer { loss_weight: inf }",
        "layer { loss_weight: - 1 }",
        "layer { loss_weight: [1, 2] }",
        "layer { phase: 1 }",
        "layer { phase: Test }",
        "layer { input_param { } input_param { } }",
        "layer { input_param { shape { dim: 99999999999999999999 } } }",
        "layer { convolution_param { pad: -1 } }",
        "layer { convolution_param { pad: 3kernel_size: 3 } }",
        "layer { convolution_param { pad: 010 } }",
        "layer { convolution_param { pad: '1' } }",
        "layer { convolution_param { bias_term: 1 } }",
        "layer { no_such_field: 1 }",
        "; layer { }",
    ],
)
def test_what_is_left_to_protobuf(text: str) -> None:
    assert not merge_plain(text, NetParameter())
