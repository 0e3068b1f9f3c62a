"""Bad input at the command line: one clear line that names the file and the place, exit code 2, and nothing left behind."""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from caffetools.data.folders import new_folder
from caffetools.solver.saving.lock import prefix_lock
from tests.cli.inprocess import below, error_of, run, run_well, usage_error_of
from tests.cli.materials import BAD_NETS, make_materials


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bad input")
    before = Path.cwd()
    os.chdir(folder)
    make_materials(folder)
    yield folder
    os.chdir(before)


def refused(materials: Path, line: str, words: str, code: int = 2) -> None:
    """``line`` ends with one line that has ``words``, and everything lies as it lay before."""
    before = below(materials)
    message = error_of(run(*shlex.split(line)), code)
    assert words in message
    after = below(materials)
    assert sorted(after) == sorted(before) and after == before


# What every command says of a net's file that is wrong.
NET_WORDS = {
    "typo": "ConvolutionParameter has no field 'num_ouput'; did you mean 'num_output'?",
    "brace": "is never closed",
    "missing": "layer 'ip': its bottom 'cnov' is made by no layer before it",
    "cycle": "layer 'conv': its bottom 'ip' is made only later, by layer 'ip': layers must stand in order, without a cycle",
    "unfit": "layer 'conv': (Convolution) kernel 30 x 30 does not fit its input",
    "word": "a whole number is expected, not four",
    "empty": "the file is empty",
}
RUN_WORDS = {
    **NET_WORDS,
    "unknown": "layer 'conv': unknown layer type 'Convolusion'; did you mean Convolution",
    "filler": "layer 'conv': (Convolution) unknown filler type 'xaver'; known are constant",
}


@pytest.mark.parametrize("name", NET_WORDS)
@pytest.mark.parametrize("line", ["inspect {}.prototxt", "deploy {}.prototxt -o out.prototxt"])
def test_a_bad_net_is_refused_by_what_reads_nets(materials: Path, line: str, name: str) -> None:
    refused(materials, line.format(name), NET_WORDS[name])


@pytest.mark.parametrize("name", sorted(NET_WORDS.keys() - {"empty"}))
def test_a_bad_net_is_not_retargeted(materials: Path, name: str) -> None:
    refused(materials, f"retarget {name}_train.prototxt --classes 3 -o out", NET_WORDS[name])


# Weights take a filler's place.
@pytest.mark.parametrize("name", sorted(RUN_WORDS.keys() - {"filler"}))
@pytest.mark.parametrize("line", ["classify {}.prototxt good.caffemodel good.png", "export {}.prototxt good.caffemodel -o out.onnx"])
def test_a_bad_net_is_not_run(materials: Path, line: str, name: str) -> None:
    refused(materials, line.format(name), RUN_WORDS[name])


@pytest.mark.parametrize("name", [*BAD_NETS, "brace"])
def test_a_bad_net_is_not_trained(materials: Path, name: str) -> None:
    before = below(materials)
    message = error_of(run("train", f"{name}_solver.prototxt", "--quiet", "--device", "cpu"))
    assert message.startswith(f"{name}_train.prototxt:") and RUN_WORDS[name] in message
    assert below(materials) == before


@pytest.mark.parametrize("name", sorted(NET_WORDS.keys() - {"empty"}))
def test_the_message_of_a_bad_net_begins_with_the_file_and_the_line(materials: Path, name: str) -> None:
    message = error_of(run("inspect", f"{name}.prototxt"))
    assert message.split(":")[0] == f"{name}.prototxt" and int(message.split(":")[1]) in range(3, 9)


def test_an_unknown_layer_type_is_told_of_where_the_net_is_only_looked_at(materials: Path) -> None:
    assert "unknown: conv: the type Convolusion is not known here; did you mean Convolution" in run_well("inspect", "unknown.prototxt").out


