"""Probes that are trained: the same on every rank, kept in checkpoint and bundle, and what a run
begins with."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_dist import load_bundle, read_scan
from ptycho_dist.config import Config, DataConfig, Hdf5Config, ModelConfig
from ptycho_dist.data.prepare import prepare
from ptycho_dist.model.first_probe import find_first_probe
from ptycho_dist.scale.normalization import normalize
from ptycho_dist.training.start import Start
from tests.scans import MASKED_HDF5, dead_pixels, small_scan_arrays
from tests.training.runs import metrics, settings, stop_after_the_first_epoch, train_one

TRAINED: dict[str, Any] = {"model__probe_trainable": True, "model__probe_modes": 2}


def energy(probe: np.ndarray) -> float:
    return float((np.abs(probe.astype(complex)) ** 2).sum())


def refined_probe(run_dir: Path) -> np.ndarray:
    (probe,) = load_bundle(run_dir / "bundle.zip").refined_probes.values()
    return probe


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a probe of twice the right width."""
    y, x = np.indices((16, 16)) - 8
    probe = np.exp(-(y**2 + x**2) / (8 * (16 / 6) ** 2)).astype(np.complex64)
    path = tmp_path_factory.mktemp("scan") / "scan.npz"
    np.savez(path, **{**small_scan_arrays(), "probeGuess": probe})
    return path


def test_number_of_ranks_changes_nothing_and_all_end_with_the_same_bits(
    on_ranks: Callable[..., Any], scan: Path, tmp_path: Path
) -> None:
    probes = []
    for world_size in (1, 2, 3):
        run_dir = tmp_path / f"run{world_size}"
        first, *others = on_ranks(
            world_size, train_and_tell_probe, settings(scan, run_dir, **TRAINED)
        )
        assert all(other == first for other in others)
        probes.append(refined_probe(run_dir))
        # The parameters themselves too, after the last step: what goes astray in the gauge would be
        # found nowhere else.
        parameters = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)[
            "state_dict"
        ]["trainable_probe.modes"]
        assert float(parameters.square().sum()) == pytest.approx(64, rel=1e-5)
    for probe in probes:
        assert probe.shape == (2, 16, 16)
        assert energy(probe) == pytest.approx(64, rel=1e-5)  # (N / 2)^2, float32
        # float32 convolutions of other batch sizes, through ten steps of Adam
        np.testing.assert_allclose(probe, probes[0], atol=1e-3 * np.abs(probes[0]).max())


def train_and_tell_probe(concerns: dict[str, Any]) -> bytes:
    from ptycho_dist.training.callbacks import ProgressLog

    told: list[bytes] = []

    def tell(self: ProgressLog, trainer: Any, module: Any) -> None:
        told.append(module.trainable_probe.modes.detach().numpy().tobytes())

    ProgressLog.on_train_end = tell  # type: ignore[method-assign]
    train_one(concerns)
    return told[0]


def test_training_with_the_probe_explains_more(scan: Path, tmp_path: Path) -> None:
    deviance = {}
    for name, changes in (("fixed", {}), ("refined", TRAINED)):
        train_one(
            settings(scan, tmp_path / name, train__epochs=6, train__learning_rate=5e-3, **changes)
        )
        deviance[name] = float(metrics(tmp_path / name)[-1]["train_deviance_per_pixel"])
    assert deviance["refined"] < 0.7 * deviance["fixed"]
    assert (tmp_path / "refined" / "probe.png").exists()
    assert not (tmp_path / "fixed" / "probe.png").exists()
    assert load_bundle(tmp_path / "fixed" / "bundle.zip").refined_probes == {}


def test_resumed_run_ends_with_the_same_probe(
    on_ranks: Callable[..., Any], scan: Path, tmp_path: Path
) -> None:
    whole, interrupted = (
        settings(scan, tmp_path / name, train__epochs=3, **TRAINED)
        for name in ("whole", "interrupted")
    )
    on_ranks(2, train_one, whole)
    on_ranks(2, stop_after_the_first_epoch, interrupted)
    interrupted["train"]["resume"] = "auto"
    on_ranks(2, train_one, interrupted)
    assert (
        refined_probe(tmp_path / "interrupted").tobytes()
        == refined_probe(tmp_path / "whole").tobytes()
    )
    assert metrics(tmp_path / "interrupted") == metrics(tmp_path / "whole")


