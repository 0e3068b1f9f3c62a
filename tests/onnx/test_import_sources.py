"""Import from files and from modules of torch: what is written, and what is wrong with them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper

from caffetools.errors import CaffeToolsError, ModelFileError
from caffetools.infer.import_model import import_file
from caffetools.net.net import Net
from caffetools.net.weights import load_weights
from caffetools.proto.schema import TEST
from tests.onnx.test_import import model, numbers


def test_files_are_written_with_what_the_model_knows_of_its_images(tmp_path: Path) -> None:
    from caffetools.infer.sidecar import read_preprocessing
    from caffetools.results import Preprocessing

    proto = model("Relu", (1, 3, 4, 4))
    known = Preprocessing(mean_values=(1.0, 2.0, 3.0), scale=0.5, labels=("a", "b", "c"))
    helper.set_model_props(proto, known.to_properties())
    onnx.save(proto, tmp_path / "m.onnx")
    imported, (deploy, _) = import_file(tmp_path / "m.onnx", tmp_path / "net")
    assert read_preprocessing(deploy) == imported.preprocessing == known


def test_a_function_of_a_module_gives_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_here.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.GELU('tanh'))\n"
    )
    monkeypatch.chdir(tmp_path)
    imported, _ = import_file("made_here:net", tmp_path / "net", input_shapes={"data": (1, 3, 8, 8)})
    assert imported.model.net.layer[1].type == "Convolution"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not_there:net", "there is no module 'not_there'; run it in the folder that holds not_there"),
        ("not_there.part:net", "there is no module 'not_there'"),
        ("reads_more:net", "the module 'reads_more' cannot be imported: No module named 'not_there'"),
        ("cut_short:net", "the module 'cut_short' cannot be imported: SyntaxError: "),
        ("all_kinds:nett", "the module 'all_kinds' has no 'nett'; did you mean 'net'?"),
        ("all_kinds:number", "'number' is of type int, not a torch.nn.Module or a function that gives one"),
        ("all_kinds:text", "gives an object of type str, not a torch.nn.Module"),
        ("all_kinds:fails", "'fails' failed: ValueError: two lines"),
        ("all_kinds:needs", "'needs' failed: TypeError: "),
        ("all_kinds:net", "torch.onnx cannot export it for data 1 x 4 x 8 x 8: "),
        ("all_kinds:bessel", "torch.onnx cannot export it for data 1 x 4 x 8 x 8: "),
        ("all_kinds:", "'all_kinds:' is not MODULE:CALLABLE"),
        (":net", "':net' is not MODULE:CALLABLE"),
        ("not_there.pt2", "not_there.pt2: no such file"),
    ],
)
def test_what_is_wrong_with_a_module_is_named(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reads_more.py").write_text("import not_there\n")
    (tmp_path / "cut_short.py").write_text("net = (\n")
    (tmp_path / "all_kinds.py").write_text(
        "import torch\nnumber = 3\nnet = torch.nn.Conv2d(3, 2, 3)\n"
        "class bessel(torch.nn.Module):\n    def forward(self, x):\n        return torch.special.bessel_j0(x)\n"
        "def text():\n    return 'text'\ndef fails():\n    raise ValueError('two\\nlines')\ndef needs(x):\n    return net\n"
    )
    monkeypatch.chdir(tmp_path)
    for module in ("reads_more", "all_kinds"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(CaffeToolsError, match=re.escape(message)):
        import_file(name, tmp_path / "net", input_shapes={"data": (1, 4, 8, 8)})
    if name.startswith("not_there"):
        # The name is at fault, not the shape that is missing.
        with pytest.raises(CaffeToolsError, match=re.escape(message)):
            import_file(name, tmp_path / "net")
    # torch's C++ code prints the graph in which it finds an operator that it does not export (bessel).
    assert capfd.readouterr() == ("", "")


def test_an_exported_program_of_torch_comes_over(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra pt2 is not installed")
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(64, 5)
    )
    x = torch.from_numpy(numbers(1, 3, 8, 8))
    torch.export.save(torch.export.export(module.eval(), (x,)), tmp_path / "net.pt2")
    _, (deploy, weights) = import_file(tmp_path / "net.pt2", tmp_path / "net")
    net = Net.from_file(deploy, TEST, fill=False)
    load_weights(net, weights)
    with torch.no_grad():
        torch.testing.assert_close(net({net.inputs[0]: x})[net.outputs[0]], module(x), rtol=1e-4, atol=1e-5)


def test_a_file_that_is_not_a_model_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match=r"m\.onnx: this is text, and an ONNX model is expected"):
        import_file(tmp_path / "m.onnx", tmp_path / "net")
    with pytest.raises(ModelFileError, match="no such file"):
        import_file(tmp_path / "none.onnx", tmp_path / "net")
    assert not (tmp_path / "net").exists()