@pytest.mark.parametrize("line", ["deploy unknown_train.prototxt -o out", "retarget unknown_train.prototxt --classes 3 -o out"])
def test_an_unknown_layer_type_stays_in_a_net_that_is_rewritten_and_is_told_of(materials: Path, line: str) -> None:
    done = run_well(*shlex.split(line))
    assert re.fullmatch(
        r"caffetools: note: out\S*: layer 'conv': the type Convolusion is not known here; did you mean Convolution.*; it stays as it is\n",
        done.err,
    )
    out = materials / "out"
    shutil.rmtree(out) if out.is_dir() else out.unlink()


MODEL_WORDS = {
    "cut.caffemodel": "damaged or not a caffemodel: a field of",
    "empty.caffemodel": "the file is empty",
    "page.caffemodel": "this is a web page, and a caffemodel is expected",
    "zeros.caffemodel": "damaged or not a caffemodel: field number 0 is not valid",
    "noise.caffemodel": "damaged or not a caffemodel: ",
    "good.onnx": "this is an ONNX model, and a caffemodel is expected",
    "good.prototxt": "this is text, and a caffemodel is expected",
    "good.png": "this is a PNG picture, and a caffemodel is expected",
    "folder": "cannot read: Is a directory",
    "absent": "cannot read: No such file or directory",
}


