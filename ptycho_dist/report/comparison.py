"""How close a reconstructed object is to a reference, once the ambiguities of ptychography are
fitted.

Diffraction intensities leave the object's global phase open; a shift of the patterns on the
detector adds a linear phase ramp, an error of the probe's energy a gain, and a shift of the probe
in its window a shift of the object. These are fitted (`alignment`); what is left is scored for
amplitude and phase apart, where the scan really looked.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

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
"""Of the median illumination inside the scanned box: what got less light was not really looked at,
and is not compared."""

# Far above the rounding of complex64 (6e-8), far below any contrast one would call an image: of the
# mean amplitude, and in radians.
_ROUNDING = 1e-6
_FARTHEST_PX = 1e9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageScores:
    """Agreement of two real images, in the unit of the images where there is one.

    NaN is what is undefined: every score but the errors where the reference is constant, a
    similarity where no window fits.

    Attributes
    ----------
    correlation : float
        Pearson's, -1 to 1; 0 for an image without contrast.
    mae : float
    psnr_db : float
        Of `data_range`; infinite for equal images.
    ssim, ms_ssim : float
        Of `data_range`, at most 1.
    data_range : float
        Largest less smallest value of the reference.
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
    """Agreement of an object with a reference where the scan looked.

    Attributes
    ----------
    phase : ImageScores
        Radians. Errors are those of the phase difference, which does not see where either phase
        wraps.
    amplitude : ImageScores
        In the reference's unit.
    frc : FourierRingCorrelation
        Of the complex fields.
    complex_error : float
        `alignment.residual`: 0 is equal, 1 is what an unrelated field gets.
    ms_ssim_scales : int
        At how many scales MS-SSIM was taken, at most 5.
    shift_px : tuple of float
        (y, x) by which the object was moved.
    phase_ramp_rad_per_px : tuple of float
        Ramp (y, x) found in the object relative to the reference, and removed.
    global_phase_rad : float
        Added to the object's phase.
    amplitude_gain : float
        Factor applied to the object's amplitude.
    box_px : tuple of int
        (y0, y1, x0, x1), half-open, scan coordinates: the rows and columns that were looked at.
    num_pixels : int
        Pixels in the box that every number above is taken over.
    aligned : ndarray, complex64, (y1 - y0, x1 - x0)
        The object in the box, shift, ramp, global phase and gain fitted to `reference`; NaN outside
        the compared pixels.
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
        """Fourier ring correlations by the name of what was correlated."""
        return {"object": self.frc, "phase": self.phase.frc, "amplitude": self.amplitude.frc}

    def numbers(self) -> dict[str, float | int | list[float] | list[int] | None]:
        """Everything but the arrays, ready for JSON, which has neither NaN nor infinity: a number
        that is undefined or infinite is None.

        A resolution is a full period; None says that not even the longest is resolved.
        """
        curves = self.ring_correlations()
        numbers: dict[str, float | int | list[float] | list[int] | None] = {
            "phase_correlation": self.phase.correlation,
            "amplitude_correlation": self.amplitude.correlation,
        }
        for name, curve in curves.items():
            numbers[f"{name}_frc_half_bit_resolution_px"] = curve.resolution_px(curve.half_bit)
            numbers[f"{name}_frc_0.5_resolution_px"] = curve.resolution_px(0.5)
        numbers |= {
            "complex_error": self.complex_error,
            "phase_mae_rad": self.phase.mae,
            "amplitude_mae": self.amplitude.mae,
            "phase_psnr_db": self.phase.psnr_db,
            "amplitude_psnr_db": self.amplitude.psnr_db,
            "phase_ssim": self.phase.ssim,
            "amplitude_ssim": self.amplitude.ssim,
            "phase_ms_ssim": self.phase.ms_ssim,
            "amplitude_ms_ssim": self.amplitude.ms_ssim,
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


def compare_with_reference(
    object_: ArrayLike,
    *,
    origin_px: ArrayLike,
    valid: ArrayLike,
    illumination: ArrayLike,
    positions_px: ArrayLike,
    reference: ArrayLike,
) -> ObjectComparison:
    """Align a reconstructed object with a reference and score it where the scan looked.

    Compared are the pixels inside the positions' bounding box that are valid and got at least
    `LIT_FRACTION` of the median illumination of the box's valid pixels. Beyond the outermost
    positions a pixel is seen by few patterns, and by the probe's rim.

    The object is moved by the `alignment.register` shift. Phases are taken without the reference's
    own ramp, which a scan can't tell, so that an object without contrast can't score by being given
    that ramp; and relative to the mean phase of the reference. Where the reference's phase stays
    within pi of its mean nothing wraps. Where it does not, both images are cut at the same phase,
    opposite to the mean, and only pixels close to that cut can lower the correlation. The gain
    makes the mean amplitudes equal, so that amplitudes are compared as such however bad the phase
    is.

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
        The object to compare with; ``reference[0, 0]`` lies at scan coordinate (0, 0).

    Returns
    -------
    ObjectComparison

    Warns
    -----
    RuntimeWarning
        Amplitude or phase of the reference is constant: correlation, SSIM and MS-SSIM with it are
        undefined (NaN).

    Raises
    ------
    ValueError
        Wrong shapes or types; values that are not finite; no pixel to compare; a field that is zero
        throughout.
    """
    object_ = _complex_image("the object", object_)
    reference = _complex_image("the reference", reference)
    valid, illumination = np.asarray(valid), np.asarray(illumination)
    if valid.dtype != np.bool_ or valid.shape != object_.shape:
        raise ValueError(
            f"the valid mask is {valid.dtype} {valid.shape}; expected bool {object_.shape}, the "
            "shape of the object"
        )
    if illumination.dtype.kind not in "fiu" or illumination.shape != object_.shape:
        raise ValueError(
            f"the illumination is {illumination.dtype} {illumination.shape}; expected real "
            f"numbers {object_.shape}"
        )
    origin = np.asarray(origin_px, dtype=np.float64)
    if origin.shape != (2,) or not np.isfinite(origin).all() or np.abs(origin).max() > _FARTHEST_PX:
        raise ValueError(
            f"origin_px is {origin.tolist()}; expected two finite numbers (y, x), pixels"
        )
    positions = np.asarray(positions_px, dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2 or len(positions) == 0:
        raise ValueError(
            f"positions_px has shape {positions.shape}; expected (n, 2) with n >= 1, (y, x) a row"
        )
    _require_finite("positions_px", positions)
    if np.abs(positions).max() > _FARTHEST_PX:
        raise ValueError(
            f"positions_px reach {np.abs(positions).max():.3g}; expected pixels, at most "
            f"{_FARTHEST_PX:.0e}"
        )
    _require_finite("the object, where it is valid,", object_[valid])
    _require_finite("the illumination, where the object is valid,", illumination[valid])

    y0, y1, x0, x1 = box = _common_box(positions, object_.shape, origin, reference.shape)
    first = np.array([y0, x0])
    looked_at = valid & (
        illumination
        >= LIT_FRACTION
        * _median_illumination(illumination, valid, first - origin, (y1 - y0, x1 - x0))
    )
    resampler = Resampler(object_, looked_at, first - origin, (y1 - y0, x1 - x0))
    compared = resampler.moved(np.zeros(2)).mask
    if not compared.any():
        raise ValueError(
            f"no pixel of the box (y0, y1, x0, x1) = {box} is valid; expected at least one"
        )
    in_box = reference[y0:y1, x0:x1]
    _require_finite("the reference, where it is compared,", in_box[compared])
    target = OnReference(np.where(compared, in_box, 0).astype(np.complex128), compared)
    _require_light("the object", resampler.moved(np.zeros(2)))
    _require_light("the reference", target)
    reference_ramp = fit_phase_ramp(target.field)
    target = target._replace(field=remove_phase_ramp(target.field, reference_ramp))

    shift = register(resampler, target)
    moved = resampler.moved(shift)
    mask = moved.mask & target.mask
    moved, target = (OnReference(np.where(mask, on.field, 0), mask) for on in (moved, target))
    ramp = fit_phase_ramp(moved.field * target.field.conj())
    field = remove_phase_ramp(moved.field, ramp)
    global_phase = mean_phase(field.conj() * target.field)
    gain = float(np.abs(target.field).sum() / np.abs(field).sum())
    aligned = gain * np.exp(1j * global_phase) * field

    with np.errstate(invalid="ignore"):  # what is not compared may be infinite
        reference_without_ramp = remove_phase_ramp(in_box, reference_ramp).astype(np.complex64)
    mean_rad = mean_phase(target.field)
    difference = np.where(mask, np.angle(aligned * target.field.conj()), 0)
    phases = [relative_phase(on_box, mean_rad) for on_box in (aligned, target.field)]
    amplitudes = [np.abs(on_box) for on_box in (aligned, target.field)]
    return ObjectComparison(
        phase=_scores(
            "phase",
            phases[0],
            phases[1],
            difference,
            mask,
            zero=phases[1][mask].min(),
            rounding=_ROUNDING,
        ),
        amplitude=_scores(
            "amplitude",
            amplitudes[0],
            amplitudes[1],
            amplitudes[0] - amplitudes[1],
            mask,
            zero=0.0,
            rounding=_ROUNDING * amplitudes[1][mask].mean(),
        ),
        frc=fourier_ring_correlation(aligned, target.field, mask),
        complex_error=residual(moved, target),
        ms_ssim_scales=num_scales(mask),
        shift_px=(float(shift[0]), float(shift[1])),
        phase_ramp_rad_per_px=(ramp[0] - reference_ramp[0], ramp[1] - reference_ramp[1]),
        global_phase_rad=global_phase,
        amplitude_gain=gain,
        box_px=box,
        num_pixels=int(np.count_nonzero(mask)),
        aligned=np.where(mask, aligned, complex(np.nan, np.nan)).astype(np.complex64),
        reference=reference_without_ramp,
    )


def _scores(
    name: str,
    image: NDArray[np.floating],
    reference: NDArray[np.floating],
    difference: NDArray[np.floating],
    mask: NDArray[np.bool_],
    *,
    zero: float,
    rounding: float,
) -> ImageScores:
    """Scores of an image; errors are those of `difference`, and SSIM, whose luminance needs one,
    takes `zero` for zero."""
    data_range = float(np.ptp(reference[mask]))
    undefined = reference[mask].std() <= rounding
    if undefined:
        message = (
            f"{name} correlation, PSNR and similarities are undefined (NaN): the {name} of "
            "the reference is constant"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    above_zero = (image - zero, reference - zero, data_range, mask)
    return ImageScores(
        correlation=correlation(image, reference, mask, rounding=rounding),
        mae=mean_absolute_error(reference + difference, reference, mask),
        psnr_db=math.nan
        if undefined
        else peak_signal_noise_ratio(reference + difference, reference, data_range, mask),
        ssim=math.nan if undefined else structural_similarity(*above_zero),
        ms_ssim=math.nan if undefined else multiscale_structural_similarity(*above_zero),
        data_range=data_range,
        frc=fourier_ring_correlation(image, reference, mask),
    )


def _median_illumination(
    illumination: NDArray[np.floating],
    valid: NDArray[np.bool_],
    box_in_object: NDArray[np.float64],
    box_shape: tuple[int, int],
) -> float:
    """Median illumination of the valid pixels in the box; 0 where there are none."""
    (top, left), (rows, columns) = np.rint(box_in_object).astype(int), box_shape
    box = np.s_[max(top, 0) : top + rows, max(left, 0) : left + columns]
    return float(np.median(illumination[box][valid[box]])) if valid[box].any() else 0.0


def _require_light(name: str, image: OnReference) -> None:
    if not image.field.any():
        raise ValueError(
            f"{name} is zero at all {np.count_nonzero(image.mask)} compared pixels; expected a "
            "field to align"
        )


def _complex_image(name: str, image: ArrayLike) -> NDArray[np.complexfloating]:
    image = np.asarray(image)
    if image.ndim != 2 or image.dtype.kind != "c":
        raise ValueError(
            f"{name} is {image.dtype} {image.shape}; expected a complex array (rows, columns)"
        )
    return image


def _require_finite(name: str, values: NDArray[np.number]) -> None:
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ValueError(
            f"{name} holds NaN or infinity at {bad} of {values.size} values; expected finite "
            "numbers"
        )


def _common_box(
    positions_px: NDArray[np.float64],
    object_shape: tuple[int, ...],
    origin_px: NDArray[np.float64],
    reference_shape: tuple[int, ...],
) -> tuple[int, int, int, int]:
    """Rows and columns, half-open, that the scanned box, the object and the reference share."""
    bounds: list[int] = []
    for axis, name in enumerate(("rows", "columns")):
        scanned = (
            math.ceil(positions_px[:, axis].min()),
            math.floor(positions_px[:, axis].max()) + 1,
        )
        covered = (
            math.ceil(origin_px[axis] - WHOLE_PIXEL_WITHIN_PX),
            math.floor(origin_px[axis] + WHOLE_PIXEL_WITHIN_PX) + object_shape[axis],
        )
        start, stop = (
            max(scanned[0], covered[0], 0),
            min(scanned[1], covered[1], reference_shape[axis]),
        )
        if start >= stop:
            raise ValueError(
                f"no {name} to compare: the positions span {scanned[0]}..{scanned[1]}, the object "
                f"{covered[0]}.."
                f"{covered[1]} and the reference 0..{reference_shape[axis]} (half-open, scan "
                "coordinates); "
                "expected them to overlap"
            )
        bounds += [start, stop]
    return bounds[0], bounds[1], bounds[2], bounds[3]
