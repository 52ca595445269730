"""Log-importance weights equal those of the package data-selection (expected numbers: make_dsir.py)."""

import json
from pathlib import Path

import numpy as np

from pplscape.draw import dsir

EXPECTED = json.loads(Path(__file__).with_name("dsir.json").read_text())


def test_log_weights_of_the_package() -> None:
    ratio = dsir.log_ratio(dsir.count(EXPECTED["target"]), dsir.count(EXPECTED["pool"]))
    features = [dsir.buckets(t) for t in EXPECTED["pool"]]
    sizes = np.array([len(f) for f in features])
    found = dsir.log_weights(ratio, np.concatenate(features), sizes)
    np.testing.assert_allclose(found, EXPECTED["log_weights"], rtol=0, atol=1e-6)
    assert np.ptp(found) > 100, "the weights differ, or the test shows nothing"
