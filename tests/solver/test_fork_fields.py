"""Fields that forks add: each one is computed, neutral or refused, never ignored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from caffetools.errors import CaffeToolsError, NetError
from caffetools.layers.fork_fields import fork_fields
from caffetools.layers.registry import layer_class, layer_types
from caffetools.net.net import Net
from caffetools.proto.forks.effects import effects
from caffetools.proto.forks.renumber import field_numbers
from caffetools.proto.forks.tables import DIALECTS, fork_schema
from caffetools.proto.options import ReadOptions, reading
from caffetools.proto.schema import LayerParameter, SolverParameter
from caffetools.proto.text import parse
from caffetools.solver.errors import SolverError
from caffetools.solver.policies import LearningRate
from caffetools.solver.solver import Solver
from tests.solver.tiny import tiny_solver, weights

FORK_FIELDS = sorted({(fact.message, fact.name) for dialect in DIALECTS for fact in fork_schema(dialect).fields})


@pytest.mark.parametrize("message", ["SolverParameter", "NetParameter"])
def test_every_field_of_every_fork_is_classified(message: str) -> None:
    fields = {name for owner, name in FORK_FIELDS if owner == message and name not in field_numbers(message, ())}
    assert fields <= set(effects(message)), "classify these in effects.tsv"
    assert all(entry.effect in ("computed", "neutral", "refused") and entry.reason for entry in effects(message).values())
    known = set(field_numbers(message, ())) | {name for owner, name in FORK_FIELDS if owner == message}
    assert set(effects(message)) <= known, "these are fields of no fork"


def rates(fields: str, count: int) -> list[float]:
    rate = LearningRate(parse(fields, SolverParameter))
    return [rate.at(iteration) for iteration in range(count)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # NVCaffe: rampup_lr + (base_lr - rampup_lr) * (iteration / rampup_interval) ** 2, and then the policy.
        ('lr_policy: "fixed" base_lr: 0.01 rampup_lr: 0.001 rampup_interval: 5', [0.001, 0.00136, 0.00244, 0.00424, 0.00676, 0.01]),
        # NVCaffe: poly falls to min_lr; no policy goes below it.
        ('lr_policy: "poly" power: 1 base_lr: 0.01 min_lr: 0.005 max_iter: 5', [0.01, 0.009, 0.008, 0.007, 0.006]),
        ('lr_policy: "step" stepsize: 1 gamma: 0.5 base_lr: 0.01 min_lr: 0.004', [0.01, 0.005, 0.004, 0.004]),
        # NVCaffe: the steps that fall into the ramp are taken behind it, one an iteration.
        (
            'lr_policy: "multistep" gamma: 0.5 base_lr: 8 rampup_lr: 8 rampup_interval: 3 stepvalue: 1 stepvalue: 2 stepvalue: 6',
            [8, 8, 8, 4, 2, 2, 1],
        ),
        # Intel: linear from warmup_start_lr.
        ('lr_policy: "fixed" base_lr: 0.01 warmup_iter: 5 warmup_start_lr: 0.001', [0.001, 0.0028, 0.0046, 0.0064, 0.0082, 0.01]),
        # Intel, YOLO: the rate of the first stage that is not passed.
        ('lr_policy: "multifixed" stageiter: 1 stageiter: 3 stagelr: 0.5 stagelr: 0.25', [0.5, 0.5, 0.25, 0.25, 0.25]),
        # BVLC's own poly beyond max_iter is not clipped at 0.
        ('lr_policy: "poly" power: 1 base_lr: 1 max_iter: 2', [1, 0.5, 0, -0.5]),
    ],
)
def test_rates_are_those_of_the_fork(fields: str, expected: list[float]) -> None:
    assert rates(fields, len(expected)) == pytest.approx(expected, rel=1e-6)


def test_plateau_multiplies_by_gamma_where_a_window_has_no_smaller_loss() -> None:
    """An event is a smaller loss or a step; each step has a window of its own, and after the last the rate stays."""
    rate = LearningRate(parse('lr_policy: "plateau" base_lr: 1 gamma: 0.5 plateau_winsize: 2 plateau_winsize: 3', SolverParameter))
    losses = [5, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3]
    got = [rate.at(iteration, lambda loss=loss: float(loss)) for iteration, loss in enumerate(losses)]  # type: ignore[misc]
    assert got == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert (rate.minimum_loss, rate.last_event, rate.current_step) == (3, 7, 2)


@pytest.mark.parametrize("fields", ["", "plateau_winsize: 2 plateau_winsize: 0"])
def test_plateau_needs_windows(fields: str) -> None:
    with pytest.raises(SolverError, match="'plateau' needs plateau_winsize above 0"):
        LearningRate(parse(f'lr_policy: "plateau" base_lr: 1 {fields}', SolverParameter))


PLATEAU = (
    'lr_policy: "plateau" base_lr: 0.3 weight_decay: 0.2 gamma: 0.5 plateau_winsize: 2 plateau_winsize: 2 plateau_winsize: 3 display: 1'
)


@pytest.mark.parametrize("snapshots", ["BINARYPROTO", "HDF5"])
def test_a_run_with_plateau_is_resumed_in_the_middle_of_a_window(snapshots: str, tmp_path: Path) -> None:
    fields, lines = f"{PLATEAU} snapshot: 1 snapshot_format: {snapshots}", list[str]()
    whole = tiny_solver(fields, folder=tmp_path, log=lambda place, text, level="I": lines.append(text))
    whole.solve()
    assert whole.learning_rate.current_step > 0 and 0 < whole.learning_rate.minimum_loss < 2
    steps = [line for line in lines if line.startswith("Plateau Status:") and ", step = " in line]
    assert len(steps) == whole.learning_rate.current_step
    assert any("current minimum_loss = " in line for line in lines)
    for iteration in range(1, 20, 4):
        again = tiny_solver(fields, folder=tmp_path / "again")
        again.restore(tmp_path / f"tiny_iter_{iteration}.solverstate{'.h5' if snapshots == 'HDF5' else ''}")
        again.solve()
        assert again.learning_rate.last_event == whole.learning_rate.last_event
        for one, other in zip(weights(again), weights(whole), strict=True):
            assert torch.equal(one, other)


def test_the_window_starts_over_after_a_snapshot_of_another_policy(tmp_path: Path) -> None:
    first = tiny_solver("max_iter: 10", folder=tmp_path)
    first.solve()
    lines = list[str]()
    again = tiny_solver(PLATEAU, folder=tmp_path / "again", log=lambda place, text, level="I": lines.append(text))
    again.restore(tmp_path / "tiny_iter_10.solverstate")
    assert again.learning_rate.last_event == 10
    assert "The snapshot has no smallest loss; the window of lr_policy plateau starts over" in lines


def test_multifixed_needs_a_rate_for_each_stage() -> None:
    with pytest.raises(SolverError, match="as many stagelr as stageiter"):
        rates('lr_policy: "multifixed" stageiter: 1', 1)


@pytest.mark.parametrize(
    "field",
    [
        "larc: true",
        'momentum_policy: "poly"',
        'weight_decay_policy: "poly"',
        "local_lr_auto: true",
        "disabled_update: true",
        "solver_data_type: FLOAT16",
        "test_offset: 3",
        "test_and_snapshot_last_epochs: 2",
        "solver_type: SAG",
    ],
)
def test_what_would_change_numbers_is_refused_with_file_line_and_field(tmp_path: Path, field: str) -> None:
    path = tmp_path / "solver.prototxt"
    path.write_text(f'net: "absent.prototxt"\nbase_lr: 0.1 # {field}\n{field}\nlr_policy: "fixed"\n')
    name = field.partition(":")[0]
    with pytest.raises(SolverError, match=rf"^{path}:3: {name} (SAG is a fork's and not|is a field of a Caffe fork that is not)") as error:
        Solver.from_file(path)
    assert (error.value.field, error.value.line, error.value.exit_code) == (name, 3, 2)


def test_a_field_at_its_default_or_used_by_another_alone_is_not_an_obstacle() -> None:
    tiny_solver('larc: false momentum_policy: "fixed" solver_data_type: FLOAT larc_eta: 0.5 max_momentum: 0.9 eval_type: "detection"')


@pytest.mark.parametrize("field", ["global_grad_scale: 128", "global_grad_scale_adaptive: true"])
def test_a_scale_of_the_gradients_is_refused_with_losses_that_do_not_know_it(tmp_path: Path, field: str) -> None:
    net = (
        field
        + """
        layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 } } }
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
        """
    )
    (tmp_path / "net.prototxt").write_text(net)
    solver = parse(f'net: "{tmp_path}/net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1', SolverParameter)
    Solver(solver)
    (tmp_path / "net.prototxt").write_text(net + 'layer { name: "other" type: "EuclideanLoss" bottom: "ip" bottom: "data" top: "other" }')
    with pytest.raises(NetError, match=f"layer 'other'.*the net's {field.partition(':')[0]} divides the gradient"):
        Solver(solver)


def test_tests_by_mean_average_precision_are_refused_where_there_are_tests() -> None:
    with pytest.raises(CaffeToolsError, match="solver: eval_type is a field of a Caffe fork"):
        tiny_solver('eval_type: "detection" test_iter: 1 test_interval: 5')


@pytest.mark.parametrize(
    "devices", ["device_id: [0,1,2]", "device_id: [0,\n 1]", "device_id: 0 device_id: 1", "device_id: 0 # device_id: 1"]
)
def test_a_list_of_devices_as_tsn_solvers_have_is_read(devices: str) -> None:
    text = f'{devices}\nsnapshot_prefix: "device_id: 7" group_id: [0, 0] # device_id: [8, 9]\nrichness: 300'
    solver = parse(text, SolverParameter)
    assert (solver.device_id, solver.snapshot_prefix, solver.richness) == (0, "device_id: 7", 300)
    with pytest.raises(CaffeToolsError, match=rf":{text.count(chr(10)) + 2}:1: "):
        parse(text + "\nrichnes: 3", SolverParameter)


def test_a_field_that_no_fork_has_is_never_ignored_in_a_training(tmp_path: Path) -> None:
    """``--dialect any`` keeps it in files; a run or training as if it were not there would give other numbers."""
    path, net = tmp_path / "solver.prototxt", tmp_path / "net.prototxt"
    path.write_text(f'net: "{net}"\nbase_lr: 0.1 lr_policy: "fixed" max_iter: 1\nkernel_shape_decay: 0.1\n')
    layers = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 } } }\n'
    net.write_text(layers)
    with reading(ReadOptions(dialect="any")):
        with pytest.raises(
            SolverError,
            match=rf"^{path}:3: kernel_shape_decay is a field that is not known here, so what it changes isn't either; remove it",
        ):
            Solver.from_file(path)
        net.write_text(layers + "group_lasso: 2\n")
        with pytest.raises(
            NetError, match=rf"^{net}: the net has fields that are not known here \(group_lasso\), so what it computes isn't either"
        ):
            Net.from_file(net)


# ---- layers ----


def with_field(message: Any, field: Any) -> None:
    """Set ``field`` of ``message`` to something that is not its default."""
    if field.message_type is not None:
        target = getattr(message, field.name)
        (target.add() if field.is_repeated else target).SetInParent()
        return
    kinds = {field.CPPTYPE_STRING: "x", field.CPPTYPE_BOOL: not field.default_value}
    value = kinds.get(field.cpp_type, 7)
    if field.enum_type is not None:
        value = next((v.number for v in field.enum_type.values if v.number != field.default_value), field.default_value)
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def holder(owner: str) -> tuple[Any, Any]:
    """Return a layer of no known type, and the message ``owner`` in it, as deep as it lies."""
    layer = LayerParameter(name="l", type="L")
    path = PATHS[owner]
    part: Any = layer
    for field in path:
        value = getattr(part, field.name)
        part = value.add() if field.is_repeated else value
    if path:
        part.SetInParent()
    return layer, part


def paths() -> dict[str, list[Any]]:
    """Return how each message that layers have is reached, by settings of layer types that are computed where there are such."""
    found: dict[str, list[Any]] = {"LayerParameter": []}
    queue: list[tuple[Any, list[Any]]] = [(LayerParameter.DESCRIPTOR, [])]
    while queue:
        message, path = queue.pop(0)
        for field in sorted(message.fields, key=lambda field: effect_of(message.name, field.name) != "computed"):
            if field.message_type is not None and field.message_type.name not in found:
                found[field.message_type.name] = [*path, field]
                queue.append((field.message_type, [*path, field]))
    return found


def effect_of(owner: str, name: str) -> str:
    return "computed" if name in field_numbers(owner, ()) else effects(owner)[name].effect if name in effects(owner) else "neutral"


PATHS = paths()
# All fields of forks in the messages of a layer, its settings and the parts of those.
LAYER_FIELDS = [(owner, name) for owner, name in FORK_FIELDS if owner in PATHS and name not in field_numbers(owner, ())]
COMPUTED = {name for type_name in layer_types() for name in layer_class(type_name).FORK_FIELDS}


def test_every_field_that_a_fork_adds_to_any_message_is_classified() -> None:
    for owner, name in FORK_FIELDS:
        if name not in field_numbers(owner, ()):
            assert effects(owner)[name].effect in ("computed", "neutral", "refused") and effects(owner)[name].reason, (owner, name)
    assert len(LAYER_FIELDS) > 700


def test_layer_types_name_exactly_the_fields_of_bvlc_messages_that_are_computed() -> None:
    settings = [(owner, name) for owner, name in LAYER_FIELDS if field_numbers(owner, ()) and owner not in ("LayerParameter", "BlobProto")]
    assert {name for owner, name in settings if effects(owner)[name].effect == "computed"} == COMPUTED


def test_settings_are_computed_where_a_layer_type_that_reads_them_is() -> None:
    """By the types' own statement, and by a registered type of the same name."""
    stated = {layer_class(name).TRAITS.settings for name in layer_types()}
    names = {name.lower() for name in layer_types()}
    for owner, name in LAYER_FIELDS:
        effect = effects(owner)[name].effect
        if owner == "LayerParameter" and (name in stated or name.removesuffix("_param").replace("_", "") in names):
            assert effect == "computed" or name == "split_param", name