@pytest.mark.parametrize("name", MODEL_WORDS)
@pytest.mark.parametrize(
    "line",
    [
        "inspect good.prototxt {}",
        "classify good.prototxt {} good.png",
        "export good.prototxt {} -o out.onnx",
        "train solver.prototxt --quiet --device cpu --weights {}",
        "test train.prototxt --json --weights {}",
        "retarget train.prototxt --classes 3 -o out --weights {}",
        "visualize filters {} -o out.png",
    ],
)
def test_bad_weights_are_refused_by_name(materials: Path, line: str, name: str) -> None:
    refused(materials, line.format(name), f"{name}: {MODEL_WORDS[name]}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("classify wide.prototxt good.caffemodel good.png", "wide.prototxt:3: layer 'conv': parameter blob 0 is 5 x 3 x 3 x 3 in the net"),
        ("export wide.prototxt good.caffemodel -o out.onnx", "4 x 3 x 3 x 3 in good.caffemodel; rename the layer"),
        ("test wide_train.prototxt -w good.caffemodel --json", "wide_train.prototxt:6: layer 'conv': parameter blob 0 is 5 x 3 x 3 x 3"),
        (
            "train wide_solver.prototxt -q -w good.caffemodel",
            "layer 'conv': parameter blob 0 is 5 x 3 x 3 x 3 in the net but 4 x 3 x 3 x 3",
        ),
        (
            "train wide_solver.prototxt -q -s good.solverstate",
            "good.solverstate: its history blob 0 has shape (4, 3, 3, 3), but this",
        ),
        ("retarget wide_train.prototxt --classes 3 -o out --weights good.caffemodel", "layer 'conv': its parameters are 5 x 3 x 3 x 3"),
        ("finetune pictures -o out --model wide_train.prototxt --size 8 --weights good.caffemodel", "wide_train.prototxt:6: layer 'conv'"),
    ],
)
def test_weights_of_another_shape_are_refused(materials: Path, line: str, words: str) -> None:
    refused(materials, line, words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "inspect solver.prototxt",
            "solver.prototxt:1:1: NetParameter has no field 'net'; this is a solver's prototxt, and a net's is",
        ),
        ("train train.prototxt", "train.prototxt:1:1: SolverParameter has no field 'name'; this is a net's prototxt, and a solver's is"),
        ("train good.caffemodel", "good.caffemodel: not a text file"),
        ("inspect good.caffemodel", "good.caffemodel: not a text file"),
        ("classify good.caffemodel good.prototxt good.png", "good.caffemodel: not a text file"),
        ("train solver.prototxt -q -s good.caffemodel", "a .solverstate is needed to go on with a run"),
        ("train solver.prototxt -q -s cut.solverstate", "cut.solverstate: "),
        ("train solver.prototxt -q -s absent", "absent: "),
        ("test good.prototxt -w good.caffemodel --json", "good.prototxt: no data layer fills the input 'data'"),
        ("export train.prototxt good.caffemodel -o out.onnx", "train.prototxt: the net reads its pictures itself"),
        ("classify train.prototxt good.caffemodel good.png", "train.prototxt: classifying needs a net with one input for pictures"),
        ("classify cut.onnx good.png", "cut.onnx: "),
        ("classify text.onnx good.png", "text.onnx: "),
        ("classify absent.onnx good.png", "absent.onnx: no such file"),
        ("visualize curves train.prototxt -o out.png", "train.prototxt: holds no lines of a training run"),
        ("visualize curves folder -o out.png", "folder: cannot read: Is a directory"),
        ("visualize filters good.caffemodel -o out.jpg", "out.jpg: pictures are written as .png or .svg"),
        ("visualize filters good.caffemodel -o out.png --layer absent", "good.caffemodel: no layer 'absent' with weights"),
        ("mean folder out.binaryproto", "folder: this folder is no database"),
        ("mean good.png out.binaryproto", "good.png: cannot be opened as an LMDB"),
        ("mean absent out.binaryproto", "absent: no such database"),
        ("retarget solver.prototxt --classes 3 -o out", "this is a solver's prototxt"),
        ("retarget good.prototxt --classes 3 -o out", "good.prototxt: the net 'small' has no loss"),
        ("retarget --model lent --classes 3 -o out", "'lent'"),
        ("retarget train.prototxt --classes 3 -o out --mean good.caffemodel", "good.caffemodel: "),
        ("retarget train.prototxt --classes 3 -o out --mean folder", "folder: no such mean file"),
        ("retarget train.prototxt --classes 3 -o out --train-source folder", "folder: this folder is no database"),
        ("finetune pictures -o out --model absent --from-scratch", "'absent'"),
        ("finetune pictures -o out --model solver.prototxt --from-scratch", "this is a solver's prototxt"),
        ("finetune pictures -o out --model good.caffemodel --from-scratch", "good.caffemodel: not a text file"),
        ("finetune pictures -o out --model train.prototxt --from-scratch", "train.prototxt: its data layers do not say how large"),
        ("finetune pictures -o out --model train.prototxt --size 8", "train.prototxt: give the weights to start from"),
        ("finetune pictures -o out --model lenet", "lenet has no published weights"),
        ("finetune pictures -o out --model lenet --weights absent", "absent: no such file"),
        ("finetune pictures -o out --model lenet --weights folder", "folder: a folder; a .caffemodel is expected"),
        ("finetune pictures -o out --model lenet --weights cut.caffemodel", "cut.caffemodel: damaged"),
        ("finetune pictures -o out --model lenet --weights good.caffemodel", "good.caffemodel has no layer of the net"),
        ("finetune absent -o out --model lenet --from-scratch", "absent: no such folder"),
        ("finetune good.png -o out --model lenet --from-scratch", "good.png: no such folder"),
        ("zoo show squeezenet", "did you mean 'squeezenet_v1.0'?"),
    ],
)
def test_one_file_given_as_another_is_told_apart(materials: Path, line: str, words: str) -> None:
    refused(materials, line, words)


@pytest.mark.parametrize("command", ["classify good.prototxt good.caffemodel {}", "classify good.onnx {}"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut.jpg", "truncated"),
        ("cut.png", "truncated"),
        ("zero.png", "the picture's file is empty"),
        ("words.png", "it is text"),
        ("good.caffemodel", "not a picture that OpenCV can decode"),
        ("absent.png", "No such file or directory"),
        ("folder", "the folder holds no pictures"),
        ("'*.gif'", "nothing matches this pattern"),
    ],
)
def test_bad_pictures_are_refused_by_name(materials: Path, command: str, name: str, words: str) -> None:
    refused(materials, command.format(name), words)


