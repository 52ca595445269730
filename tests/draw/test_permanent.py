import subprocess
import sys

import numpy as np
from scipy import stats

from pplscape.draw.permanent import hash_documents, mix, uniforms


def test_known_values():
    """Frozen: a change here changes every subset ever drawn."""
    assert mix(np.array([0, 1], dtype=np.uint64)).tolist() == [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1]
    assert hash_documents(["a", "é"]).tolist() == [3405396810240292928, 3394012004367669963]
    np.testing.assert_array_equal(
        uniforms(7, ["a", "a", "b"], [0, 1, 0]), [0.22393521643586933, 0.3513955900555451, 0.3094154720566683]
    )


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
