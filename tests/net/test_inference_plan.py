"""The inference plan gives the layer-by-layer engine's numbers."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from caffetools.errors import NetError
from caffetools.layers import inference, native, native_conv
from caffetools.layers.blob_storage import ParameterStorage
from caffetools.net.inference_plan import InferencePlan
from caffetools.net.net import Net
from caffetools.net.stepwise import Stepwise
from caffetools.net.weights import load_weights, save_weights
from caffetools.proto.schema import TEST, TRAIN, NetParameter, SolverParameter
from caffetools.proto.text import parse
from caffetools.solver.rules import make_rule as rule_for
from caffetools.zoo.networks import prototxt_path
from tests.children import run_child

pytestmark = pytest.mark.skipif(not native_conv.available(), reason=native.status())

# From our own builders: every kind of block that the plan fuses.
NETWORKS = [
    "bvlc_alexnet",
    "bvlc_googlenet",
    "squeezenet_v1.1",
    "resnet10",
    "mobilenet_v2",
    "densenet121",
    "se_resnet50",
    "cifar10_full",
    "lenet",
    "nin_imagenet",
]


def with_real_statistics(net: Net) -> Net:
    """Fill BatchNorm's sums and Scale's factors as in the golden nets; fillers leave them at 0 and 1."""
    generator = torch.Generator().manual_seed(5)
    for layer in net.layers:
        for index, blob in enumerate(layer.blobs):
            if not layer.specs[index].learnable:
                blob.data.uniform_(0.5, 1.5, generator=generator)
    return net


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 4])
def test_plan_gives_the_engines_numbers(name: str, batch: int) -> None:
    torch.manual_seed(3)
    net = with_real_statistics(Net.from_file(prototxt_path(name, "deploy")))
    (blob,) = net.inputs
    _, c, h, w = net.blob_shapes[blob]
    if h > 100 and batch > 1:
        pytest.skip("small pictures and single ones are enough here")
    net.reshape({blob: (batch, c, h, w)})
    x = torch.randn(batch, c, h, w)
    with torch.no_grad():
        expected = net.compute({blob: x.contiguous(memory_format=torch.channels_last)}, ())
        plan = InferencePlan(net.layers, {blob: (batch, c, h, w)}, net.outputs, 1)
        for _ in range(2):
            found = plan.run({blob: x})
            for output in net.outputs:
                assert found[output].shape == expected[output].shape
                assert bool((found[output] - expected[output]).abs().max() <= 1e-5 * expected[output].abs().max())


BRANCHES = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 6 dim: 3 dim: 20 dim: 20 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1" convolution_param { num_output: 20 kernel_size: 3 pad: 1 weight_filler { type: "msra" } } }
layer { name: "bn" type: "BatchNorm" bottom: "c1" top: "c1" }
layer { name: "sc" type: "Scale" bottom: "c1" top: "c1" scale_param { bias_term: true filler { value: 1.5 } bias_filler { value: 0.3 } } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" relu_param { negative_slope: 0.2 } }
layer { name: "p1" type: "Pooling" bottom: "c1" top: "p1" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "a" type: "Convolution" bottom: "p1" top: "a" convolution_param { num_output: 12 kernel_size: 1 weight_filler { type: "msra" } } }
layer { name: "b" type: "Convolution" bottom: "p1" top: "b" convolution_param { num_output: 12 kernel_size: 3 pad: 1 weight_filler { type: "msra" } } }
layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "sum" }
layer { name: "rs" type: "ReLU" bottom: "sum" top: "sum" }
layer { name: "sig" type: "Sigmoid" bottom: "sum" top: "sig" }
layer { name: "cat" type: "Concat" bottom: "sum" bottom: "sig" bottom: "p1" bottom: "sum" top: "cat" }
layer { name: "bn2" type: "BatchNorm" bottom: "cat" top: "bn2" }
layer { name: "pre" type: "PReLU" bottom: "bn2" top: "bn2" }
layer { name: "ave" type: "Pooling" bottom: "bn2" top: "ave" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "cat2" type: "Concat" bottom: "ave" bottom: "ave" top: "cat2" }
layer { name: "flat" type: "Flatten" bottom: "cat2" top: "flat" }
layer { name: "drop" type: "Dropout" bottom: "flat" top: "flat" }
layer { name: "ip" type: "InnerProduct" bottom: "flat" top: "ip" inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "rip" type: "ReLU" bottom: "ip" top: "ip" }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


def test_branches_sums_and_shared_blobs() -> None:
    torch.manual_seed(1)
    net = with_real_statistics(Net(parse(BRANCHES, NetParameter)))
    x = torch.randn(6, 3, 20, 20)
    wanted = ["prob", "cat", "sum", "c1"]
    with torch.no_grad():
        expected = net.compute({"data": x}, wanted)
        for blobs in (["prob"], wanted):
            plan = InferencePlan(net.layers, {"data": (6, 3, 20, 20)}, blobs, 1)
            for _ in range(2):
                found = plan.run({"data": x})
                for blob in blobs:
                    torch.testing.assert_close(found[blob], expected[blob].contiguous(), rtol=1e-5, atol=1e-5)


POOLED = """
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 6 dim: {planes} dim: 37 dim: 33 }} }} }}
layer {{ name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param {{ num_output: 40 group: {groups} {conv}
    weight_filler {{ type: "msra" }} bias_filler {{ type: "gaussian" std: 0.3 }} }} }}
