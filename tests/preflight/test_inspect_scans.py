"""Tables of a known scan: they say what is known, what training then takes, and what stands in its
way."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_dist.config import Config, parse_mapping
from ptycho_dist.data.prepare import prepare
from ptycho_dist.preflight.inspect_scans import (
    Inspection,
    UntrainableError,
    inspect,
    inspect_scan,
    show,
)
from tests.data.readers.far_field import simulate
from tests.data.readers.writers import write_cxi
from tests.scans import small_scan_arrays

WriteScan = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def told(**data: Any) -> Config:
    return parse_mapping(
        {
            "data": {"measurement": "amplitude", "nphotons": "measured", **data},
            "model": {"base_width": 4},
        }
    )


def severities(inspection: Inspection) -> list[str]:
    return [finding.severity for finding in inspection.findings]


def errors(inspection: Inspection) -> list[str]:
    return [finding.what for finding in inspection.findings if finding.severity == "error"]


def test_scan_in_words(write_scan: WriteScan) -> None:
    arrays = small_scan_arrays(modes=2)
    mask = np.ones((16, 16), dtype=bool)
    mask[0, :5] = False
    found = inspect_scan(write_scan(arrays=arrays, mask=mask), told())
    counts = np.where(mask, arrays["diffraction"].astype(np.float64) ** 2, 0)
    sums = counts.sum(axis=(1, 2))
    described = found.description
    assert described["patterns"] == "37 of 16 x 16 px, float32, 37.9 kB unpacked"
    assert (
        described["measurement"]
        == "amplitude; the numbers are roots of whole numbers: they look like amplitude"
    )
    assert (
        described["counts a pattern"]
        == f"mean {sums.mean():.6g}, from {sums.min():.6g} to {sums.max():.6g}"
    )
    zeros = 100 * (arrays["diffraction"][:, mask] == 0).mean()
    assert described["counts a pixel"] == f"largest {counts.max():.6g}; {zeros:.3g} % are 0"
    assert described["nphotons"] == "the file does not say"
    assert described["mask"] == "5 of 256 pixels do not count"
    assert described["geometry"].startswith("the file does not say")
    # the second one is half as high
    assert described["probe"].startswith("2 modes (80 %, 20 %), diameter ")
    assert described["object"].startswith("42 x 42 px; explains the patterns to ")
    assert re.fullmatch(r"\d\d %: 2\.668 px a step, beam of \d\.\d+ px", described["overlap"])


def test_geometry_in_words(tmp_path: Path) -> None:
    truth = simulate()
    described = inspect_scan(
        write_cxi(tmp_path / "scan.cxi", truth), told(measurement="counts", group_size=1)
    ).description
    assert described["geometry"] == (
        "8765 eV (0.1415 nm), 1.9 m to a detector of 75 um pixels; pixel of the object "
        f"{1e9 * truth.object_pixel_m:.6g} nm"
    )
    assert described["object"] == "none: nothing to compare a reconstruction with"


def test_training_takes_what_is_shown(write_scan: WriteScan) -> None:
    """The very numbers of the preparation, from the same options."""
    config = told(subset_size=30, val_fraction=0.2, group_size=3)
    path = write_scan()
    rows = {row.what: row.found for row in inspect_scan(path, config).training}
    data = prepare(told(subset_size=30, val_fraction=0.2, group_size=3, path=str(path)).data)
    assert "24 training patterns, 6 validation patterns, groups of 3" in rows["subset"]
    assert data.subset.fingerprint in rows["subset"]
    assert rows["normalization"].startswith(f"r = {data.calibration.rms_factor!r} ")
    assert rows["nphotons"] == f"{data.calibration.nphotons!r} (source: measured)"
    assert rows["intensity scale"].startswith(f"s = {data.calibration.intensity_scale!r} ")
    assert re.search(r"[\d.]+ MB a rank: parameters ", rows["memory"])
    assert severities(inspect_scan(path, config)) == []


def test_dose_that_nobody_says_is_an_error(write_scan: WriteScan) -> None:
    found = inspect_scan(write_scan(), told(nphotons=None))
    (error,) = [finding for finding in found.findings if finding.severity == "error"]
    assert "set data.nphotons to the mean photons a pattern" in error.what
    assert "--data.nphotons NUMBER" in error.fix
    assert [row.what for row in found.training] == [
        "probe and size",
        "subset",
        "patterns",
        "normalization",
        "network",
    ]
    assert found.nphotons is None


@pytest.mark.parametrize(
    ("holds", "changed"),
    [
        ("amplitude", {}),
        ("counts", {"diffraction": np.round(small_scan_arrays()["diffraction"] ** 2)}),
    ],
)
def test_scan_whose_measurement_nobody_says_is_shown_by_its_looks(
    write_scan: WriteScan, holds: str, changed: dict[str, Any]
) -> None:
    found = inspect_scan(write_scan(**changed), told(measurement=None))
    assert errors(found) == [
        "measurement: found nothing in the file's metadata nor in data.measurement, expected "
        "amplitude (the diffraction array holds "
        "sqrt of counts) or counts"
    ]
    assert found.description["measurement"].startswith("nobody says; the numbers are ")
    assert found.description["measurement"].endswith(
        f"they look like {holds}. Shown here as {holds}"
    )
    assert found.training == []
    assert found.statistics is not None
    assert found.statistics.counts.mean() == pytest.approx(
        (small_scan_arrays()["diffraction"] ** 2).sum(axis=(1, 2)).mean(), rel=1e-6
    )


@pytest.mark.parametrize(("subset_size", "severity"), [(None, "error"), (5, "warning")])
def test_bad_pattern_is_an_error_where_training_meets_it(
    write_scan: WriteScan, subset_size: int | None, severity: str
) -> None:
    diffraction = small_scan_arrays()["diffraction"]
    diffraction[3, 4, 5] = np.nan
    found = inspect_scan(
        write_scan(diffraction=diffraction),
        told(subset_size=subset_size, subset_seed=1, group_size=1),
    )
    assert set(severities(found)) == {severity}
    assert any("1 NaN numbers" in finding.what for finding in found.findings)


def test_scan_without_a_probe(tmp_path: Path) -> None:
    path = write_cxi(
        tmp_path / "scan.cxi",
        simulate(),
        lambda file: file.pop("entry_1/instrument_1/source_1/probe"),
    )
    found = inspect_scan(path, told(measurement="counts"))
    assert errors(found) == [
        "probe: found none in the file and no data.probe, expected --data.probe FILE (.npy, .npz "
        "or file.h5:/dataset)"
    ]
    assert found.description["probe"] == "none in the file and no data.probe"
    assert found.statistics is not None


def test_what_can_not_be_read_as_a_scan_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    path = write_cxi(
        tmp_path / "scan.cxi",
        simulate(),
        lambda file: file.pop("entry_1/instrument_1/source_1/energy"),
    )
    found = inspect_scan(path, told(measurement="counts"))
    assert found.scan is None
    assert "/entry_1/instrument_1/detector_1/data" in [entry.name for entry in found.contents]
    (message,) = errors(found)
    assert message.startswith("geometry: found positions in metres, but no energy_eV")
    assert "--data.energy_eV NUMBER" in message
    assert found.training == []


def test_file_of_no_format(tmp_path: Path, capsys: Capture) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["somewhere/else"] = np.ones((3, 16, 16))
    (tmp_path / "notes.txt").write_text("not a scan")
    for name, kind in (("scan.h5", "HDF5 of no known format"), ("notes.txt", "of no known format")):
        show(found := inspect_scan(tmp_path / name, told()))
        assert len(errors(found)) == 1
        assert errors(found)[0].startswith("format: found ")
        first = capsys.readouterr().out.splitlines()[0]
        assert first.startswith(f"{tmp_path / name}: ")
        assert first.endswith(f", {kind}")


def test_unreadable_patterns_are_told_once(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        truth = simulate()
        file.create_dataset("frames", data=truth.counts, chunks=(1, 16, 16), compression="gzip")
        file["y"], file["x"], file["p"] = (
            8.0 + truth.corners_px[:, 0],
            8.0 + truth.corners_px[:, 1],
            truth.probe,
        )
        place = file["frames"].id.get_chunk_info(7)
    with (tmp_path / "scan.h5").open("r+b") as stream:
        stream.seek(place.byte_offset)
        stream.write(bytes(40))
    names = {
        "diffraction": "frames",
        "positions_y": "y",
        "positions_x": "x",
        "positions_unit": "px",
        "probe": "p",
    }
    found = inspect_scan(tmp_path / "scan.h5", told(measurement="counts", group_size=1, hdf5=names))
    assert len(errors(found)) == 1
    assert "can't be read" in errors(found)[0]
    assert severities(found).count("warning") <= 1


def test_tables_picture_and_copy(write_scan: WriteScan, tmp_path: Path, capsys: Capture) -> None:
    path = write_scan()
    inspect(told(), [path], tmp_path / "pictures", tmp_path / "copy.h5")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 120
    assert out.startswith(f"{path}: ")
    for title in (
        "what is in the file",
        "what it is as a scan",
        "what training would take from it",
        "what to look at\nnothing",
    ):
        assert title in out
    assert f"picture: {tmp_path / 'pictures' / 'scan.npz.inspect.png'}" in out
    assert (tmp_path / "pictures" / "scan.npz.inspect.png").read_bytes().startswith(b"\x89PNG")
    inspect(told(measurement=None), [tmp_path / "copy.h5"], tmp_path / "pictures")


def test_each_of_several_scans_is_shown_and_the_bad_ones_are_named(
    write_scan: WriteScan, tmp_path: Path, capsys: Capture
) -> None:
    good, bad, missing = (
        write_scan(),
        write_scan("bad.npz", drop=("probeGuess",)),
        tmp_path / "missing.npz",
    )
    (tmp_path / "other").mkdir()
    again = write_scan("again.npz").rename(tmp_path / "other" / "scan.npz")
    with pytest.raises(
        UntrainableError,
        match=rf"2 of 4 scans can't be trained on with these options: {missing}, {bad}",
    ):
        inspect(told(), [good, missing, bad, again], tmp_path)
    out = capsys.readouterr().out
    assert f"{missing}: file: found no such file" in out
    assert out.count("what is in the file") == 3
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "scan.npz.2.inspect.png",
        "scan.npz.inspect.png",
    ]


def test_only_one_scan_is_converted(write_scan: WriteScan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found 2 scans, expected one: convert them one by one"):
        inspect(told(), [write_scan(), write_scan("other.npz")], tmp_path, tmp_path / "copy.npz")
    assert not (tmp_path / "copy.npz").exists()


def test_existing_copy_is_refused_before_anything_is_read(
    write_scan: WriteScan, tmp_path: Path, capsys: Capture
) -> None:
    path = write_scan()
    with pytest.raises(ValueError, match="expected a new name"):
        inspect(told(), [path], tmp_path, path)
    assert capsys.readouterr().out == ""


def test_markup_and_control_characters_of_a_file_are_text(tmp_path: Path, capsys: Capture) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["[red]name[/red] \x1b[31m"] = np.zeros(3)
    show(inspect_scan(tmp_path / "scan.h5", told()))
    out = capsys.readouterr().out
    assert "/[red]name[/red] ?[31m" in out
    assert "\x1b" not in out
