"""Bad nets and weights, and one kind of file given as another: one clear line, exit code 2, and nothing left behind."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.inprocess import below, error_of, refused, run, run_well
from tests.cli.materials import BAD_NETS

# Every command's error about a net's file that is wrong.
NET_WORDS = {
    "typo": "ConvolutionParameter has no field 'num_ouput'; did you mean 'num_output'?",
    "brace": "is never closed",
    "missing": "layer 'ip': its bottom 'cnov' is made by no layer before it",
    "cycle": "layer 'conv': its bottom 'ip' is produced only later, by layer 'ip': list the layers in the order in which they run, without a cycle",
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


def test_an_unknown_layer_type_is_reported_where_the_net_is_only_looked_at(materials: Path) -> None:
    assert (
        "unknown: conv: the type Convolusion is not known here; did you mean Convolution" in run_well("inspect", "unknown.prototxt").stdout
    )


@pytest.mark.parametrize("line", ["deploy unknown_train.prototxt -o out", "retarget unknown_train.prototxt --classes 3 -o out"])
def test_an_unknown_layer_type_is_kept_in_a_net_that_is_rewritten_and_is_reported(materials: Path, line: str) -> None:
    done = run_well(*shlex.split(line))
    assert re.fullmatch(
        r"caffetools: note: out\S*: layer 'conv': the type Convolusion is not known here; did you mean Convolution.*; it is left unchanged\n",
        done.stderr,
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
    "good.prototxt": "this is a net's prototxt, and a caffemodel is expected",
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
        ("train good.caffemodel", "good.caffemodel: this is a .caffemodel (weights), and a prototxt is expected"),
        ("inspect good.caffemodel", "good.caffemodel: this is a .caffemodel (weights), and a prototxt is expected"),
        ("classify good.caffemodel good.prototxt good.png", "good.caffemodel: this is a .caffemodel (weights), and a prototxt is expected"),
        ("train solver.prototxt -q -s good.caffemodel", "a .solverstate is needed to resume a run"),
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
        ("visualize filters good.caffemodel -o out.jpg", "out.jpg: pictures are written as .png, .svg or .html"),
        ("visualize deepdream good.prototxt good.caffemodel good.png --blob ip -o out.svg", "out.svg: this is written as .png"),
        ("visualize filters good.caffemodel -o out.png --layer absent", "good.caffemodel: no layer 'absent' with weights"),
        ("mean folder out.binaryproto", "folder: this folder is not a database"),
        ("mean good.png out.binaryproto", "good.png: this is a PNG picture, and a database (the folder of an LMDB or LevelDB) is expected"),
        (
            "mean solver.prototxt out.binaryproto",
            "solver.prototxt: this is a solver's prototxt, and a database (the folder of an LMDB or LevelDB) is expected",
        ),
        ("mean empty.caffemodel out.binaryproto", "empty.caffemodel: the file is empty"),
        ("dataset inspect good.caffemodel", "good.caffemodel: this is a .caffemodel (weights), and a database"),
        ("convert-imageset ./ good.caffemodel out", "good.caffemodel: this is a .caffemodel (weights), and a list of pictures"),
        ("convert-imageset ./ page.caffemodel out", "page.caffemodel: this is a web page, and a list of pictures"),
        (
            "dataset build good.png out",
            "good.png: this is a PNG picture, and a list of pictures (a path and a label on each line) is expected",
        ),
        ("convert-mnist-data good.png good.png out", "good.png: this is a PNG picture, and an idx file of images is expected"),
        ("train solver.prototxt -q -s solver.prototxt", "solver.prototxt: this is a solver's prototxt, and a .solverstate is expected"),
        (
            "classify good.prototxt good.caffemodel good.png --mean good.solverstate",
            "good.solverstate: this is a solver state (iteration 2)",
        ),
        ("retarget train.prototxt --classes 3 -o out --mean good.solverstate", "good.solverstate: this is a solver state (iteration 2)"),
        ("run good.caffemodel", "good.caffemodel: this is a .caffemodel (weights), and a Python script or a notebook is expected"),
        ("run solver.prototxt", "solver.prototxt: this is a solver's prototxt, and a Python script or a notebook is expected"),
        ("run folder", "folder: this is a folder, and a Python script or a notebook is expected"),
        ("time good.caffemodel", "good.caffemodel: this is a .caffemodel (weights), and a prototxt is expected"),
        ("classify good.prototxt data good.png", "data: cannot read: Is a directory; give a file in it, such as data/mean.binaryproto"),
        ("mean absent out.binaryproto", "absent: no such database"),
        ("retarget solver.prototxt --classes 3 -o out", "this is a solver's prototxt"),
        ("retarget good.prototxt --classes 3 -o out", "good.prototxt: the net 'small' has no loss"),
        ("retarget --model lent --classes 3 -o out", "'lent'"),
        ("retarget train.prototxt --classes 3 -o out --mean good.caffemodel", "good.caffemodel: "),
        ("retarget train.prototxt --classes 3 -o out --mean folder", "folder: this is a folder, and a mean file is expected"),
        ("retarget train.prototxt --classes 3 -o out --train-source folder", "folder: this folder is not a database"),
        ("finetune pictures -o out --model absent --from-scratch", "'absent'"),
        ("finetune pictures -o out --model solver.prototxt --from-scratch", "this is a solver's prototxt"),
        (
            "finetune pictures -o out --model good.caffemodel --from-scratch",
            "good.caffemodel: this is a .caffemodel (weights), and a prototxt is expected",
        ),
        ("finetune pictures -o out --model train.prototxt --from-scratch", "train.prototxt: its data layers do not give the size"),
        ("finetune pictures -o out --model train.prototxt --size 8", "train.prototxt: give the weights to start from"),
        ("finetune pictures -o out --model lenet", "lenet has no published weights"),
        ("finetune pictures -o out --model lenet --weights absent", "absent: no such file"),
        ("finetune pictures -o out --model lenet --weights folder", "folder: a folder; a .caffemodel is expected"),
        ("finetune pictures -o out --model lenet --weights cut.caffemodel", "cut.caffemodel: damaged"),
        ("finetune pictures -o out --model lenet --weights good.caffemodel", "good.caffemodel has no layer of the net"),
        ("finetune absent -o out --model lenet --from-scratch", "absent: no such folder"),
        (
            "finetune good.png -o out --model lenet --from-scratch",
            "good.png: this is a PNG picture, and a folder with a folder of pictures",
        ),
        ("zoo show squeezenot", "did you mean 'squeezenet"),
    ],
)
def test_one_file_given_as_another_is_distinguished(materials: Path, line: str, words: str) -> None:
    refused(materials, line, words)


def test_a_process_ends_so_too(materials: Path) -> None:
    command = [sys.executable, "-m", "caffetools", "inspect", "typo.prototxt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"caffetools: error: typo.prototxt:4:23: {NET_WORDS['typo']}\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "this is a Git LFS pointer, not the file itself"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "this is a video"),
    ],
)
def test_a_model_of_another_kind_is_named_before_what_is_missing_after_it(materials: Path, content: bytes, words: str) -> None:
    (materials / "other").write_bytes(content)
    try:
        refused(materials, "classify other good.png", f"other: {words}, and a deploy prototxt or an ONNX model is expected")
    finally:
        (materials / "other").unlink()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("classify good.prototxt good.caffemodel --list other", "other: this is not text, and a list of pictures"),
        (
            "classify good.prototxt good.caffemodel good.png --labels other",
            "other: not a UTF-8 text file; one class name a line is expected",
        ),
        ("convert-imageset ./ other out", "other: this is not text, and a list of pictures"),
    ],
)
def test_bytes_that_are_no_text_are_no_list_and_no_labels(materials: Path, line: str, words: str) -> None:
    (materials / "other").write_bytes(b"a 0\0\x01\0b\n")
    try:
        refused(materials, line, words)
    finally:
        (materials / "other").unlink()


@pytest.mark.parametrize(
    "line",
    [
        "diff good.caffemodel other",
        "diff good.prototxt other",
        "curves other -o out.png",
        "report other",
        "bundle good.prototxt good.caffemodel --mean 0 --calibration other -o out",
    ],
)
def test_a_pointer_of_git_lfs_is_named_wherever_a_file_is_read(materials: Path, line: str) -> None:
    (materials / "other").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    try:
        refused(materials, line, "other: this is a Git LFS pointer, not the file itself, and ")
    finally:
        (materials / "other").unlink()


def test_a_missing_file_is_not_compared_as_a_net(materials: Path) -> None:
    refused(materials, "diff good.caffemodel absent", "absent: cannot read: No such file or directory")
    refused(materials, "diff good.caffemodel good.prototxt", "one is a net, the other holds weights")
