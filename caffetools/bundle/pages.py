"""Texts of a bundle: its README.md and the script that builds TensorRT's engine."""

from __future__ import annotations

_BUILD = """\
#!/bin/sh
# Build a TensorRT engine from model.onnx, on the device that will run it: ./build_engine.sh [{choices}]
set -eu
cd "$(dirname "$0")"
precision="${{1:-fp16}}"
trtexec="$(command -v trtexec || true)"
[ -n "$trtexec" ] || trtexec=/usr/src/tensorrt/bin/trtexec
if [ ! -x "$trtexec" ]; then
    echo "build_engine.sh: error: trtexec not found; it comes with TensorRT (JetPack: /usr/src/tensorrt/bin)" >&2
    exit 2
fi
model=model.onnx
# 8601 of TensorRT 8.6.1, 100300 of 10.3.0: trtexec prints it first, and reads calibration caches of its own version only.
version="$("$trtexec" --help 2>&1 | sed -n 's/.*\\[TensorRT v\\([0-9]*\\)\\].*/\\1/p' | head -n 1)"
case "$precision" in
    fp32) set -- ;;
    fp16) set -- --fp16 ;;
{int8}    *) echo "build_engine.sh: error: precision '$precision' is not one of {choices}" >&2; exit 2 ;;
esac
if [ "$#" -gt 0 ] && [ "${{version:-0}}" -ge 110000 ]; then
    # From TensorRT 11 on the model alone decides the precision.
    model="model.$precision.onnx"
    set --
    if [ ! -f "$model" ]; then
        echo "build_engine.sh: error: TensorRT 11 builds $precision from $model only, which NVIDIA's ModelOpt (pip install nvidia-modelopt[onnx])" >&2
        echo "makes from model.onnx; for fp16: python3 -m modelopt.onnx.autocast --onnx_path model.onnx --output_path model.fp16.onnx" >&2
        exit 2
    fi
fi
"$trtexec" --onnx="$model" --saveEngine="model.$precision.engine.part" "$@"
mv "model.$precision.engine.part" "model.$precision.engine"
rm -f calibration.cache.part
"""
_INT8 = """\
    int8)
        sed "1s/^TRT-[0-9]*/TRT-${version:-8601}/" calibration.cache > calibration.cache.part
        set -- --fp16 --int8 --calib=calibration.cache.part ;;
"""

_README = """\
# {name}

A {kind}, exported from `{source}` by caffetools for `{target}`.

| file | content |
|---|---|
| `model.onnx` | the network: `input_0` (1, C, H, W) float32 in, {outputs} out |
| `labels.txt` | class names, one a line |
| `preprocessing.json` | resize, crop, mean and scale that make `input_0` from a picture |
| `classify.py` | runner in Python: NumPy, OpenCV and onnxruntime or TensorRT |
| `check.py` | compares the files with `SHA256SUMS`, and what `classify.py` gives with `samples/expected.json` |
| `runner/` | runner in C++: OpenCV, and onnxruntime or TensorRT where CMake finds them |
| `samples/` | pictures, and in `expected.json` the five best {results} of each |
{rows}| `SHA256SUMS` | `sha256sum -c SHA256SUMS` checks the files |

## Run it

```sh
python3 check.py
python3 classify.py samples
python3 classify.py photo.jpg --top 3 --json
python3 classify.py --serve 8080     # and: curl --data-binary @photo.jpg http://localhost:8080/
cmake -S runner -B build && cmake --build build
build/caffetools-classify . samples
build/caffetools-classify . camera:0 --json
```

`check.py` needs no caffetools; where that is installed, `caffetools bundle check .` does the same.
{jetson}"""
_CLASSIFIER = ("classifier", "`output_0` probabilities", "classes")
_JETSON = """
## TensorRT

`./build_engine.sh fp16` runs trtexec on this device and writes `model.fp16.engine`, which both runners then use{int8}.
An engine fits only the device and the version of TensorRT that it was built with. In C++, build with TensorRT's and CUDA's headers installed.
{normalized}"""
_NORMALIZED = """
## jetson-inference

```sh
{command}
```

jetson-inference gives a model RGB pictures, normalized with the mean {mean} and the deviation {std}.
The first layer of `model.onnx` takes that back and applies the network's own mean, scale and channel order, so nothing has to be set.
jetson-inference resizes pictures to the input's size without a crop, so its numbers may differ a little from the runners'.
"""
_IMAGENET = {
    "command": "imagenet --model=model.onnx --input_blob=input_0 --output_blob=output_0 --labels=labels.txt photo.jpg",
    "mean": "(0.485, 0.456, 0.406)",
    "std": "(0.229, 0.224, 0.225)",
}
_DETECTNET = {
    "command": "detectnet --model=model.onnx --input-blob=input_0 --output-cvg=scores --output-bbox=boxes --labels=labels.txt photo.jpg",
    "mean": "0.5",
    "std": "0.5",
}


def build_script(int8: bool) -> str:
    """Return build_engine.sh; ``int8`` offers int8 with calibration.cache."""
    return _BUILD.format(choices="fp32|fp16|int8" if int8 else "fp32|fp16", int8=_INT8 if int8 else "")


def readme(name: str, source: str, target: str, *, normalized: bool, int8: bool, detector: bool = False) -> str:
    """Return README.md.

    Args:
        name: The bundle's name.
        source: File name of the deploy prototxt.
        target: The kind of device.
        normalized: Whether the model takes pictures as jetson-inference normalizes them.
        int8: Whether there is a calibration cache.
        detector: Whether the model finds boxes.
    """
    rows = "| `calibration.cache` | ranges for int8 |\n" if int8 else ""
    jetson = ""
    if target == "jetson":
        rows = "| `build_engine.sh` | builds a TensorRT engine with trtexec |\n" + rows
        jetson = _JETSON.format(
            int8="; `./build_engine.sh int8` uses `calibration.cache`" if int8 else "",
            normalized=_NORMALIZED.format(**(_DETECTNET if detector else _IMAGENET)) if normalized else "",
        )
    kind, outputs, results = ("detector", "`scores` (1, P, classes) and `boxes` (1, P, 4)", "boxes") if detector else _CLASSIFIER
    return _README.format(name=name, source=source, target=target, rows=rows, jetson=jetson, kind=kind, outputs=outputs, results=results)