layer {{ name: "r" type: "ReLU" bottom: "c" top: "c" }}
layer {{ name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param {{ {pool} }} }}
layer {{ name: "d" type: "Convolution" bottom: "p" top: "d" convolution_param {{ num_output: 20 kernel_size: 1 weight_filler {{ type: "msra" }} }} }}
layer {{ name: "cat" type: "Concat" bottom: "d" bottom: "p" top: "cat" }}
layer {{ name: "ave" type: "Pooling" bottom: "cat" top: "ave" pooling_param {{ pool: AVE global_pooling: true }} }}
"""


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "pool", ["pool: MAX kernel_size: 3 stride: 2", "pool: AVE kernel_size: 3 stride: 2 pad: 1", "kernel_size: 2 stride: 2"]
)
@pytest.mark.parametrize(
    ("planes", "groups", "conv"),
    [
        (3, 1, "kernel_size: 3 stride: 2"),
        (3, 1, "kernel_size: 7 stride: 2 pad: 3"),
        (16, 2, "kernel_size: 5 pad: 2"),
        (16, 1, "kernel_size: 1"),
    ],
)
def test_rows_of_a_convolution_are_pooled_as_they_are_made(
    planes: int, groups: int, conv: str, pool: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffetools.net.inference_plan._LARGE_FLOATS", 1)
    monkeypatch.setattr("caffetools.net.inference_plan._FEW_PRODUCTS", 1000)
    torch.manual_seed(4)
    net = Net(parse(POOLED.format(planes=planes, groups=groups, conv=conv, pool=pool), NetParameter))
    for images in (1, 6):
        net.reshape({"data": (images, planes, 37, 33)})
        x = torch.randn(images, planes, 37, 33)
        with torch.no_grad():
            expected = net.compute({"data": x}, ("p", "ave"))
            plan = InferencePlan(net.layers, {"data": tuple(x.shape)}, ("ave",), threads)
            assert [o.pool is not None for o in plan.program.operators if o.layer is not None and o.layer.name == "c"] == [True]
            torch.testing.assert_close(plan.run({"data": x})["ave"], expected["ave"].contiguous(), rtol=1e-5, atol=1e-5)
            # Pooled values that are wanted themselves, and a convolution's that are.
            for wanted in (("p", "ave"), ("c", "p")):
                found = InferencePlan(net.layers, {"data": tuple(x.shape)}, wanted, threads).run({"data": x})
                torch.testing.assert_close(found["p"], expected["p"].contiguous(), rtol=1e-5, atol=1e-5)


SOFTMAXES = """
name: "softmaxes"
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 3 dim: 7 dim: 5 dim: 4 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 21 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "p" type: "Softmax" bottom: "c" top: "p" }
layer { name: "q" type: "Softmax" bottom: "x" top: "q" }
layer { name: "cat" type: "Concat" bottom: "q" bottom: "p" top: "cat" }
layer { name: "again" type: "Softmax" bottom: "q" top: "again" }
layer { name: "rows" type: "Softmax" bottom: "c" top: "rows" softmax_param { axis: 2 } }
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_softmax_over_channels_gives_the_layers_numbers(threads: int) -> None:
    torch.manual_seed(4)
    net = Net(parse(SOFTMAXES, NetParameter))
    x = torch.randn(3, 7, 5, 4) * 30
    x[0, 2, 1, 1] = float("nan")
    x[1, 3, 2, 2] = 1e30
    x[2, :, 0, 0] = -1e30
    wanted = ["cat", "p", "again", "rows"]
    with torch.no_grad():
        expected = net.compute({"x": x}, wanted)
        plan = InferencePlan(net.layers, {"x": (3, 7, 5, 4)}, wanted, threads)
        found = plan.run({"x": x})
    native_forms = [o for o in plan.program.operators if isinstance(o.form, inference.ChannelSoftmax)]
    assert len(native_forms) == 3
    for blob in wanted:
        torch.testing.assert_close(found[blob], expected[blob].contiguous(), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_parts_of_a_batch_in_several_threads(threads: int) -> None:
    torch.manual_seed(2)
    net = Net.from_file(prototxt_path("squeezenet_v1.1", "deploy"), input_shapes={"data": (6, 3, 99, 99)})
    x = torch.randn(6, 3, 99, 99)
    with torch.no_grad():
        expected = net.compute({"data": x.contiguous(memory_format=torch.channels_last)}, ("fire4/concat",))
        plan = InferencePlan(net.layers, {"data": (6, 3, 99, 99)}, ["prob", "fire4/concat"], threads)
        assert plan.program.repeats > 1
        for _ in range(3):
            found = plan.run({"data": x})
            for blob, values in found.items():
                torch.testing.assert_close(values, expected[blob].contiguous(), rtol=1e-4, atol=1e-5 * float(expected[blob].abs().max()))


def test_a_net_of_few_weights_runs_picture_by_picture_to_its_classifier() -> None:
    torch.manual_seed(2)
    net = Net.from_file(prototxt_path("squeezenet_v1.1", "deploy"), input_shapes={"data": (4, 3, 227, 227)})
    x = torch.randn(4, 3, 227, 227)
    with torch.no_grad():
        expected = net.compute({"data": x.contiguous(memory_format=torch.channels_last)}, ())["prob"]
        program = (plan := InferencePlan(net.layers, {"data": (4, 3, 227, 227)}, ["prob"], 2)).program
        assert (program.head, program.repeats) == (len(program.operators) - 1, 4)  # all but the softmax
        torch.testing.assert_close(plan.run({"data": x})["prob"], expected.contiguous(), rtol=1e-4, atol=1e-6)


def test_hooks_and_training_that_come_after_fused_passes_are_seen_and_their_end_too() -> None:
    net = Net.from_file(prototxt_path("lenet", "deploy"), input_shapes={"data": (1, 1, 28, 28)})
    x = {"data": torch.ones(1, 1, 28, 28)}
    seen: list[str] = []
    with torch.no_grad():
        expected = net(x)["prob"]
        for register in (net.layer("relu1").register_forward_hook, net.layer("relu1").register_forward_pre_hook):
            net(x)
            handle = register(lambda *_: seen.append("relu1"))
            net(x)
            handle.remove()
            net(x)
        assert len(seen) == 2
        plan = net.plan({"data": (1, 1, 28, 28)})
        assert net.inference.run(plan, x, ["prob"]) is not None
        net.layer("relu1").training = True
        assert net.inference.run(plan, x, ["prob"]) is None
        net.layer("relu1").eval()
        found = net.inference.run(plan, x, ["prob"])
        assert found is not None
        torch.testing.assert_close(found["prob"], expected)


def test_a_net_of_two_inputs_reads_each_of_them_in_turn() -> None:
    torch.manual_seed(3)
    branches = "".join(
        f'layer {{ name: "{blob}" type: "Input" top: "{blob}" input_param {{ shape {{ dim: 2 dim: 3 dim: 9 dim: 9 }} }} }} '
        f'layer {{ name: "c{blob}" type: "Convolution" bottom: "{blob}" top: "c{blob}" convolution_param {{ num_output: 8 kernel_size: 3 '
        f'weight_filler {{ type: "xavier" }} }} }} '
        for blob in "ab"
    )
    text = branches + (
        'layer { name: "both" type: "Concat" bottom: "ca" bottom: "cb" top: "both" } '
        'layer { name: "pool" type: "Pooling" bottom: "both" top: "pool" pooling_param { kernel_size: 2 stride: 2 } } '
        'layer { name: "again" type: "Pooling" bottom: "a" top: "again" pooling_param { kernel_size: 3 stride: 2 } }'
    )
    net = Net(parse(text, NetParameter))
    plan = InferencePlan(net.layers, {"a": (2, 3, 9, 9), "b": (2, 3, 9, 9)}, ["pool", "again"], 2)
    for _ in range(3):
        batch = {"a": torch.randn(2, 3, 9, 9), "b": torch.randn(2, 3, 9, 9)}
        with torch.no_grad():
            expected = net.compute(dict(batch), ("pool", "again"))
        for blob, values in plan.run(batch).items():
            torch.testing.assert_close(values, expected[blob].contiguous(), rtol=1e-4, atol=1e-6)


def test_threads_run_one_plan_at_the_same_time() -> None:
    torch.manual_seed(1)
    net = Net(parse(BRANCHES, NetParameter))
    with torch.no_grad():
        plan = InferencePlan(net.layers, {"data": (6, 3, 20, 20)}, ["prob"], 1)
        pictures = [torch.randn(6, 3, 20, 20) for _ in range(4)]
        alone = [plan.run({"data": x})["prob"] for x in pictures]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(50):
            if not torch.equal(plan.run({"data": pictures[index]})["prob"], alone[index]):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


_SLEEPING_WORKER = """
import os, time, torch
from caffetools.layers import native_conv
from caffetools.net.inference_plan import InferencePlan
from caffetools.net.net import Net
from caffetools.proto.schema import NetParameter
from caffetools.proto.text import parse

def run():
    before = set(os.listdir("/proc/self/task"))
    with torch.no_grad():
        plan.run({"data": picture})
    return [int(t) for t in set(os.listdir("/proc/self/task")) - before]

def reaches(processors, passes=False):
    end = time.monotonic() + 20
    while os.sched_getaffinity(worker) != processors and time.monotonic() < end:
        if passes:
            run()
        time.sleep(0.1 if passes else 0.001)  # long enough to fall asleep
    return os.sched_getaffinity(worker) == processors

torch.manual_seed(1)
net = Net(parse(os.environ["NET"], NetParameter))
plan = InferencePlan(net.layers, {"data": (6, 3, 20, 20)}, ["prob"], 2)
picture = torch.randn(6, 3, 20, 20)
every = os.sched_getaffinity(0)
first, second = sorted(every)[:2]
os.sched_setaffinity(0, {first})
(worker,) = run()
os.sched_setaffinity(worker, every)
native_conv.wake_threads()
assert reaches(every - {first}), "asleep, it is kept off the processor of its caller"
os.sched_setaffinity(0, {second})
# In one of the next passes: a worker that was awake, or that had no part in a pass, is moved later.
assert reaches(every - {second}, passes=True), "also if that has moved"
os.sched_setaffinity(worker, {first})
native_conv.wake_threads()
run()
time.sleep(0.05)
assert os.sched_getaffinity(worker) == {first}, "what somebody else sets holds"
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two processors of Linux")
def test_a_sleeping_thread_is_kept_off_its_callers_processor_and_only_there() -> None:
    done = run_child(["-c", _SLEEPING_WORKER], env={**os.environ, "NET": BRANCHES, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stderr) == (0, "")


def deferred_run() -> tuple[Stepwise, Stepwise]:
    """The same net twice: run fused, and run layer by layer."""
    torch.manual_seed(1)
    net = Net(parse(BRANCHES, NetParameter))
    fused, plain = Stepwise(net), Stepwise(net)
    plain.after_forward.append(lambda index: None)
    for run in (fused, plain):
        run.feed({"data": torch.randn(6, 3, 20, 20, generator=torch.Generator().manual_seed(2))})
        run.forward()
    return fused, plain


def same_blobs(fused: Stepwise, plain: Stepwise) -> None:
    for name in plain.blobs:
        torch.testing.assert_close(torch.from_numpy(fused.blobs[name].data_array()), plain.blobs[name].data.value(), rtol=1e-4, atol=1e-5)


def test_inner_blobs_of_a_fused_pass_are_there_when_looked_at() -> None:
    fused, plain = deferred_run()
    assert fused.blobs["c1"].data.is_deferred_by(fused._deferred.settle)
    same_blobs(fused, plain)


def test_an_inner_blob_of_the_memory_of_an_input_changes_with_it_and_what_follows_keeps_the_values_of_the_pass() -> None:
    text = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }'
    text += 'layer { name: "flat" type: "Flatten" bottom: "data" top: "flat" }'
    text += 'layer { name: "ip" type: "InnerProduct" bottom: "flat" top: "ip" inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 1 } } }'
    run = Stepwise(Net(parse(text, NetParameter)))
    run.blobs["data"].data_array()[...] = 1
    for value in (2, 3):
        run.forward()
        run.blobs["data"].data_array()[...] = value
        if value == 2:
            made = run.blobs["ip"].data_array().copy()
        else:
            assert (run.blobs["flat"].data_array() == 3).all()
    run.forward()
    assert not np.array_equal(run.blobs["ip"].data_array(), made)
    made = run.blobs["ip"].data_array().copy()
    run.blobs["flat"].data.value()
    run.blobs["data"].data_array()[...] = 7
    assert (run.blobs["flat"].data_array() == 7).all()
    assert np.array_equal(run.blobs["ip"].data_array(), made)


def beside(kind: str, blob: str) -> Stepwise:
    text = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 3 dim: 3 } } }'
    text += 'layer { name: "mvn" type: "MVN" bottom: "data" top: "mvn" }'
    text += f'layer {{ name: "two" type: "{kind}" bottom: "{blob}" top: "a" top: "b" }}'
    text += f'layer {{ name: "half" type: "Power" bottom: "{blob}" top: "half" power_param {{ scale: 0.5 }} }}'
    text += 'layer { name: "last" type: "ELU" bottom: "half" top: "last" }'
    run = Stepwise(Net(parse(text, NetParameter)))
    run.blobs["data"].data_array()[...] = torch.arange(72.0).reshape(2, 4, 3, 3)
    run.forward()
    return run


@pytest.mark.parametrize("blob", ["data", "mvn"])
def test_an_edited_output_of_a_slice_is_edited_alone(blob: str) -> None:
    run = beside("Slice", blob)
    assert run.blobs["half"].data.is_deferred_by(run._deferred.settle)
    others = {name: run.blobs[name].data.value().clone() for name in ("b", "last")}
    run.blobs["a"].data_array()[...] = -1
    assert (run.blobs["data"].data.value().reshape(-1) == torch.arange(72.0)).all()
    assert (run.blobs["half"].data.value() == run.blobs[blob].data.value() / 2).all()
    for name, values in others.items():
        assert (run.blobs[name].data.value() == values).all()


@pytest.mark.parametrize("blob", ["data", "mvn"])
def test_an_edited_output_of_a_split_is_edited_with_the_blobs_in_its_memory_and_no_others(blob: str) -> None:
    run, same = beside("Split", blob), beside("Split", blob)
    run.blobs["a"].data_array()[...] = -1
    for name in ("a", "b", blob):
        assert (run.blobs[name].data.value() == -1).all()
    for name in {"half", "last", "data", "mvn"} - {blob}:
        assert (run.blobs[name].data.value() == same.blobs[name].data.value()).all()


@pytest.mark.parametrize("edit", ["input", "weights"])
def test_inner_blobs_are_those_of_the_pass_even_if_edited_after_it(edit: str) -> None:
    fused, plain = deferred_run()
    if edit == "input":
        fused.blobs["data"].data_array()[...] = 7
        plain.blobs["data"].data_array()[...] = 7
    else:
        ParameterStorage(fused.net.layers[1], 0).data_array()[...] = 0
    same_blobs(fused, plain)


def test_weights_edited_as_arrays_count_from_the_next_pass_on() -> None:
    fused, plain = deferred_run()
    weights = ParameterStorage(fused.net.layers[1], 0)
    weights.data_array()[...] *= 2
    for run in (fused, plain):
        run.forward()
    assert fused.blobs["c1"].data.is_set
    torch.testing.assert_close(fused.blobs["prob"].data.value(), plain.blobs["prob"].data.value(), rtol=1e-4, atol=1e-6)
    held = weights.data_array()
    fused.forward()
    held[...] *= 0.5
    for run in (fused, plain):
        run.forward()
    same_blobs(fused, plain)


def test_a_held_array_of_an_inner_blob_follows_every_pass() -> None:
    fused, plain = deferred_run()
    held = fused.blobs["sum"].data_array()
    for run in (fused, plain):
        run.feed({"data": torch.ones(6, 3, 20, 20)})
        run.forward()
    np.testing.assert_allclose(held, plain.blobs["sum"].data.value().numpy(), rtol=1e-4, atol=1e-5)


def test_weights_that_a_file_or_a_solver_writes_count_at_once(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net, other = Net(parse(BRANCHES, NetParameter)), Net(parse(BRANCHES, NetParameter))
    batch = {"data": torch.randn(6, 3, 20, 20, generator=torch.Generator().manual_seed(2))}
    save_weights(other, tmp_path / "other.caffemodel")
    with torch.no_grad():
        net(batch)
        load_weights(net, tmp_path / "other.caffemodel")
        torch.testing.assert_close(net(batch)["prob"], other(batch)["prob"])
    rule = rule_for(SolverParameter(momentum=0.9), net.learnable)
    for entry in net.learnable:
        entry.parameter.grad = torch.ones_like(entry.parameter)
    rule.apply(0.1, 0)
    with torch.no_grad():
        after = net(batch)["prob"]
        net.inference.enabled = False
        torch.testing.assert_close(after, net(batch)["prob"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_unknown_blob_to_keep_is_one_error_with_the_nearest_name(phase: int) -> None:
    text = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }'
    text += 'layer { name: "relu" type: "ReLU" bottom: "data" top: "above" }'
    net = Net(parse(text, NetParameter), phase)
    with pytest.raises(NetError, match="no blob 'abov'; did you mean 'above'"):
        net({"data": torch.zeros(1, 2, 4, 4)}, keep=["abov"])


UNFOLDED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 8 dim: 9 dim: 9 } } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 16 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "bn" type: "BatchNorm" bottom: "c" top: "b" }
layer { name: "sc" type: "Scale" bottom: "b" top: "s" scale_param { bias_term: true filler { value: 1.5 } bias_filler { value: 0.3 } } }
layer { name: "r" type: "ReLU" bottom: "s" top: "r" }
"""


@pytest.mark.parametrize("orders", ["c,,b,", ",c,b", "b,c,"])
def test_passes_that_keep_other_blobs_do_not_share_weights_that_layers_are_folded_into(orders: str) -> None:
    torch.manual_seed(0)
    net = with_real_statistics(Net(parse(UNFOLDED, NetParameter), TEST))
    x = torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        net.inference.enabled = False
        expected = net({"data": x}, keep=["c", "b"])
        net.inference.enabled = True
        for kept in orders.split(","):
            found = net({"data": x}, keep=[kept] if kept else [])
            for blob, value in found.items():
                torch.testing.assert_close(value, expected[blob], atol=1e-5, rtol=1e-5)
