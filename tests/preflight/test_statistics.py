"""One pass over the patterns, compared with NumPy over all of them at once, whatever the pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ptycho_dist.data.readers import read_scan
from ptycho_dist.preflight import statistics as module
from ptycho_dist.preflight.statistics import pattern_statistics
from tests.scans import small_scan_arrays

WriteScan = Callable[..., Path]


@pytest.fixture(params=[1, 5 * 16**2, 1 << 20], ids=["one by one", "five by five", "all at once"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_PIXELS", request.param)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("measurement", ["amplitude", "counts"])
def test_statistics_are_those_of_all_patterns(write_scan: WriteScan, measurement: str) -> None:
    amplitude = small_scan_arrays()["diffraction"].astype(np.float64)
    mask = np.arange(256).reshape(16, 16) % 5 > 0
    stored = (
        amplitude.astype(np.float32)
        if measurement == "amplitude"
        else np.round(amplitude**2).astype(np.uint16)
    )
    found = pattern_statistics(read_scan(write_scan(diffraction=stored, mask=mask), measurement))  # type: ignore[arg-type]
    values = np.where(mask, stored.astype(np.float64), 0)
    counts = values**2 if measurement == "amplitude" else values
    # float64 sums of float32 squares in another order.
    np.testing.assert_allclose(found.counts, counts.sum(axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.mean_pattern, counts.mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(found.largest, values.max(axis=0))
    assert found.num_at_largest == np.count_nonzero(values == values.max())
    assert found.zero_fraction == np.count_nonzero(values[:, mask] == 0) / values[:, mask].size
    assert found.num_invalid == found.first_invalid == {}
    assert found.num_telling > 100
    assert found.num_whole_squares == found.num_telling
    assert (found.num_whole == found.num_telling) == (measurement == "counts")


@pytest.mark.usefixtures("pieces")
def test_numbers_that_are_no_measurement_are_counted_and_left_out(write_scan: WriteScan) -> None:
    stored = small_scan_arrays()["diffraction"]
    sound = pattern_statistics(read_scan(write_scan("sound.npz"), "amplitude"))
    stored[[7, 3, 30], [1, 2, 2], [9, 8, 8]] = np.nan
    stored[12, 0, 0], stored[36, 15, 15] = np.inf, -2
    mask = np.ones((16, 16), dtype=bool)
    mask[5, 5] = False
    stored[:, 5, 5] = np.nan  # does not count
    found = pattern_statistics(read_scan(write_scan(diffraction=stored, mask=mask), "amplitude"))
    assert found.num_invalid == {"NaN": 3, "infinite": 1, "negative": 1}
    assert found.first_invalid == {
        "NaN": (3, 2, 8),
        "infinite": (12, 0, 0),
        "negative": (36, 15, 15),
    }
    assert np.isfinite(found.counts).all()
    elsewhere = np.ones((16, 16), dtype=bool)
    elsewhere[[1, 2, 0, 15, 5], [9, 8, 0, 15, 5]] = False
    np.testing.assert_allclose(
        found.mean_pattern[elsewhere], sound.mean_pattern[elsewhere], rtol=1e-12
    )


@pytest.mark.usefixtures("pieces")
def test_numbers_at_the_limit_of_their_type(write_scan: WriteScan) -> None:
    stored = np.round(small_scan_arrays()["diffraction"] ** 2).astype(np.uint16)
    stored[4:9, 2, 3] = 65535
    found = pattern_statistics(read_scan(write_scan(diffraction=stored), "counts"))
    assert found.at_type_limit[2, 3] == found.at_type_limit.sum() == 5


@pytest.mark.usefixtures("pieces")
def test_largest_number_is_counted_wherever_it_is_met_again(write_scan: WriteScan) -> None:
    stored = np.minimum(small_scan_arrays()["diffraction"], 20).astype(np.float32)
    found = pattern_statistics(read_scan(write_scan(diffraction=stored), "amplitude"))
    assert found.num_at_largest == np.count_nonzero(stored == 20) > 8
