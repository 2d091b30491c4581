"""ptychodus products: read by what their layout says, with h5py and NumPy alone, against the
experiment that was simulated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_dist import read_scan, save_bundle
from ptycho_dist.config import DataConfig
from ptycho_dist.data.scan import ScanError
from ptycho_dist.inference import infer as infer_module
from ptycho_dist.inference.infer import infer
from ptycho_dist.inference.records import Reconstruction
from tests.data.readers.far_field import FarField, simulate
from tests.data.readers.writers import write_patterns, write_product
from tests.inference.bundles import SIZE, untrained_bundle
from tests.scans import small_scan_arrays

GEOMETRY = {"energy_eV": 8765.0, "detector_distance_m": 1.9, "detector_pixel_m": 75e-6}
KEPT = np.array([5, 0, 29, 7, 8, 9, 10, 1, 22, 13])


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what a test of the product need not wait for."""
    monkeypatch.setattr(infer_module, "write_pictures", lambda *_: None)
    monkeypatch.setattr(infer_module, "report_reconstruction", lambda *_, **__: None)


@pytest.fixture
def truth() -> FarField:
    return simulate(modes=2)


@pytest.fixture
def source(truth: FarField, tmp_path: Path) -> Path:
    """The experiment as a plain HDF5 file, positions in metres."""
    path = tmp_path / "source.h5"
    with h5py.File(path, "w") as file:
        file["counts"], file["positions"], file["probe"], file["object"] = (
            truth.counts,
            truth.positions_m,
            truth.probe,
            truth.object,
        )
        file["energy_eV"], file["distance_m"], file["pixel_m"] = (
            truth.energy_eV,
            truth.distance_m,
            truth.detector_pixel_m,
        )
    return path


HDF5 = {"diffraction": "counts", "positions": "positions", "positions_unit": "m", "probe": "probe"}
HDF5 |= {"energy_eV": "energy_eV", "distance_m": "distance_m", "detector_pixel_m": "pixel_m"}