@pytest.mark.parametrize("owner", sorted({owner for owner, _ in LAYER_FIELDS} - {"BlobProto"}))
def test_a_fork_field_of_a_layer_is_computed_neutral_or_reported(owner: str) -> None:
    for name in [name for other, name in LAYER_FIELDS if other == owner]:
        layer, part = holder(owner)
        before = set(fork_fields(layer))
        with_field(part, part.DESCRIPTOR.fields_by_name[name])
        entry = effects(owner)[name]
        reported, descriptor = name in fork_fields(layer), part.DESCRIPTOR.fields_by_name[name]
        if descriptor.message_type is None and getattr(part, name) == descriptor.default_value:
            continue  # an enum of one value
        if before or entry.whole or any(effect_of(field.containing_type.name, field.name) != "computed" for field in PATHS[owner]):
            # What holds it is neutral, reported already, or belongs to a layer type that is not computed.
            continue
        if owner == "LayerParameter" and descriptor.message_type is not None:
            assert not reported
        elif owner == "QuantizationParameter":
            assert fork_fields(layer) == ["quantization_param"]
        else:
            assert reported == (entry.effect == "refused" or (entry.effect == "computed" and bool(field_numbers(owner, ()))))


REFUSED = [
    ("resize_param { height: 8 width: 8\n height_scale: 4 }", "transform_param { {} }", "AnnotatedData", "height_scale"),
    ("train_diffcult: false", "annotated_data_param {\n {} }", "AnnotatedData", "train_diffcult"),
    ("relu: true", "convolution_param { num_output: 2 kernel_size: 1\n # relu: false\n {} }", "Convolution", "relu"),
    ("k: 2", "reduction_param {\n {} }", "Reduction", "k"),
    ("operation: STOCHASTIC_SUM", "eltwise_param {\n {} }", "Eltwise", "operation: STOCHASTIC_SUM"),
]