def test_pictures_of_16_bits_with_alpha_and_of_four_inks_are_classified(materials: Path) -> None:
    done = run_well("classify", "good.prototxt", "good.caffemodel", "deep.png", "alpha.png", "cmyk.jpg", "good.png")
    assert [line for line in done.out.splitlines() if not line.startswith(" ")] == ["deep.png", "alpha.png", "cmyk.jpg", "good.png"]


def test_the_good_pictures_are_classified_beside_a_bad_one(materials: Path) -> None:
    done = run("classify", "good.prototxt", "good.caffemodel", "good.png", "zero.png")
    assert done.code == 2 and "good.png" in done.out
    assert done.err.splitlines() == [
        "caffetools: error: zero.png: the picture's file is empty (0 bytes)",
        "caffetools: 1 of 2 pictures could not be read",
    ]


@pytest.mark.parametrize("line", ["dataset build {} out --size 8", "finetune {} -o out --model lenet --from-scratch --epochs 1"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "none: there are no class folders in it"),
        ("one", "one: there is only one class, 'only'"),
        ("hollow", "hollow/c: the class 'c' has no pictures"),
    ],
)
def test_folders_that_make_no_classes_are_refused(materials: Path, line: str, name: str, words: str) -> None:
    refused(materials, line.format(name), words)


@pytest.mark.parametrize(("kind", "words"), [("zero", "is empty"), ("words", "it is text"), ("cut", "truncated")])
def test_a_class_of_which_no_picture_can_be_used_is_named(materials: Path, kind: str, words: str) -> None:
    refused(
        materials, f"dataset build all_{kind} out --size 8", f"all_{kind}/b/0.png: none of the 1 picture(s) of the class 'b' can be used"
    )
    done = run("finetune", f"all_{kind}", "-o", "out", "--model", "lenet", "--from-scratch", "--epochs", 1)
    assert done.code == 2 and words in done.err and not (materials / "out").exists()


def test_class_names_may_have_spaces_and_be_of_any_script(materials: Path) -> None:
    assert (materials / "data" / "labels.txt").read_text(encoding="utf-8").splitlines() == ["a b", "große Hunde"]