@pytest.fixture
def bundle(truth: FarField, tmp_path: Path) -> Path:
    counts = truth.counts.astype(float)
    amplitude = np.sqrt(counts).astype(np.float32)
    nphotons = counts.sum(axis=(1, 2)).mean()
    save_bundle(
        tmp_path / "bundle.zip",
        untrained_bundle(amplitude, truth.probe, nphotons, measurement="counts"),
    )
    return tmp_path / "bundle.zip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """What a file says in ptychodus' words, checked for what its readers ask for: positions and
    centre as (y, x), metres."""

    indexes: np.ndarray
    positions_m: np.ndarray
    probe: np.ndarray
    object: np.ndarray
    centre_m: np.ndarray
    pixel_m: float
    energy_eV: float
    distance_m: float
    photons: float
    losses: list[tuple[int, float]]

    @classmethod
    def read(cls, path: Path) -> Product:
        with h5py.File(path) as file:
            attributes = dict(file.attrs)
            assert isinstance(attributes["name"], str)
            assert isinstance(attributes["comments"], str)
            assert attributes["exposure_time_s"] == 0
            probe, stored = file["probe"][()], file["object"][()]
            assert probe.ndim == 4, "variations, modes, rows, columns"
            assert stored.ndim == 3, "layers, rows, columns"
            assert len(probe) == len(stored) == 1
            assert file["object_layer_spacing_m"].shape == (0,), "one less than layers"
            pixels = {
                file[key].attrs[f"pixel_{side}_m"]
                for key in ("probe", "object")
                for side in ("width", "height")
            }
            assert len(pixels) == 1, "square, and the same"
            energies = {attributes["photon_energy_eV"], attributes["probe_energy_eV"]}
            assert len(energies) == 1, "both names"
            return cls(
                indexes=file["probe_position_indexes"][()],
                positions_m=np.stack(
                    [file["probe_position_y_m"][()], file["probe_position_x_m"][()]], axis=1
                ),
                probe=probe[0],
                object=stored[0],
                centre_m=np.array(
                    [file["object"].attrs["center_y_m"], file["object"].attrs["center_x_m"]]
                ),
                pixel_m=pixels.pop(),
                energy_eV=energies.pop(),
                distance_m=attributes["detector_object_distance_m"],
                photons=attributes["probe_photon_count"],
                losses=list(
                    zip(
                        file["loss_epochs"][()].tolist(),
                        file["loss_values"][()].tolist(),
                        strict=True,
                    )
                ),
            )

    def predicted_counts(self) -> np.ndarray:
        """(n, N, N): a patch begins half a pattern before its position; the object's corner lies
        half its extent before its centre."""
        size = self.probe.shape[-1]
        corners = (self.positions_m - self.centre_m) / self.pixel_m + (
            np.array(self.object.shape) - size
        ) / 2
        whole = np.floor(corners + 0.5)
        frequency = np.fft.fftfreq(size)
        counts = []
        for corner, (dy, dx) in zip(whole.astype(int), corners - whole, strict=True):
            ramp = np.exp(-2j * np.pi * (frequency[:, None] * dy + frequency * dx))
            shifted = np.fft.ifft2(np.fft.fft2(self.probe.astype(complex)) * ramp)
            wave = shifted * self.object[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
            counts.append(
                (np.abs(np.fft.fftshift(np.fft.fft2(wave, norm="ortho"), axes=(-2, -1))) ** 2).sum(
                    axis=0
                )
            )
        return np.stack(counts)


def require_explains(product: Product, result: Reconstruction) -> None:
    """The photons that inference itself found."""
    predicted = product.predicted_counts().mean(axis=0)
    # Transforms in float32, and a probe stored so.
    np.testing.assert_allclose(
        predicted, result.photons.mean_predicted_pattern, rtol=1e-4, atol=1e-5 * predicted.max()
    )


def test_product_of_a_scan_in_metres(
    truth: FarField, source: Path, bundle: Path, tmp_path: Path
) -> None:
    result = infer(
        bundle, source, tmp_path / "out", read={"hdf5": HDF5}, refine_iterations=2, product=True
    )
    product = Product.read(tmp_path / "out" / "product.h5")
    # Metres to pixels and back in float64.
    np.testing.assert_allclose(product.positions_m, truth.positions_m, rtol=1e-12, atol=1e-18)
    assert product.pixel_m == pytest.approx(truth.object_pixel_m, rel=1e-9)
    assert (product.energy_eV, product.distance_m) == (truth.energy_eV, truth.distance_m)
    assert product.indexes.tolist() == list(range(30))
    # The canvas begins where the first patches do.
    first_corner = truth.corner_m + truth.corners_px.min(axis=0) * truth.object_pixel_m
    np.testing.assert_allclose(
        product.centre_m - np.array(product.object.shape) / 2 * product.pixel_m,
        first_corner,
        rtol=1e-9,
    )
    assert np.array_equal(product.object, result.object)
    assert product.probe.shape == truth.probe.shape
    assert product.photons == pytest.approx(truth.counts.sum(axis=(1, 2)).mean(), rel=1e-12)
    # a probe in float32
    assert (np.abs(product.probe) ** 2).sum(dtype=float) == pytest.approx(product.photons, rel=1e-6)
    require_explains(product, result)
    assert product.losses == list(enumerate(result.summary.refinement.deviance_per_pixel))
    assert len(product.losses) == 3


def test_what_was_written_is_read_as_a_scan(
    truth: FarField, source: Path, bundle: Path, tmp_path: Path
) -> None:
    result = infer(bundle, source, tmp_path / "out", read={"hdf5": HDF5}, product=True)
    patterns = write_patterns(tmp_path / "patterns.h5", truth.counts)
    scan = read_scan(tmp_path / "out" / "product.h5", options=DataConfig(diffraction=str(patterns)))
    np.testing.assert_allclose(scan.positions_px, result.positions_px - result.origin_px, atol=1e-9)
    assert scan.object_guess is not None
    assert np.array_equal(scan.object_guess, result.object)
    assert scan.geometry is not None
    assert dataclasses.astuple(scan.geometry) == pytest.approx(
        (truth.energy_eV, truth.distance_m, truth.detector_pixel_m), rel=1e-9
    )
    assert scan.nphotons == pytest.approx(truth.counts.sum(axis=(1, 2)).mean(), rel=1e-12)
    assert scan.origin_m == pytest.approx(
        tuple(truth.corner_m + truth.corners_px.min(axis=0) * truth.object_pixel_m), rel=1e-9
    )


def test_product_of_a_product_names_the_same_patterns(
    truth: FarField, bundle: Path, tmp_path: Path
) -> None:
    patterns = write_patterns(tmp_path / "patterns.h5", truth.counts)
    before = write_product(tmp_path / "before.h5", truth, KEPT)
    result = infer(
        bundle, before, tmp_path / "out", read={"diffraction": str(patterns)}, product=True
    )
    product = Product.read(tmp_path / "out" / "product.h5")
    assert product.indexes.tolist() == KEPT.tolist()
    np.testing.assert_allclose(product.positions_m, truth.positions_m[KEPT], rtol=1e-12, atol=1e-18)
    require_explains(product, result)


def test_metres_are_those_of_the_file_where_its_pixel_is_a_little_off(
    truth: FarField, bundle: Path, tmp_path: Path
) -> None:
    """A pixel of the object half a percent from what energy, distance and detector pixel give is
    accepted, and stays."""
    patterns = write_patterns(tmp_path / "patterns.h5", truth.counts)
    before = write_product(tmp_path / "before.h5", truth)
    pixel_m = 1.005 * truth.object_pixel_m
    with h5py.File(before, "a") as file:
        for key in ("probe", "object"):
            file[key].attrs["pixel_width_m"] = file[key].attrs["pixel_height_m"] = pixel_m
    read = {"diffraction": str(patterns), "detector_pixel_m": truth.detector_pixel_m}
    infer(bundle, before, tmp_path / "out", read=read, product=True)
    product = Product.read(tmp_path / "out" / "product.h5")
    np.testing.assert_allclose(product.positions_m, truth.positions_m, rtol=1e-12, atol=1e-18)
    assert product.pixel_m == pixel_m


@pytest.mark.parametrize("normalization", ["bundle", "scan"])
def test_scan_in_pixels_with_its_geometry_given(
    write_scan: Callable[..., Path], tmp_path: Path, normalization: str
) -> None:
    """Subpixel positions, a trained gain, and a scan of three times the dose: the product predicts
    what inference predicts."""
    arrays = small_scan_arrays()
    trained = untrained_bundle(arrays["diffraction"], arrays["probeGuess"][None], 1e6)
    save_bundle(tmp_path / "bundle.zip", dataclasses.replace(trained, gain=1.25))
    # no pixel of the object lies at (0, 0) by chance
    arrays["ycoords"], arrays["xcoords"] = arrays["ycoords"] + 7, arrays["xcoords"] - 4
    bright = write_scan(arrays=arrays, diffraction=np.sqrt(3) * arrays["diffraction"])
    options = {
        "normalization": normalization,
        "measurement": "amplitude",
        "read": GEOMETRY,
        "product": True,
    }
    result = infer(tmp_path / "bundle.zip", bright, tmp_path / "out", **options)
    product = Product.read(tmp_path / "out" / "product.h5")
    pixel_m = 1.2398419843320026e-06 / 8765.0 * 1.9 / (SIZE * 75e-6)
    np.testing.assert_allclose(
        product.positions_m,
        pixel_m * np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1),
        rtol=1e-9,
    )
    # With the bundle's normalisation the probe is that of the training scan, and the object three
    # times as bright.
    dose = 3e6 if normalization == "scan" else 1e6
    # the scan's mean energy, of float32 amplitudes
    assert product.photons == pytest.approx(1.25**2 * dose, rel=1e-6)
    assert (np.abs(product.probe) ** 2).sum(dtype=float) == pytest.approx(product.photons, rel=1e-6)
    require_explains(product, result)
    assert product.losses == list(enumerate(result.summary.corrections.deviance_per_pixel))


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, ["energy_eV", "detector_distance_m", "detector_pixel_m"]),
        ({"energy_eV": 8000.0}, ["detector_distance_m", "detector_pixel_m"]),
        ({"energy_eV": 8000.0, "detector_pixel_m": 75e-6}, ["detector_distance_m"]),
    ],
)
def test_missing_geometry_is_named_before_anything_is_computed(
    write_scan: Callable[..., Path],
    bundle: Path,
    tmp_path: Path,
    given: dict[str, float],
    missing: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(infer_module, "reconstruct", None)
    with pytest.raises(ScanError) as caught:
        infer(
            bundle,
            write_scan(),
            tmp_path / "out",
            read=given,
            measurement="amplitude",
            product=True,
        )
    said = ", ".join(f"no {name}" for name in missing)
    options = " ".join(f"--data.{name} NUMBER" for name in missing)
    expected = f"the numbers that give a ptychodus product its metres: {options}"
    assert (
        str(caught.value) == f"{tmp_path / 'scan.npz'}: geometry: found {said}, expected {expected}"
    )
    assert not (tmp_path / "out").exists()


def test_pair_whose_object_pixel_is_known_asks_for_energy_and_distance(
    truth: FarField, bundle: Path, tmp_path: Path
) -> None:
    write_patterns(tmp_path / "scan_dp.hdf5", truth.counts)
    with h5py.File(tmp_path / "scan_para.hdf5", "w") as file:
        file["object"], file["probe"] = truth.object[None].astype(np.complex64), truth.probe
        file["object"].attrs["pixel_height_m"] = truth.object_pixel_m
        file["probe_position_y_m"], file["probe_position_x_m"] = (
            truth.positions_m - truth.object_centre_m
        ).T
    with pytest.raises(ScanError, match=r"found no energy_eV, no detector_distance_m, expected"):
        infer(bundle, tmp_path / "scan_dp.hdf5", tmp_path / "out", product=True)
    given = {"energy_eV": truth.energy_eV, "detector_distance_m": truth.distance_m}
    infer(bundle, tmp_path / "scan_dp.hdf5", tmp_path / "out", read=given, product=True)
    product = Product.read(tmp_path / "out" / "product.h5")
    np.testing.assert_allclose(
        product.positions_m, truth.positions_m - truth.object_centre_m, rtol=1e-9, atol=1e-15
    )


def test_product_does_not_replace_the_scan_that_it_is_of(
    truth: FarField, bundle: Path, tmp_path: Path
) -> None:
    patterns = write_patterns(tmp_path / "patterns.h5", truth.counts)
    before = write_product(tmp_path / "product.h5", truth)
    content = before.read_bytes()
    with pytest.raises(
        ValueError, match=r"product\.h5: found the file that the product would replace"
    ):
        infer(bundle, before, tmp_path, read={"diffraction": str(patterns)}, product=True)
    assert before.read_bytes() == content


def test_no_product_unless_asked_for(source: Path, bundle: Path, tmp_path: Path) -> None:
    infer(bundle, source, tmp_path / "out", read={"hdf5": HDF5})
    assert not (tmp_path / "out" / "product.h5").exists()
