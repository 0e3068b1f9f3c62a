"""Fields that forks add: each one is computed, neutral or refused, never ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from caffetools.errors import CaffeToolsError
from caffetools.layers.fork_fields import fork_fields
from caffetools.proto.forks.effects import effects
from caffetools.proto.forks.renumber import field_numbers
from caffetools.proto.forks.tables import DIALECTS, fork_schema
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


# ---- layers ----

# Messages of BVLC's schema that are parts of a layer.
LAYER_MESSAGES = sorted({owner for owner, _ in FORK_FIELDS if owner.endswith("Parameter") and field_numbers(owner, ())})


def with_field(message: Any, field: Any) -> None:
    """Set ``field`` of ``message`` to something that is not its default."""
    if field.message_type is not None:
        target = getattr(message, field.name)
        (target.add() if field.is_repeated else target).SetInParent()
        return
    kinds = {field.CPPTYPE_STRING: "x", field.CPPTYPE_BOOL: not field.default_value}
    value = kinds.get(field.cpp_type, 7)
    if field.enum_type is not None:
        value = next(v.number for v in field.enum_type.values if v.number != field.default_value)
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


@pytest.mark.parametrize(("owner", "name"), [f for f in FORK_FIELDS if f[0] in LAYER_MESSAGES and f[0].endswith("Parameter")])
def test_a_fork_field_of_a_layer_is_seen_or_listed_as_harmless(owner: str, name: str) -> None:
    from caffetools.layers.fork_fields import _HARMLESS

    if owner in ("SolverParameter", "NetParameter", "LayerParameter", "V1LayerParameter") or name in field_numbers(owner, ()):
        return
    layer = LayerParameter(name="l", type="L")
    if owner == "FillerParameter":
        part = layer.convolution_param.weight_filler
    else:
        holders = [f for f in LayerParameter.DESCRIPTOR.fields if f.message_type is not None and f.message_type.name == owner]
        part = getattr(layer, holders[0].name)
    with_field(part, part.DESCRIPTOR.fields_by_name[name])
    assert name in fork_fields(layer) or name in _HARMLESS


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
