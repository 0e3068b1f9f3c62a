"""Options, solver settings and lines that cannot be: one clear line, exit code 2, and nothing left behind."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.cli.inprocess import below, refused, run, usage_error_of

# Options with values that cannot be: what the message has.
OPTIONS = [
    ("retarget train.prototxt -o out --classes 0", "0 class(es)"),
    ("retarget train.prototxt -o out --classes -3", "-3 class(es)"),
    ("retarget train.prototxt -o out --classes 99999999999", "more than a net can hold"),
    ("retarget train.prototxt -o out --classes 3 --base-lr -1", "the learning rate must be above 0"),
    ("retarget train.prototxt -o out --classes 3 --train-batch 99999999999", "--train-batch must be from 1 to"),
    ("retarget train.prototxt -o out --classes 3 --head absent", "train.prototxt: the net 'small' has no layer 'absent'"),
    ("retarget train.prototxt -o out --classes 3 --input-shape 1x3x", "'1x3x' is not a shape"),
    ("retarget train.prototxt -o out --classes 3 --input-shape 1x3x2x2", "layer 'conv': (Convolution) kernel 3 x 3 does not fit"),
    (
        "finetune pictures -o out --model lenet --from-scratch --classes 0",
        "--classes 0, but pictures has 2 folders of pictures: a b, große Hu",
    ),
    ("finetune pictures -o out --model lenet --from-scratch --classes 3", "--classes 3, but pictures has 2"),
    ("finetune pictures -o out --model lenet --from-scratch --batch 999", "--batch 999 is more than all 8 pictures"),
    ("finetune pictures -o out --model lenet --from-scratch --size big", "size 'big' is not understood"),
    ("finetune pictures -o out --model lenet --from-scratch --size -4", "size '-4' is not understood"),
    ("finetune pictures -o out --model lenet --from-scratch --size 20 --crop 28", "squares of 28 x 28 cannot be cut out of pictures of 20"),
    ("finetune pictures -o out --model lenet --from-scratch --val 1", "--val 1: the fraction of held-out pictures"),
    ("finetune pictures -o out --model lenet --from-scratch --mean 1,2", "--mean 1,2: 2 values for pictures of 1 channel"),
    ("finetune pictures -o out --model lenet --from-scratch --mean absent", "absent: no such mean file"),
    ("finetune pictures -o out --model lenet --from-scratch --mean good.png", "good.png: this is a PNG picture"),
    ("finetune pictures -o out --model lenet --from-scratch --mean data/mean.binaryproto", "data/mean.binaryproto: a mean of 3 x 8 x 8"),
    (
        "finetune pictures -o out --model lenet --from-scratch --seed 99999999999999999999",
        "'--seed': 99999999999999999999 is beyond 64 bits",
    ),
    ("finetune pictures -o out --model lenet --from-scratch --device tpu", "unknown device 'tpu'"),
    (
        "finetune pictures -o out --model lenet --from-scratch --weights good.caffemodel",
        "give either --weights to start from or --from-scr",
    ),
    ("demo -o out --device tpu", "unknown device 'tpu'"),
    ("dataset build pictures out --val 0", "the share of validation pictures must be between 0 and 1"),
    ("dataset build pictures out --size 0x5", "size 0x5 is impossible"),
    ("dataset build pictures out --seed -1", "'--seed': it must be greater than or equal to 0"),
    ("dataset build pictures pictures/out", "pictures/out is inside of the pictures' folder"),
    ("deploy train.prototxt -o out --input-shape 1x3x2x2", "train.prototxt:6: layer 'conv': (Convolution) kernel 3 x 3 does not fit"),
    ("deploy train.prototxt -o out --batch 99999999999", "a batch of 99999999999 is not possible"),
    ("inspect good.prototxt --input-shape 1x3x-4x8", "'1x3x-4x8' is not a shape"),
    ("inspect good.prototxt --input-shape other=1x3x8x8", "the net 'small' has no input 'other'"),
    ("train solver.prototxt -q --max-iter -1", "max_iter must be from 0"),
    ("train solver.prototxt -q --device tpu", "unknown device 'tpu'"),
    ("test train.prototxt -w good.caffemodel -n 0 --json", "iterations must be at least 1"),
    ("classify good.prototxt good.caffemodel good.png --labels absent", "absent: cannot read the labels"),
    ("classify good.prototxt good.caffemodel good.png --labels folder", "folder: cannot read the labels: Is a directory"),
    ("classify good.prototxt good.caffemodel good.png --labels labels3.txt", "labels3.txt: there are 3 labels, but the net has 2 classes"),
    ("classify good.prototxt good.caffemodel good.png --labels labels0.txt", "labels0.txt: the file is empty"),
    ("classify good.prototxt good.caffemodel good.png --labels good.png", "good.png: this is a PNG picture"),
    ("classify good.prototxt good.caffemodel good.png --mean 1,2", "the mean has 2 values, but the net's input has 3 channel(s)"),
    ("classify good.prototxt good.caffemodel good.png --mean folder", "folder: cannot read: Is a directory"),
    (
        "classify good.prototxt good.caffemodel good.png --mean good.caffemodel",
        "good.caffemodel: this is a .caffemodel (weights), and a binaryproto is expected",
    ),
    ("classify good.prototxt good.caffemodel good.png --resize 4", "pictures resized to 4x4 are smaller than the net's input of 8x8"),
    ("classify good.prototxt good.caffemodel good.png --scale 0", "the scale must be a finite number other than 0"),
    ("classify good.prototxt good.caffemodel good.png --engine caffe", "caffetools engine add caffe"),
    ("classify good.prototxt good.caffemodel good.png --output absent", "has no output 'absent'"),
    ("export good.prototxt good.caffemodel -o out --labels labels3.txt", "labels3.txt: there are 3 labels, but the net's outputs have 2"),
    ("export good.prototxt good.caffemodel -o out --scale nan", "the scale must be a finite number other than 0"),
    ("export good.prototxt good.caffemodel -o out --pictures zero.png", "zero.png: the picture's file is empty"),
]


@pytest.mark.parametrize(("line", "words"), OPTIONS)
def test_options_that_cannot_be_are_refused(materials: Path, line: str, words: str) -> None:
    refused(materials, line, words)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("base_lr: -1", "base_lr must be at least 0, not -1"),
        ("max_iter: -2", "max_iter must be at least 0, not -2"),
        ("momentum: -0.9", "momentum must be at least 0, not -0.9"),
        ("lr_policy: 'cosine'", "unknown lr_policy 'cosine'"),
        ("type: 'SGDX'", "unknown type 'SGDX'"),
        ("net: 'absent.prototxt'", "absent.prototxt: cannot read"),
        ("test_iter: -1", "every test_iter must be at least 0"),
    ],
)
def test_bad_settings_of_a_solver_are_refused(materials: Path, field: str, words: str) -> None:
    kept = [line for line in (materials / "solver.prototxt").read_text().splitlines() if line.split(":")[0] != field.split(":")[0]]
    bad = materials / "bad_solver.prototxt"
    bad.write_text("\n".join([*kept, field]))
    try:
        refused(materials, "train bad_solver.prototxt -q --device cpu", words)
    finally:
        bad.unlink()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("inspect", "Usage"),
        ("absent", "there is no command 'absent'"),
        ("inspect good.prototxt --absent", "inspect: there is no option --absent"),
        ("inspect good.prototxt --phase deploy", "'deploy' is neither train nor test"),
        ("dataset build pictures", "dataset build: missing argument OUT"),
        ("deploy train.prototxt", "deploy: missing option --out (-o); example: caffetools deploy train_val.prototxt -o deploy.prototxt"),
        ("finetune pictures -o out --classes many", "invalid value for '--classes'"),
        ("finetune pictures -o out --epochs 0", "--epochs"),
        ("classify good.prototxt good.caffemodel", "needs the .caffemodel and at least one picture"),
        ("classify good.prototxt good.caffemodel good.png --top 0", "--top"),
        ("export good.prototxt good.caffemodel -o out --batch -1", "'-1' is neither a number"),
        ("export good.prototxt good.caffemodel -o out --opset 5", "--opset"),
        ("dataset build pictures out --val x", "--val"),
    ],
)
def test_a_line_that_cannot_be_understood_is_a_usage_error(materials: Path, line: str, words: str) -> None:
    before = below(materials)
    done = run(*shlex.split(line))
    if line == "inspect":
        assert done.returncode == 2 and words in done.stdout + done.stderr
    else:
        assert words in usage_error_of(done)
    assert below(materials) == before
