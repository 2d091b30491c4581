"""Similarity of a reconstructed object and a reference, once the ambiguities of ptychography are
fitted.

Diffraction intensities leave the object's global phase open. A shift of the patterns on the
detector adds a linear phase ramp, an error of the probe's energy a gain, and a shift of the probe
in its window a shift of the object. These are fitted (`alignment`); the rest is scored for
amplitude and phase separately, over the scanned area.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_dist.report.alignment import (
    WHOLE_PIXEL_WITHIN_PX,
    OnReference,
    Resampler,
    fit_phase_ramp,
    mean_phase,
    register,
    relative_phase,
    remove_phase_ramp,
    residual,
)
from ptycho_dist.report.checks import (
    CheckedObject,
    checked_object,
    checked_positions,
    complex_image,
    require_finite,
)
from ptycho_dist.report.fourier_ring import FourierRingCorrelation, fourier_ring_correlation
from ptycho_dist.report.metrics import (
    correlation,
    mean_absolute_error,
    multiscale_structural_similarity,
    num_scales,
    peak_signal_noise_ratio,
    structural_similarity,
)

LIT_FRACTION = 0.1
"""Least illumination of a compared pixel, relative to the median inside the scanned box."""

# Far above the rounding of complex64 (6e-8), far below any visible contrast; relative to the mean
# amplitude, and in radians.
_ROUNDING = 1e-6

Number = float | int | list[float] | list[int] | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageScores:
    """Similarity of two real images, in the unit of the images where there is one.

    Undefined scores are NaN: all but the errors if the reference is constant, similarities if no
    window fits.

    Attributes
    ----------
    correlation : float
        Pearson's, -1 to 1; 0 for an image without contrast.
    mae : float
    psnr_db : float
        Relative to `data_range`; infinite for equal images.
    ssim, ms_ssim : float
        For `data_range`, at most 1.
    data_range : float
        Largest minus smallest value of the reference.
    frc : FourierRingCorrelation
    """

    correlation: float
    mae: float
    psnr_db: float
    ssim: float
    ms_ssim: float
    data_range: float
    frc: FourierRingCorrelation


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ObjectComparison:
    """Similarity of an object and a reference over the scanned area.

    Attributes
    ----------
    phase : ImageScores
        Radians. Errors are those of the phase difference, which does not depend on wraps.
    amplitude : ImageScores
        In the reference's unit.
    frc : FourierRingCorrelation
        Of the complex fields.
    complex_error : float
        `alignment.residual`: 0 for equal fields, 1 for unrelated ones.
    ms_ssim_scales : int
        Number of scales of MS-SSIM, at most 5.
    shift_px : tuple of float
        (y, x) by which the object was moved.
    phase_ramp_rad_per_px : tuple of float
        Ramp (y, x) of the object relative to the reference, which was removed.
    global_phase_rad : float
        Added to the object's phase.
    amplitude_gain : float
        Factor applied to the object's amplitude.
    box_px : tuple of int
        (y0, y1, x0, x1), half-open, scan coordinates: the compared rows and columns.
    num_pixels : int
        Number of compared pixels in the box.
    aligned : ndarray, complex64, (y1 - y0, x1 - x0)
        The object in the box; shift, ramp, global phase and gain are fitted to `reference`. NaN
        outside the compared pixels.
    reference : ndarray, complex64, (y1 - y0, x1 - x0)
        The reference in the box, without its own phase ramp.
    """

    phase: ImageScores
    amplitude: ImageScores
    frc: FourierRingCorrelation
    complex_error: float
    ms_ssim_scales: int
    shift_px: tuple[float, float]
    phase_ramp_rad_per_px: tuple[float, float]
    global_phase_rad: float
    amplitude_gain: float
    box_px: tuple[int, int, int, int]
    num_pixels: int
    aligned: NDArray[np.complex64]
    reference: NDArray[np.complex64]

    def ring_correlations(self) -> dict[str, FourierRingCorrelation]:
        """Return the Fourier ring correlations by name."""
        return {"object": self.frc, "phase": self.phase.frc, "amplitude": self.amplitude.frc}

    def numbers(self) -> dict[str, Number]:
        """Return everything but the arrays, ready for JSON.

        Undefined and infinite numbers are None. Resolutions are full periods; None if not even the
        longest is resolved.
        """
        images, curves = (
            {"phase": self.phase, "amplitude": self.amplitude},
            self.ring_correlations(),
        )
        numbers: dict[str, Number] = {
            f"{name}_correlation": images[name].correlation for name in images
        }
        for name, curve in curves.items():
            numbers[f"{name}_frc_half_bit_resolution_px"] = curve.resolution_px(curve.half_bit)
            numbers[f"{name}_frc_0.5_resolution_px"] = curve.resolution_px(0.5)
        numbers["complex_error"] = self.complex_error
        numbers |= {"phase_mae_rad": self.phase.mae, "amplitude_mae": self.amplitude.mae}
        for score in ("psnr_db", "ssim", "ms_ssim"):
            numbers |= {f"{name}_{score}": getattr(images[name], score) for name in images}
        numbers |= {
            "ms_ssim_scales": self.ms_ssim_scales,
            "phase_data_range_rad": self.phase.data_range,
            "amplitude_data_range": self.amplitude.data_range,
            "shift_px": list(self.shift_px),
            "phase_ramp_rad_per_px": list(self.phase_ramp_rad_per_px),
            "global_phase_rad": self.global_phase_rad,
            "amplitude_gain": self.amplitude_gain,
            "box_px": list(self.box_px),
            "num_pixels": self.num_pixels,
            "frc_frequency_cycles_per_px": self.frc.frequency_cycles_per_px.tolist(),
        }
        for name, curve in curves.items():
            numbers[f"{name}_frc"] = curve.correlation.tolist()
            numbers[f"{name}_frc_half_bit"] = curve.half_bit.tolist()
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in numbers.items()
        }


class _Fit(NamedTuple):
    """An object aligned with a reference, over the pixels of both."""

    moved: OnReference
    target: OnReference
    aligned: NDArray[np.complexfloating]
    shift_px: NDArray[np.float64]
    ramp: tuple[float, float]
    global_phase_rad: float
    gain: float


def compare_with_reference(
    object_: ArrayLike,
    *,
    origin_px: ArrayLike,
    valid: ArrayLike,
    illumination: ArrayLike,
    positions_px: ArrayLike,
    reference: ArrayLike,
) -> ObjectComparison:
    """Align a reconstructed object with a reference and score it over the scanned area.

    Compared are the pixels inside the positions' bounding box that are valid and got at least
    `LIT_FRACTION` of the median illumination of the box's valid pixels. Beyond the outermost
    positions a pixel is seen by few patterns, and by the probe's rim.

    The object is moved by the `alignment.register` shift. Phases are taken without the reference's
    own ramp, which a scan can't determine; otherwise an object without contrast would score by
    being given that ramp. They are relative to the mean phase of the reference. If the reference's
    phase stays within pi of its mean nothing wraps. Otherwise both images are cut at the same
    phase, opposite to the mean, and only pixels close to that cut can lower the correlation. The
    gain makes the mean amplitudes equal, so that amplitudes are comparable even if the phases are
    not.

    Parameters
    ----------
    object_ : array, complex, (H, W)
        The reconstruction.
    origin_px : array, (2,)
        Scan coordinate (y, x) of ``object_[0, 0]``, pixels, whole or not.
    valid : array, bool, (H, W)
        Pixels that were reconstructed. The others may hold anything, NaN included.
    illumination : array, real, (H, W)
        Probe intensity summed over the positions, any unit.
    positions_px : array, (n, 2)
        Patch centres (y, x) in scan coordinates, pixels. Their bounding box is the scanned box.
    reference : array, complex, (Hr, Wr)
        The reference object; ``reference[0, 0]`` lies at scan coordinate (0, 0).

    Warns
    -----
    RuntimeWarning
        Amplitude or phase of the reference is constant: correlation, SSIM and MS-SSIM with it are
        undefined (NaN).

    Raises
    ------
    ValueError
        Wrong shapes or types; NaN or infinite values; no pixel to compare; a field that is zero
        throughout.
    """
    reference = complex_image("the reference", reference)
    found = checked_object(object_, origin_px, valid)
    light = np.asarray(illumination)
    if light.dtype.kind not in "fiu" or light.shape != found.field.shape:
        raise ValueError(
            f"the illumination is {light.dtype} {light.shape}; expected real "
            f"numbers {found.field.shape}"
        )
    require_finite("the illumination, where the object is valid,", light[found.valid])
    y0, y1, x0, x1 = box = _common_box(checked_positions(positions_px), found, reference.shape)
    in_box = reference[y0:y1, x0:x1]
    resampler, target = _in_box(found, light, in_box, box)
    reference_ramp = fit_phase_ramp(target.field)
    target = target._replace(field=remove_phase_ramp(target.field, reference_ramp))
    fit = _fit(resampler, target)
    mask, target = fit.target.mask, fit.target
    with np.errstate(invalid="ignore"):  # what is not compared may be infinite
        reference_without_ramp = remove_phase_ramp(in_box, reference_ramp).astype(np.complex64)
    return ObjectComparison(
        phase=_phase_scores(fit.aligned, target),
        amplitude=_amplitude_scores(fit.aligned, target),
        frc=fourier_ring_correlation(fit.aligned, target.field, mask),
        complex_error=residual(fit.moved, target),
        ms_ssim_scales=num_scales(mask),
        shift_px=(float(fit.shift_px[0]), float(fit.shift_px[1])),
        phase_ramp_rad_per_px=(fit.ramp[0] - reference_ramp[0], fit.ramp[1] - reference_ramp[1]),
        global_phase_rad=fit.global_phase_rad,
        amplitude_gain=fit.gain,
        box_px=box,
        num_pixels=int(np.count_nonzero(mask)),
        aligned=np.where(mask, fit.aligned, complex(np.nan, np.nan)).astype(np.complex64),
        reference=reference_without_ramp,
    )


def _common_box(
    positions_px: NDArray[np.float64], found: CheckedObject, reference_shape: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """Return the rows and columns, half-open, that the scanned box, the object and the reference
    share."""
    bounds: list[int] = []
    for axis, name in enumerate(("rows", "columns")):
        positions, origin = positions_px[:, axis], found.origin_px[axis]
        scanned = math.ceil(positions.min()), math.floor(positions.max()) + 1
        first = math.ceil(origin - WHOLE_PIXEL_WITHIN_PX)
        last = math.floor(origin + WHOLE_PIXEL_WITHIN_PX) + found.field.shape[axis]
        start = max(scanned[0], first, 0)
        stop = min(scanned[1], last, reference_shape[axis])
        if start >= stop:
            raise ValueError(
                f"no {name} to compare: the positions span {scanned[0]}..{scanned[1]}, the object "
                f"{first}..{last} and the reference 0..{reference_shape[axis]} (half-open, scan "
                "coordinates); expected them to overlap"
            )
        bounds += [start, stop]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _in_box(
    found: CheckedObject,
    illumination: NDArray[np.floating],
    reference: NDArray[np.complexfloating],
    box: tuple[int, int, int, int],
) -> tuple[Resampler, OnReference]:
    """Return the object, and the reference over the pixels that are compared if the object is not
    moved."""
    offset_px = np.array([box[0], box[2]]) - found.origin_px
    (top, left), (rows, columns) = np.rint(offset_px).astype(int), reference.shape
    window = np.s_[max(top, 0) : top + rows, max(left, 0) : left + columns]
    light, valid = illumination[window], found.valid[window]
    median = float(np.median(light[valid])) if valid.any() else 0.0
    lit = found.valid & (illumination >= LIT_FRACTION * median)
    resampler = Resampler(found.field, lit, offset_px, (rows, columns))
    unmoved = resampler.moved(np.zeros(2))
    if not unmoved.mask.any():
        raise ValueError(
            f"no pixel of the box (y0, y1, x0, x1) = {box} is valid; expected at least one"
        )
    require_finite("the reference, where it is compared,", reference[unmoved.mask])
    field = np.where(unmoved.mask, reference, 0).astype(np.complex128)
    target = OnReference(field, unmoved.mask)
    _require_light("the object", unmoved)
    _require_light("the reference", target)
    return resampler, target


def _fit(resampler: Resampler, target: OnReference) -> _Fit:
    """Fit shift, phase ramp, global phase and gain of an object to a reference without ramp."""
    shift = register(resampler, target)
    moved = resampler.moved(shift)
    mask = moved.mask & target.mask
    moved, target = (OnReference(np.where(mask, on.field, 0), mask) for on in (moved, target))
    ramp = fit_phase_ramp(moved.field * target.field.conj())
    field = remove_phase_ramp(moved.field, ramp)
    global_phase = mean_phase(field.conj() * target.field)
    gain = float(np.abs(target.field).sum() / np.abs(field).sum())
    aligned = gain * np.exp(1j * global_phase) * field
    return _Fit(moved, target, aligned, shift, ramp, global_phase, gain)


def _phase_scores(aligned: NDArray[np.complexfloating], target: OnReference) -> ImageScores:
    mean_rad = mean_phase(target.field)
    image, reference = (relative_phase(field, mean_rad) for field in (aligned, target.field))
    difference = np.where(target.mask, np.angle(aligned * target.field.conj()), 0)
    zero = reference[target.mask].min()
    return _scores("phase", image, reference, difference, target.mask, zero, _ROUNDING)


def _amplitude_scores(aligned: NDArray[np.complexfloating], target: OnReference) -> ImageScores:
    image, reference = np.abs(aligned), np.abs(target.field)
    rounding = _ROUNDING * reference[target.mask].mean()
    return _scores("amplitude", image, reference, image - reference, target.mask, 0.0, rounding)


def _scores(
    name: str,
    image: NDArray[np.floating],
    reference: NDArray[np.floating],
    difference: NDArray[np.floating],
    mask: NDArray[np.bool_],
    zero: float,
    rounding: float,
) -> ImageScores:
    """Return the scores of an image. Errors are those of `difference`; SSIM, whose luminance needs
    a zero, is relative to `zero`."""
    data_range = float(np.ptp(reference[mask]))
    undefined = reference[mask].std() <= rounding
    if undefined:
        message = (
            f"{name} correlation, PSNR and similarities are undefined (NaN): the {name} of "
            "the reference is constant"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    above_zero = (image - zero, reference - zero, data_range, mask)
    as_image = reference + difference
    return ImageScores(
        correlation=correlation(image, reference, mask, rounding=rounding),
        mae=mean_absolute_error(as_image, reference, mask),
        psnr_db=math.nan
        if undefined
        else peak_signal_noise_ratio(as_image, reference, data_range, mask),
        ssim=math.nan if undefined else structural_similarity(*above_zero),
        ms_ssim=math.nan if undefined else multiscale_structural_similarity(*above_zero),
        data_range=data_range,
        frc=fourier_ring_correlation(image, reference, mask),
    )


def _require_light(name: str, image: OnReference) -> None:
    if not image.field.any():
        raise ValueError(
            f"{name} is zero at all {np.count_nonzero(image.mask)} compared pixels; expected a "
            "field to align"
        )