@pytest.mark.parametrize(("field", "settings", "type_name", "shown"), REFUSED)
def test_a_refused_field_of_a_layer_is_one_error_with_file_and_the_fields_line(
    tmp_path: Path, field: str, settings: str, type_name: str, shown: str
) -> None:
    path = tmp_path / "net.prototxt"
    data = type_name == "AnnotatedData"
    places = 'top: "y" top: "label"' if data else 'bottom: "x" ' * (1 + (type_name == "Eltwise")) + 'top: "y"'
    text = 'input: "x" input_shape { dim: 1 dim: 2 dim: 4 dim: 4 }\nlayer { name: "other" type: "ReLU" bottom: "x" top: "x" }\n'
    text += f'layer {{ name: "l" type: "{type_name}" {places}\n  {settings.replace("{}", field)} }}\n'
    path.write_text(text)
    name = shown.partition(":")[0]
    line = next(number for number, row in enumerate(text.splitlines(), 1) if re.match(rf"[^#]*\b{name}:", row))
    with pytest.raises(NetError, match=rf"^{re.escape(str(path))}:{line}: layer 'l': \({type_name}\) has {shown}, which changes") as error:
        Net.from_file(path)
    assert (error.value.line, error.value.field, error.value.exit_code) == (line, name, 2)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eltwise_param { operation: STOCHASTIC_SUM }", ["operation: STOCHASTIC_SUM"]),
        ("loss_param { normalization: PRE_FIXED }", ["normalization: PRE_FIXED"]),
        ("loss_param { normalization: FULL }", []),
        ("pooling_param { pool: AVE engine: MKLDNN }", []),
        ("convolution_param { engine: MKL2017 weight_filler { variance_norm: AVERAGE } }", []),
        ("quantization_param { bw_layer_in: 8 fl_layer_in: 4 }", ["quantization_param"]),
        ("quantization_param { precision: DYNAMIC_FIXED_POINT bw_params: 32 }", []),
    ],
)
def test_values_of_forks_and_fixed_point_arithmetic_are_seen_in_every_layer(text: str, expected: list[str]) -> None:
    assert fork_fields(parse(f'name: "l" type: "Convolution" {text}', LayerParameter)) == expected
