import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pplscape.draw.pool import Draw, Pool
from pplscape.errors import UserError
from pplscape.schema import SCORES, SELECTED


def scores(n=50, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "doc_id": [f"d{i // 3}" for i in range(n)],
            "chunk_index": pa.array([i % 3 for i in range(n)], pa.int32()),
            "char_start": np.arange(n) * 10,
            "char_end": np.arange(n) * 10 + 10,
            "length": pa.array(rng.integers(64, 256, n), pa.int32()),
            "n_tokens": pa.array(np.full(n, 100), pa.int32()),
            "n_bytes": pa.array(np.full(n, 100), pa.int32()),
            "nll_sum": rng.normal(300, 30, n),
            "source": ["ab"[i // 3 % 2] for i in range(n)],
        },
    ).cast(SCORES)


def test_independent_of_row_order_and_parts(tmp_path):
    table = scores()
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)))
    for i, start in enumerate((0, 7, 30)):
        pq.write_table(shuffled.slice(start, (7, 23, 20)[i]), tmp_path / f"part-{i:05d}.parquet")
    one, two = Pool.from_table(table), Pool.read(tmp_path)
    for name in ("doc", "chunk_index", "length", "x", "source", "char_start"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.doc_names.to_pylist() == two.doc_names.to_pylist()
    np.testing.assert_array_equal(one.uniforms(3), two.uniforms(3))


def test_rows_without_a_score_are_counted_not_lost(tmp_path):
    table = scores(10).to_pydict()
    table["nll_sum"][2], table["nll_sum"][3], table["nll_sum"][4] = float("nan"), float("inf"), 1e6
    table["length"][5] = 0
    pq.write_table(pa.table(table, schema=SCORES), tmp_path / "s.parquet")
    pool = Pool.read(tmp_path / "s.parquet")
    assert len(pool) == 6
    assert pool.rejected["row"].to_pylist() == [2, 3, 4, 5]
    assert pool.rejected["reason"].to_pylist() == ["score_not_finite"] * 3 + ["no_tokens"]


def test_duplicates_missing_columns_and_empty_inputs_are_refused(tmp_path):
    table = scores(10)
    with pytest.raises(UserError, match=r"occur twice.*d0#0"):
        Pool.from_table(pa.concat_tables([table, table.slice(0, 1)]))
    pq.write_table(table.drop_columns(["nll_sum"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="lacks nll_sum; it has doc_id"):
        Pool.read(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match="cannot be read"):
        Pool.read(tmp_path / "b.parquet")
    with pytest.raises(UserError, match="no scores at"):
        Pool.read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="None of the 0"):
        Pool.from_table(table.slice(0, 0))


def test_table_of_a_draw():
    pool = Pool.from_table(scores(9))
    times = np.zeros(9, np.int16)
    times[[1, 8]] = [1, 3]
    table = pool.table(Draw(times, "because"))
    assert table.schema == SELECTED
    assert table["repeats"].to_pylist() == [1, 3]
    assert table["doc_id"].to_pylist() == ["d0", "d2"]
    assert table["nll"].to_pylist() == pool.x[[1, 8]].tolist()
    assert table["source"].to_pylist() == ["a", "a"]
