"""Any Zarr v3 and Parquet reader gets the numbers that ours gives."""

import json
import math
import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore
import zarr

from infra.catalog import Catalog
from infra.plan_reader import PlanReader
from infra.store import open_store
from schemas.names import BLOCK_ROWS
from tests.builders import ROOT
from trainer.cache import CacheReader

SETS = [("vit", 2), ("vit", 3), ("cnn", 2), ("cnn", 3)]
CODED = [(name, grid) for name in ("eight", "four", "varying") for grid in (2, 7)]


def ours(reader: CacheReader, name: str, generation: int) -> tuple[Any, Any, Any]:
    """Every row's tokens, CLS vector and soundness as the strict reader gives them."""
    blocks = -(-reader.generations[generation].rows // BLOCK_ROWS)
    read = [reader.read_block(generation, block) for block in range(blocks)]
    parts, tokens = [block.sets[name] for block, _ in read], [rows[name] for _, rows in read]
    cls = [part.cls for part in parts if part.cls is not None]
    return tuple(map(np.concatenate, (tokens, cls, [part.ok for part in parts])))


def read_by_both(folder: Path) -> Any:
    """The whole array, to zarr and to tensorstore the same."""
    by_zarr = zarr.open_array(folder, mode="r")[:]
    kvstore = {"driver": "file", "path": f"{folder}/"}
    by_tensorstore = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()[:].read()
    np.testing.assert_array_equal(by_zarr, by_tensorstore.result())
    return by_zarr


@pytest.mark.parametrize("generation", [0, 1])
@pytest.mark.parametrize(("name", "grid"), SETS)
def test_tokens__are_the_same_to_zarr_tensorstore_and_us(
    whole_cache: Path, name: str, grid: int, generation: int
) -> None:
    reader = CacheReader(str(whole_cache), teachers={name: grid})
    tokens, _, ok = ours(reader, name, generation)
    folder = whole_cache / str(reader.sets[name][grid]) / f"{generation:06d}" / "tokens"
    by_zarr = read_by_both(folder)
    assert by_zarr.dtype == tokens.dtype == np.float16
    assert by_zarr.shape == tokens.shape
    assert by_zarr.shape[0] == reader.generations[generation].rows
    np.testing.assert_array_equal(by_zarr[ok], tokens[ok])
    assert np.isnan(by_zarr[~ok]).all()
    assert not tokens[~ok].any()
    assert (~ok).sum() == (6 if generation == 0 else 0)


@pytest.mark.parametrize("generation", [0, 1])
@pytest.mark.parametrize(("name", "grid"), CODED)
def test_codes__are_the_same_to_zarr_tensorstore_and_us(
    coded_cache: Path, name: str, grid: int, generation: int
) -> None:
    """Bytes as they lie; in a bad row, which has none, zeros."""
    reader = CacheReader(str(coded_cache), teachers={name: grid})
    codes, _, ok = ours(reader, name, generation)
    found = read_by_both(
        coded_cache / str(reader.sets[name][grid]) / f"{generation:06d}" / "tokens"
    )
    assert found.dtype == codes.dtype == np.uint8
    form = reader.teachers[name].codecs[grid].row_form(grid**2)
    assert found.shape == codes.shape
    assert found.shape == (reader.generations[generation].rows, form.height, form.width)
    np.testing.assert_array_equal(found, codes)
    assert found[ok].any(axis=(1, 2)).all()
    assert not found[~ok].any()
    assert (~ok).sum() == (6 if generation == 0 else 0)


@pytest.mark.parametrize(("name", "grid"), SETS)
def test_cls__is_the_same_to_duckdb_pyarrow_and_us(whole_cache: Path, name: str, grid: int) -> None:
    reader = CacheReader(str(whole_cache), teachers={name: grid})
    lines = Catalog(open_store(str(whole_cache))).snapshot(2).table.to_pylist()
    lines = [line for line in lines if line["set"] == str(reader.sets[name][grid])]
    lines.sort(key=lambda line: (line["generation"], line["shard"]))
    files = [str(whole_cache / line["cls_key"]) for line in lines]
    by_pyarrow = pa.concat_tables(pq.read_table(file) for file in files)
    with duckdb.connect() as connection:
        query = "select * from read_parquet(?) order by row"
        by_duckdb = connection.sql(query, params=[files]).to_arrow_table()
    plain = [column for column in by_pyarrow.column_names if column != "cls"]
    assert by_duckdb.select(plain).to_pylist() == by_pyarrow.select(plain).to_pylist()
    stored = np.array(by_pyarrow["cls"].to_pylist(), np.float32)
    # DuckDB has no float16: it shows the same values as float32.
    np.testing.assert_array_equal(stored, np.array(by_duckdb["cls"].to_pylist(), np.float32))
    good = np.array(by_pyarrow["status"].to_pylist()) == "ok"
    assert good.sum() == len(good) - 6
    vectors = np.concatenate([ours(reader, name, generation)[1] for generation in (0, 1)])
    np.testing.assert_array_equal(vectors[good], stored[good])
    assert not vectors[~good].any()


def test_cls__bad_rows_have_nan_and_a_reason(whole_cache: Path) -> None:
    with duckdb.connect() as connection:
        rows = connection.execute(
            "select key, list_aggregate(cls::float[], 'max'), reason from read_parquet(?) "
            "where status = 'bad'",
            [str(whole_cache / "features/*/g2/*/000000/cls/*.parquet")],
        ).fetchall()
    assert {key for key, _, _ in rows} == {"cut.jpg", "empty.jpg", "text.jpg"}
    assert all(math.isnan(value) for _, value, _ in rows)
    assert {reason for key, _, reason in rows if key == "empty.jpg"} == {"the file is empty"}


@pytest.mark.parametrize("generation", [0, 1])
def test_plan__is_the_same_to_duckdb_pyarrow_and_us(whole_cache: Path, generation: int) -> None:
    store = open_store(str(whole_cache))
    commit = Catalog(store).generations()[generation]
    files = [str(whole_cache / part.key) for part in commit.parts]
    by_us = pa.concat_tables(PlanReader(store, commit).batches()).to_pylist()
    with duckdb.connect() as connection:
        query = "select * from read_parquet(?, file_row_number = true) order by file_row_number"
        by_duckdb = connection.sql(query, params=[files]).to_arrow_table()
    assert by_duckdb.drop_columns("file_row_number").to_pylist() == by_us
    assert pa.concat_tables(pq.read_table(file) for file in files).to_pylist() == by_us


def test_format__its_code_runs_as_it_stands(whole_cache: Path) -> None:
    page = (ROOT / "schemas/FORMAT.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert code.count('"runs/quickstart/cache"') == 1
    names: dict[str, Any] = {}
    exec(code.replace('"runs/quickstart/cache"', repr(str(whole_cache))), names)
    one, reader = names["one"], CacheReader(str(whole_cache), teachers={"vit": 2})
    rows, tokens, width = names["raw"].shape
    assert (rows, names["cls"].num_rows) == (one["rows"], one["rows"])
    assert np.isfinite(names["raw"]).any()
    assert names["cls"].column_names[:4] == ["row", "key", "view", "status"]
    assert json.dumps(one["set"]) in json.dumps([line["set"] for line in names["shards"]])
    assert (tokens, width) in {(4, 64), (9, 64), (4, 96), (9, 96)}
    assert reader.snapshot == 2