# Options with values that cannot be: what the message has.
OPTIONS = [
    ("retarget train.prototxt -o out --classes 0", "0 class(es)"),
    ("retarget train.prototxt -o out --classes -3", "-3 class(es)"),
    ("retarget train.prototxt -o out --classes 99999999999", "more than a net can hold"),
    ("retarget train.prototxt -o out --classes 3 --base-lr -1", "the learning rate must be above 0"),
    ("retarget train.prototxt -o out --classes 3 --train-batch 99999999999", "--train-batch must be from 1 to"),
    ("retarget train.prototxt -o out --classes 3 --head absent", "train.prototxt: the net 'small' has no layer 'absent'"),
    ("retarget train.prototxt -o out --classes 3 --input-shape 1x3x", "'1x3x' is no shape"),
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
    ("finetune pictures -o out --model lenet --from-scratch --val 1", "--val 1: the share of held-out pictures"),
    ("finetune pictures -o out --model lenet --from-scratch --mean 1,2", "--mean 1,2: 2 values for pictures of 1 channel"),
    ("finetune pictures -o out --model lenet --from-scratch --mean absent", "absent: no such mean file"),
    ("finetune pictures -o out --model lenet --from-scratch --mean good.png", "good.png: this is a PNG picture"),
    ("finetune pictures -o out --model lenet --from-scratch --mean data/mean.binaryproto", "data/mean.binaryproto: a mean of 3 x 8 x 8"),
    ("finetune pictures -o out --model lenet --from-scratch --seed 99999999999999999999", "--seed must be from 0 to"),
    ("finetune pictures -o out --model lenet --from-scratch --device tpu", "unknown device 'tpu'"),
    (
        "finetune pictures -o out --model lenet --from-scratch --weights good.caffemodel",
        "give either --weights to start from or --from-scr",
    ),
    ("demo -o out --device tpu", "unknown device 'tpu'"),
    ("dataset build pictures out --val 0", "the share of validation pictures must lie between 0 and 1"),
    ("dataset build pictures out --size 0x5", "size 0x5 is impossible"),
    ("dataset build pictures out --seed -1", "the seed must be 0 or more"),
    ("dataset build pictures pictures/out", "pictures/out lies inside of the pictures' folder"),
    ("deploy train.prototxt -o out --input-shape 1x3x2x2", "train.prototxt:6: layer 'conv': (Convolution) kernel 3 x 3 does not fit"),
    ("deploy train.prototxt -o out --batch 99999999999", "a batch of 99999999999 is not possible"),
    ("inspect good.prototxt --input-shape 1x3x-4x8", "'1x3x-4x8' is no shape"),
    ("inspect good.prototxt --input-shape other=1x3x8x8", "the net 'small' has no input 'other'"),
    ("train solver.prototxt -q --max-iter -1", "max_iter must be from 0"),
    ("train solver.prototxt -q --device tpu", "unknown device 'tpu'"),
    ("test train.prototxt -w good.caffemodel -n 0 --json", "iterations must be at least 1"),
    ("classify good.prototxt good.caffemodel good.png --labels absent", "absent: cannot read the labels"),
    ("classify good.prototxt good.caffemodel good.png --labels folder", "folder: cannot read the labels: Is a directory"),
    ("classify good.prototxt good.caffemodel good.png --labels labels3.txt", "labels3.txt: there are 3 labels, but the net has 2 classes"),
    ("classify good.prototxt good.caffemodel good.png --labels labels0.txt", "labels0.txt: the file is empty"),
    ("classify good.prototxt good.caffemodel good.png --labels good.png", "good.png: not a UTF-8 text file"),
    ("classify good.prototxt good.caffemodel good.png --mean 1,2", "the mean has 2 values, but the net's input has 3 channel(s)"),
    ("classify good.prototxt good.caffemodel good.png --mean folder", "folder: cannot read: Is a directory"),
    ("classify good.prototxt good.caffemodel good.png --mean good.caffemodel", "good.caffemodel: damaged or not a binaryproto"),
    ("classify good.prototxt good.caffemodel good.png --resize 4", "pictures resized to 4x4 are smaller than the net's input of 8x8"),
    ("classify good.prototxt good.caffemodel good.png --scale 0", "the scale 0 leaves nothing of a picture"),
    ("classify good.prototxt good.caffemodel good.png --engine caffe", "unknown engine 'caffe'"),
    ("classify good.prototxt good.caffemodel good.png --output absent", "has no output 'absent'"),
    ("export good.prototxt good.caffemodel -o out --labels labels3.txt", "labels3.txt: there are 3 labels, but the net's outputs have 2"),
    ("export good.prototxt good.caffemodel -o out --scale nan", "the scale nan leaves nothing"),
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
        ("test_iter: -1", "every test_iter must be above 0"),
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
        ("dataset build pictures data", "data already exists"),
        ("dataset build pictures folder --force", "folder is not something that --force may replace"),
        ("dataset build pictures data/train_lmdb --force", "data/train_lmdb is not something that --force may replace"),
        ("finetune pictures -o data --model lenet --from-scratch", "data holds other files"),
        ("finetune pictures -o good.png --model lenet --from-scratch", "good.png is a file; choose a folder for the run"),
        ("demo -o pictures", "pictures holds files that are not the demo's"),
        ("demo -o good.png", "good.png is a file; choose a folder for the demo"),
        ("deploy train.prototxt -o good.png", "good.png exists; give another name"),
    ],
)
def test_what_is_there_is_not_written_over(materials: Path, line: str, words: str) -> None:
    refused(materials, line, words)