def test_each_scan_has_its_own_probe(
    scan: Path, write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    other = write_scan("other.npz", arrays=small_scan_arrays(seed=1))
    concerns = settings(scan, tmp_path / "run", **TRAINED)
    concerns["data"]["path"] = [str(scan), str(other)]
    train_one(concerns)
    bundle = load_bundle(tmp_path / "run" / "bundle.zip")
    assert list(bundle.refined_probes) == [
        read_scan(path, "amplitude").fingerprint for path in (scan, other)
    ]
    first, second = bundle.refined_probes.values()
    assert np.array_equal(first, bundle.probe)
    assert not np.allclose(first, second, atol=1e-2)


def test_fewer_modes_than_the_file_has_are_refused(
    write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    scan = write_scan(arrays=small_scan_arrays(modes=3))
    with pytest.raises(
        ValueError, match=r"model.probe_modes is 2, expected at least the 3 modes of .*scan.npz"
    ):
        train_one(settings(scan, tmp_path / "run", **TRAINED))


def test_modes_that_nobody_trains_are_refused(scan: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"model.probe_modes is 2, expected null where model.probe_trainable is false",
    ):
        train_one(settings(scan, tmp_path / "run", model__probe_modes=2))
    assert not (tmp_path / "run").exists()


# train.init


@pytest.fixture(scope="module")
def first_run(scan: Path) -> Path:
    run_dir = scan.parent / "first"
    train_one(settings(scan, run_dir, train__learning_rate=5e-3, **TRAINED))
    return run_dir / "bundle.zip"


def untrained(scan: Path | list[str], run_dir: Path, init: Path, **changes: Any) -> dict[str, Any]:
    """A run whose steps are too small to be seen in float32."""
    concerns = settings(
        Path("."),
        run_dir,
        train__init=str(init),
        train__epochs=1,
        train__learning_rate=1e-30,
        **changes,
    )
    concerns["data"]["path"] = scan if isinstance(scan, list) else str(scan)
    return concerns


def test_run_begins_with_network_and_probe_of_the_bundle(
    first_run: Path, scan: Path, tmp_path: Path
) -> None:
    train_one(untrained(scan, tmp_path / "again", first_run, **TRAINED))
    before, after = load_bundle(first_run), load_bundle(tmp_path / "again" / "bundle.zip")
    for name, weight in before.weights.items():
        assert torch.equal(after.weights[name], weight), name
    # the gauge's transforms, float32
    np.testing.assert_allclose(after.probe, before.probe, atol=1e-4 * np.abs(before.probe).max())
    log = (tmp_path / "again" / "train.log").read_text()
    assert (
        f"intensity_scale there {before.intensity_scale!r}, here {after.intensity_scale!r}" in log
    )
    assert (
        f"factor r there {before.calibration.rms_factor!r}, here {after.calibration.rms_factor!r}"
        in log
    )


def test_another_scan_derives_its_own_scale_and_begins_with_its_own_probe(
    first_run: Path, write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    arrays = small_scan_arrays(seed=1)
    other = write_scan("other.npz", arrays={**arrays, "diffraction": 3 * arrays["diffraction"]})
    train_one(untrained(other, tmp_path / "new", first_run, data__nphotons=3e6, **TRAINED))
    before, after = load_bundle(first_run), load_bundle(tmp_path / "new" / "bundle.zip")
    assert all(torch.equal(after.weights[name], weight) for name, weight in before.weights.items())
    # sqrt(nphotons) / (N / 2)
    assert after.intensity_scale == pytest.approx(np.sqrt(3e6) / 8, rel=1e-6)
    assert after.calibration.rms_factor != before.calibration.rms_factor
    fresh = settings(
        other,
        tmp_path / "fresh",
        train__epochs=1,
        train__learning_rate=1e-30,
        data__nphotons=3e6,
        **TRAINED,
    )
    train_one(fresh)
    assert np.array_equal(after.probe, load_bundle(tmp_path / "fresh" / "bundle.zip").probe)


def test_refined_probe_of_other_modes_is_not_taken(
    first_run: Path, scan: Path, tmp_path: Path
) -> None:
    changes = {**TRAINED, "model__probe_modes": 3}
    train_one(untrained(scan, tmp_path / "again", first_run, **changes))
    assert refined_probe(tmp_path / "again").shape == (3, 16, 16)
    assert "first probe:" in (tmp_path / "again" / "train.log").read_text()


def test_probe_stays_the_scans_own_where_it_is_not_trained(
    first_run: Path, scan: Path, tmp_path: Path
) -> None:
    train_one(untrained(scan, tmp_path / "again", first_run))
    bundle = load_bundle(tmp_path / "again" / "bundle.zip")
    assert bundle.refined_probes == {}
    own = read_scan(scan, "amplitude").probe
    np.testing.assert_allclose(bundle.probe, own * (8 / np.sqrt(energy(own))), rtol=1e-6)
    assert (
        "the refined probe of train.init is not used"
        in (tmp_path / "again" / "train.log").read_text()
    )


def test_bundle_of_another_network_is_refused(
    first_run: Path, scan: Path, write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError,
        match=r"model.base_width is 8, expected 4, which the network of train.init .*bundle.zip has",
    ):
        train_one(untrained(scan, tmp_path / "wide", first_run, model__base_width=8))
    large = write_scan("large.npz", arrays=small_scan_arrays(pattern_size=32))
    with pytest.raises(
        ValueError,
        match=r"large.npz: found patterns of 32 x 32, expected 16 x 16, which the network of train.init",
    ):
        train_one(untrained(large, tmp_path / "large", first_run))
    with pytest.raises(ValueError, match=r"missing.zip: found no file, expected a bundle"):
        train_one(untrained(scan, tmp_path / "missing", tmp_path / "missing.zip"))


def test_resumed_run_needs_the_same_init_but_not_its_file(
    first_run: Path, scan: Path, tmp_path: Path
) -> None:
    init = Path(shutil.copy(first_run, tmp_path / "init_bundle.zip"))
    concerns = untrained(scan, tmp_path / "again", init, **TRAINED)
    train_one(concerns)
    init.unlink()
    concerns["train"].update(resume="auto", epochs=2)
    train_one(concerns)
    concerns["train"].update(init="another.zip", epochs=3)
    with pytest.raises(
        ValueError,
        match=r"the checkpoint's run began with train.init '.*bundle.zip', found 'another.zip'",
    ):
        train_one(concerns)


def test_what_masked_pixels_hold_changes_no_bit_of_the_first_probe(
    write_masked_scan: Callable[..., Path], tmp_path: Path
) -> None:
    """As ePIE finds it, before the network trains; one pixel less that counts is another probe."""
    found = []
    fewer = dead_pixels(0)
    fewer[8, 10] = False
    for name, mask, garbage in (
        ("dark", dead_pixels(0), 0.0),
        ("spoilt", dead_pixels(0), np.nan),
        ("fewer", fewer, 0.0),
    ):
        config = DataConfig(
            path=str(write_masked_scan(f"{name}.h5", mask, garbage)),
            measurement="amplitude",
            nphotons="measured",
            val_fraction=0,
            hdf5=Hdf5Config(**MASKED_HDF5),
        )
        data = prepare(config)
        calibration = dataclasses.replace(data.calibration, rms_factor=0.1)
        data = dataclasses.replace(data, calibration=calibration)
        model = ModelConfig(probe_trainable=True)
        found.append(Start(config=Config(data=config, model=model)).first_probes(data))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    ignored = find_first_probe(
        torch.from_numpy(normalize(data.scans[0].amplitude(np.arange(37)), 0.1)),
        torch.from_numpy(data.scans[0].positions_px),
        torch.from_numpy(data.scans[0].probe),
    )
    assert (ignored - found[2][0]).abs().max() > 0.01 * ignored.abs().max()


def test_first_probe_of_a_weak_scan_is_that_of_a_strong_one(
    scan: Path, write_scan: Callable[..., Path]
) -> None:
    """The same patterns in an eighth of the light, moved by a hundred pixels and validated by none,
    begin with the same probe."""
    with np.load(scan) as file:
        arrays = dict(file)
    weak = write_scan(
        "weak.npz",
        arrays={
            **arrays,
            "diffraction": arrays["diffraction"] / 8,
            "xcoords": arrays["xcoords"] + 100,
        },
    )
    config = Config(
        data=DataConfig(
            path=[str(scan), str(weak)], measurement="amplitude", nphotons=1e6, val_fraction=0.0
        ),
        model=ModelConfig(base_width=4, probe_trainable=True),
    )
    data = prepare(config.data)
    # an eighth is exact, the roots are rounded
    first, second = data.calibration.scan_brightness
    assert first / second == pytest.approx(8, rel=1e-12)
    strong, of_weak = Start(config=config).first_probes(data)
    # float32, through the sweeps of ePIE
    np.testing.assert_allclose(of_weak, strong, atol=1e-4 * float(strong.abs().max()))
