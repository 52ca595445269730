import subprocess
import sys

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pplscape.draw.permanent import hash_documents, mix, uniforms


def by_the_definition(doc_id):
    """The hash of a document id in plain Python integers."""

    def mixed(z):
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    content = doc_id.encode()
    hashed = mixed(len(content))
    for start in range(0, len(content), 8):
        hashed = mixed(hashed ^ int.from_bytes(content[start : start + 8], "little"))
    return hashed


def test_known_values():
    """Frozen: a change here changes every subset ever drawn."""
    assert mix(np.array([0, 1], dtype=np.uint64)).tolist() == [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1]
    assert hash_documents(["a", "é"]).tolist() == [6774081908283191102, 12213114911819052007]
    np.testing.assert_array_equal(
        uniforms(7, ["a", "a", "b"], [0, 1, 0]), [0.7691119731977619, 0.7283811692312553, 0.42749127751760796]
    )


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=20), st.integers(0, 5))
def test_document_hashes_follow_the_definition(ids, skipped):
    expected = [by_the_definition(i) for i in ids]
    assert hash_documents(ids).tolist() == expected
    for type_ in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        sliced = pa.array(["xy"] * skipped + ids, pa.string()).cast(type_).slice(skipped)
        assert hash_documents(sliced).tolist() == expected
    assert hash_documents(pa.array([None, "b"])).tolist() == [by_the_definition(""), by_the_definition("b")]


def test_same_in_another_process():
    code = "from pplscape.draw.permanent import uniforms; print(uniforms(3, ['x', 'y'], [5, 6]).tolist())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(uniforms(3, ["x", "y"], [5, 6]).tolist())


def test_uniform_and_independent_of_neighbours_and_seeds():
    ids, index = [f"d{i // 10}" for i in range(20_000)], np.arange(20_000) % 10
    h = uniforms(0, ids, index)
    assert stats.kstest(h, "uniform").pvalue > 0.001
    assert 0 < h.min() < h.max() < 1
    assert len(set(h.tolist())) == len(h)
    assert abs(np.corrcoef(h[:-1], h[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(h, uniforms(1, ids, index))[0, 1]) < 0.03


def test_negative_and_huge_seeds_work():
    assert uniforms(-1, ["a"], [0])[0] != uniforms(2**70, ["a"], [0])[0]
