"""`caffetools mean`: compute_image_mean's file and lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import typer
from typer.testing import CliRunner, Result

from caffetools.cli.mean import mean
from caffetools.data.databases import new_lmdb
from caffetools.data.datum import array_to_datum
from caffetools.errors import DataError
from tests.conftest import GOLDEN

IO = GOLDEN / "io"


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(mean)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_it_writes_the_file_and_prints_the_lines_of_caffe(tmp_path: Path) -> None:
    result = run(IO / "db" / "lmdb_raw", tmp_path / "mean.binaryproto")
    printed = json.loads((IO / "index.json").read_text())["means"]["lmdb_raw"]["printed"]
    assert result.output.splitlines() == [*printed, f"Wrote {tmp_path / 'mean.binaryproto'}"]
    assert (tmp_path / "mean.binaryproto").read_bytes() == (IO / "mean_lmdb_raw.binaryproto").read_bytes()


def test_json_has_the_values(tmp_path: Path) -> None:
    answer = json.loads(run(IO / "db" / "lmdb_gray", tmp_path / "m", "--json").output)
    assert answer["shape"] == [1, 1, 18, 23]
    assert [round(value, 3) for value in answer["mean_values"]] == [133.276]


def test_a_database_that_is_missing_leaves_no_file(tmp_path: Path) -> None:
    assert isinstance(run(tmp_path / "none", tmp_path / "m").exception, DataError)
    assert list(tmp_path.iterdir()) == []


def test_damaged_records_are_left_out_up_to_a_number(tmp_path: Path) -> None:
    with new_lmdb(tmp_path / "db") as writer:
        for number in range(5):
            datum = array_to_datum(np.full((1, 2, 2), number, np.uint8), 0).SerializeToString()
            writer.put(b"%08d" % number, b"broken" if number in (1, 3) else datum)
    result = run(tmp_path / "db", tmp_path / "m", "--skip-corrupt", "2")
    assert result.stdout.splitlines()[0] == "mean_value channel [0]: 2"
    assert [f"record '0000000{number}'" in line for number, line in zip((1, 3), result.stderr.splitlines(), strict=True)] == [True, True]
    error = run(tmp_path / "db", tmp_path / "m2", "--skip-corrupt", "1").exception
    assert isinstance(error, DataError) and "record '00000003'" in str(error) and not (tmp_path / "m2").exists()