@pytest.mark.parametrize("place", ["good.png/out", "/proc/caffetools/out"])
@pytest.mark.parametrize(
    "line",
    [
        "dataset build pictures {} --size 8",
        "mean data/train_lmdb {}",
        "retarget train.prototxt --classes 3 -o {}",
        "deploy train.prototxt -o {}",
        "export good.prototxt good.caffemodel -o {}",
        "visualize filters good.caffemodel -o {}.png",
        "train solver.prototxt -q --device cpu --log {}",
        "finetune pictures -o {} --model lenet --from-scratch",
        "demo -o {}",
        "zoo fetch squeezenet_v1.1 --to {}",
    ],
)
def test_a_place_that_cannot_be_written_to_is_a_failure_that_names_it(materials: Path, line: str, place: str) -> None:
    refused(materials, line.format(place), place, code=1)


@pytest.mark.parametrize(
    "line", ["mean data/train_lmdb folder", "deploy train.prototxt --force -o folder", "export good.prototxt good.caffemodel -o folder"]
)
def test_a_folder_where_a_file_is_to_be_written_is_left_alone(materials: Path, line: str) -> None:
    refused(materials, line, "cannot write folder: Is a directory; nothing was changed there", code=1)


@pytest.mark.parametrize(
    "line",
    [
        "dataset build pictures out --size 64",
        "mean data/train_lmdb out",
        "retarget train.prototxt --classes 3 -o out",
        "deploy train.prototxt -o out",
        "export good.prototxt good.caffemodel -o out",
        "visualize filters good.caffemodel -o out.png",
        "train solver.prototxt -q --device cpu",
        "finetune pictures -o out --model lenet --from-scratch --epochs 1 --json",
    ],
)
def test_a_disk_that_fills_up_is_a_failure_that_leaves_nothing_half_written(materials: Path, line: str) -> None:
    before = below(materials)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so that writing past the limit fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        done = run(*shlex.split(line))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = error_of(done, 1)
    assert "cannot write" in message and ("out" in message or "run/small" in message)
    changed = {path for path, content in below(materials).items() if before.get(path) != content}
    # A log that ends early tells what happened.
    assert {path for path in changed if not path.startswith("run/small")} <= {"run"}
    for path in changed:
        if (materials / path).is_file():
            (materials / path).unlink()


def test_a_full_disk_is_a_failure_and_the_device_stays_what_it_is(materials: Path) -> None:
    refused(materials, "mean data/train_lmdb /dev/full", "cannot write /dev/full: No space left on device", code=1)
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("inspect", "Usage"),
        ("absent", "No such command 'absent'"),
        ("inspect good.prototxt --absent", "No such option: --absent"),
        ("inspect good.prototxt --phase deploy", "'deploy' is neither train nor test"),
        ("dataset build pictures", "Missing argument 'OUT'"),
        ("deploy train.prototxt", "Missing option '--out'"),
        ("finetune pictures -o out --classes many", "'many' is neither a number nor 'auto'"),
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
        assert done.code == 2 and words in done.out + done.err
    else:
        assert words in usage_error_of(done)
    assert below(materials) == before


def test_a_second_run_in_the_same_folder_is_refused(materials: Path) -> None:
    with prefix_lock("run/small"):
        refused(materials, "train solver.prototxt -q --device cpu", "is writing snapshots named run/small_iter_")
    (materials / "busy").mkdir()
    try:
        with prefix_lock("busy/run"):
            line = "finetune pictures -o busy --model lenet --from-scratch"
            refused(materials, line, "is at work in busy; wait for it, stop it, or choose another folder (-o)")
        with new_folder("busy/data"):
            refused(materials, "dataset build pictures busy/data", "is writing busy/data; wait for it or stop it")
    finally:
        shutil.rmtree(materials / "busy")


def test_a_process_ends_so_too(materials: Path) -> None:
    command = [sys.executable, "-m", "caffetools", "inspect", "typo.prototxt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"caffetools: error: typo.prototxt:4:23: {NET_WORDS['typo']}\n"
