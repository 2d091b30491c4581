"""How close a reconstructed object is to a reference, once the ambiguities of ptychography are fitted.

Diffraction intensities leave the object's global phase open; a shift of the patterns on the detector adds a linear
phase ramp, and an error of the probe's energy a gain. These are fitted. A common shift of object and positions is not.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage

# Far above the rounding of complex64 (6e-8), far below any contrast one would call an image.
_CONSTANT_BELOW = 1e-6
_WHOLE_PIXEL_WITHIN = 1e-6
_FARTHEST_PX = 1e9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ObjectComparison:
    """Agreement of an object with a reference inside the scanned box.

    A correlation or an SSIM is NaN where it is undefined, that is where an image is constant (for SSIM: the reference).
    A `RuntimeWarning` then says which.

    Attributes
    ----------
    phase_correlation, amplitude_correlation : float
        Pearson correlation over the compared pixels after alignment, -1 to 1.
    complex_error : float
        RMS of (aligned - reference) over RMS of reference: 0 is equal, 1 is what an unrelated field gets.
    phase_ssim, amplitude_ssim : float
        Mean structural similarity, at most 1.
    amplitude_gain : float
        Factor applied to the object's amplitude.
    phase_ramp_rad_per_px : tuple of float
        Ramp (y, x) found in the object relative to the reference, and removed.
    box_px : tuple of int
        (y0, y1, x0, x1), half-open, scan coordinates: the compared rows and columns.
    num_pixels : int
        Valid pixels in the box: what every number above is taken over.
    aligned : ndarray, complex64, (y1 - y0, x1 - x0)
        The object in the box with ramp, global phase and gain fitted to the reference; NaN outside the valid pixels.
    reference : ndarray, complex64, (y1 - y0, x1 - x0)
        The reference in the box.
    """

    phase_correlation: float
    amplitude_correlation: float
    complex_error: float
    phase_ssim: float
    amplitude_ssim: float
    amplitude_gain: float
    phase_ramp_rad_per_px: tuple[float, float]
    box_px: tuple[int, int, int, int]
    num_pixels: int
    aligned: NDArray[np.complex64]
    reference: NDArray[np.complex64]

    def numbers(self) -> dict[str, float | int | list[float] | list[int] | None]:
        """Everything but the arrays, ready for JSON (which has no NaN: an undefined number is None)."""
        scores = {
            "phase_correlation": self.phase_correlation,
            "amplitude_correlation": self.amplitude_correlation,
            "complex_error": self.complex_error,
            "phase_ssim": self.phase_ssim,
            "amplitude_ssim": self.amplitude_ssim,
            "amplitude_gain": self.amplitude_gain,
        }
        return {
            **{name: None if math.isnan(score) else score for name, score in scores.items()},
            "phase_ramp_rad_per_px": list(self.phase_ramp_rad_per_px),
            "box_px": list(self.box_px),
            "num_pixels": self.num_pixels,
        }


def compare_with_reference(
    object_: ArrayLike,
    *,
    origin_px: ArrayLike,
    valid: ArrayLike,
    positions_px: ArrayLike,
    reference: ArrayLike,
) -> ObjectComparison:
    """Align a reconstructed object with a reference and score it inside the scanned box.

    Alignment minimises ``sum |c exp(-i(a y + b x)) object - reference|^2`` over the ramp (a, b) and the complex
    factor c (Fienup, Appl. Opt. 36, 8352 (1997)). Phases are then taken as ``angle(field * conj(mean(reference)))``,
    the same mean for both fields. Where the reference's phase stays within pi of its mean nothing wraps. Where it does
    not, both images are cut at the same phase, opposite to the mean, and only pixels close to that cut can lower the
    correlation.

    An object of constant phase may be given a ramp by the fit: its correlation is then that of the fitted plane.

    Parameters
    ----------
    object_ : array, complex, (H, W)
        The reconstruction.
    origin_px : array, (2,)
        Scan coordinate (y, x) of ``object_[0, 0]``, pixels. Where it is not whole the object is resampled onto the
        reference's pixels by cubic splines, and valid pixels within two of the mask's edge are dropped.
    valid : array, bool, (H, W)
        Pixels that were reconstructed. The others may hold anything, NaN included.
    positions_px : array, (n, 2)
        Patch centres (y, x) in scan coordinates, pixels. Their bounding box is the scanned box.
    reference : array, complex, (Hr, Wr)
        The object to compare with; ``reference[0, 0]`` lies at scan coordinate (0, 0).

    Returns
    -------
    ObjectComparison

    Raises
    ------
    ValueError
        Wrong shapes or types; values that are not finite; no pixel to compare; a field that is zero throughout.
    """
    object_ = _complex_image("the object", object_)
    reference = _complex_image("the reference", reference)
    valid = np.asarray(valid)
    if valid.dtype != np.bool_ or valid.shape != object_.shape:
        raise ValueError(f"the valid mask is {valid.dtype} {valid.shape}; expected bool {object_.shape}, the shape of the object")
    origin = np.asarray(origin_px, dtype=np.float64)
    if origin.shape != (2,) or not np.isfinite(origin).all() or np.abs(origin).max() > _FARTHEST_PX:
        raise ValueError(f"origin_px is {origin.tolist()}; expected two finite numbers (y, x), pixels")
    positions = np.asarray(positions_px, dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2 or len(positions) == 0:
        raise ValueError(f"positions_px has shape {positions.shape}; expected (n, 2) with n >= 1, (y, x) a row")
    _require_finite("positions_px", positions)
    if np.abs(positions).max() > _FARTHEST_PX:
        raise ValueError(f"positions_px reach {np.abs(positions).max():.3g}; expected pixels, at most {_FARTHEST_PX:.0e}")
    _require_finite("the object, where it is valid,", object_[valid])

    object_, valid, (origin_y, origin_x) = _on_whole_pixels(np.where(valid, object_, 0), valid, origin)
    y0, y1, x0, x1 = box = _common_box(positions, object_.shape, (origin_y, origin_x), reference.shape)
    window = np.s_[y0 - origin_y : y1 - origin_y, x0 - origin_x : x1 - origin_x]
    mask = valid[window]
    num_pixels = int(np.count_nonzero(mask))
    if num_pixels == 0:
        raise ValueError(f"no pixel of the box (y0, y1, x0, x1) = {box} is valid; expected at least one")
    reference_box = reference[y0:y1, x0:x1]
    _require_finite("the reference, where it is compared,", reference_box[mask])

    field: NDArray[np.complexfloating] = np.where(mask, object_[window], 0).astype(np.complex128)
    target = np.where(mask, reference_box, 0).astype(np.complex128)
    for name, energy in (("object", np.vdot(field, field).real), ("reference", np.vdot(target, target).real)):
        if energy == 0:
            raise ValueError(f"the {name} is zero at all {num_pixels} compared pixels; expected a field to align")

    ramp = fit_phase_ramp(field * target.conj())
    field = remove_phase_ramp(field, ramp)
    factor = np.vdot(field, target) / np.vdot(field, field)
    aligned = factor * field

    mean_rad = mean_phase(target)
    phase, phase_target = relative_phase(aligned, mean_rad), relative_phase(target, mean_rad)
    amplitude, amplitude_target = np.abs(aligned), np.abs(target)
    return ObjectComparison(
        phase_correlation=_correlation("phase", phase[mask], phase_target[mask]),
        # Amplitudes in units of their means: what counts as constant is then the same for any gain.
        amplitude_correlation=_correlation("amplitude", *(a[mask] / (a[mask].mean() or 1.0) for a in (amplitude, amplitude_target))),
        complex_error=float(np.linalg.norm(aligned - target) / np.linalg.norm(target)),
        phase_ssim=_structural_similarity("phase", phase, phase_target, mask),
        amplitude_ssim=_structural_similarity("amplitude", amplitude, amplitude_target, mask),
        amplitude_gain=float(abs(factor)),
        phase_ramp_rad_per_px=ramp,
        box_px=box,
        num_pixels=num_pixels,
        aligned=np.where(mask, aligned, complex(np.nan, np.nan)).astype(np.complex64),
        reference=reference_box.astype(np.complex64),
    )


def fit_phase_ramp(product: NDArray[np.complexfloating]) -> tuple[float, float]:
    """Find the ramp (a, b) that maximises ``|sum product exp(-i(a y + b x))|``.

    The peak of the zero-padded spectrum gives the ramp to a quarter of a fringe across the image, however often the
    phase wraps. It is refined on the wrapped phase residuals by steps that minimise the quadratic bound
    ``-cos(t + d) <= -cos(t) + d sin(t) + d^2 / 2``, so that no step can lower the sum and no phase is ever unwrapped.

    Parameters
    ----------
    product : ndarray, complex, (H, W)
        ``field * conj(reference)``, or a field alone for its own ramp; zero where nothing is known.

    Returns
    -------
    tuple of float
        Ramp (a, b) along y and x, radians a pixel, each between -pi and pi but for the refinement.
    """
    height, width = product.shape
    padded = (fft.next_fast_len(2 * height), fft.next_fast_len(2 * width))
    spectrum = np.abs(fft.fft2(product.astype(np.complex64), padded))
    peak_y, peak_x = np.unravel_index(np.argmax(spectrum), padded)
    ramp_y = 2 * np.pi * fft.fftfreq(padded[0])[peak_y]
    ramp_x = 2 * np.pi * fft.fftfreq(padded[1])[peak_x]

    y = np.arange(height) - (height - 1) / 2
    x = np.arange(width) - (width - 1) / 2
    weight = np.abs(product)
    weight_y, weight_x = weight.sum(axis=1), weight.sum(axis=0)
    cross = y @ weight @ x
    normal = np.array(
        [
            [weight_y.sum(), weight_y @ y, weight_x @ x],
            [weight_y @ y, weight_y @ y**2, cross],
            [weight_x @ x, cross, weight_x @ x**2],
        ]
    )
    # The pseudo-inverse leaves the ramp alone along an axis that a single row or column of pixels says nothing about.
    inverse = np.linalg.pinv(normal, hermitian=True)
    for _ in range(100):
        residual = product * np.exp(-1j * ramp_y * y)[:, None] * np.exp(-1j * ramp_x * x)
        sine = (residual * np.exp(-1j * np.angle(residual.sum()))).imag
        _, step_y, step_x = inverse @ (sine.sum(), sine.sum(axis=1) @ y, sine.sum(axis=0) @ x)
        ramp_y += step_y
        ramp_x += step_x
        if abs(step_y) * height + abs(step_x) * width < 1e-9:
            break
    return float(ramp_y), float(ramp_x)


def remove_phase_ramp(field: NDArray[np.complexfloating], ramp_rad_per_px: tuple[float, float]) -> NDArray[np.complexfloating]:
    """Return ``field`` (H, W) without the ramp (y, x), whose phase is zero at ``field[0, 0]``."""
    y, x = (np.exp(-1j * ramp * np.arange(size)) for ramp, size in zip(ramp_rad_per_px, field.shape, strict=True))
    return field * y[:, None] * x


def mean_phase(field: NDArray[np.complexfloating]) -> float:
    """Circular mean of the phase, radians, each pixel weighted by its amplitude."""
    return float(np.angle(field.sum(dtype=np.complex128)))


def relative_phase(field: NDArray[np.complexfloating], zero_rad: float) -> NDArray[np.floating]:
    """Phase of ``field`` relative to ``zero_rad``, radians, wrapped to -pi .. pi."""
    phase: NDArray[np.floating] = np.angle(field * np.exp(-1j * zero_rad))
    return phase


def _complex_image(name: str, image: ArrayLike) -> NDArray[np.complexfloating]:
    image = np.asarray(image)
    if image.ndim != 2 or image.dtype.kind != "c":
        raise ValueError(f"{name} is {image.dtype} {image.shape}; expected a complex array (rows, columns)")
    return image


def _require_finite(name: str, values: NDArray[np.number]) -> None:
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ValueError(f"{name} holds NaN or infinity at {bad} of {values.size} values; expected finite numbers")


def _on_whole_pixels(
    object_: NDArray[np.complexfloating], valid: NDArray[np.bool_], origin_px: NDArray[np.float64]
) -> tuple[NDArray[np.complexfloating], NDArray[np.bool_], tuple[int, int]]:
    """Resample an object whose origin is fractional onto whole scan coordinates; otherwise hand it back as it is."""
    whole = np.ceil(origin_px - _WHOLE_PIXEL_WITHIN).astype(np.int64)
    origin = (int(whole[0]), int(whole[1]))
    fraction = np.maximum(whole - origin_px, 0.0)
    if (fraction <= _WHOLE_PIXEL_WITHIN).all() or not valid.any():
        return object_, valid, origin
    # The spline's filter reaches past the mask: continue the valid pixels there, lest a jump to zero ring inside.
    nearest = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    resampled = ndimage.shift(object_[tuple(nearest)], -fraction, order=3, mode="nearest")
    # A cubic spline reads four pixels along each axis: all of them must be valid.
    inner = ndimage.binary_erosion(valid, structure=np.ones((3, 3), dtype=bool))
    inner = ndimage.shift(inner.astype(np.float64), -fraction, order=1, mode="constant") > 1 - _WHOLE_PIXEL_WITHIN
    return resampled, inner, origin


def _common_box(
    positions_px: NDArray[np.float64],
    object_shape: tuple[int, ...],
    origin_px: tuple[int, int],
    reference_shape: tuple[int, ...],
) -> tuple[int, int, int, int]:
    """Rows and columns, half-open, that the scanned box, the object and the reference share."""
    bounds: list[int] = []
    for axis, name in enumerate(("rows", "columns")):
        scanned = (math.ceil(positions_px[:, axis].min()), math.floor(positions_px[:, axis].max()) + 1)
        covered = (origin_px[axis], origin_px[axis] + object_shape[axis])
        start, stop = max(scanned[0], covered[0], 0), min(scanned[1], covered[1], reference_shape[axis])
        if start >= stop:
            raise ValueError(
                f"no {name} to compare: the positions span {scanned[0]}..{scanned[1]}, the object {covered[0]}.."
                f"{covered[1]} and the reference 0..{reference_shape[axis]} (half-open, scan coordinates); "
                "expected them to overlap"
            )
        bounds += [start, stop]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _correlation(name: str, image: NDArray[np.floating], target: NDArray[np.floating]) -> float:
    """Pearson correlation; NaN, with a warning, where either image is constant."""
    image, target = image - image.mean(), target - target.mean()
    for whose, values in (("object", image), ("reference", target)):
        if np.sqrt(np.mean(values**2)) < _CONSTANT_BELOW:
            message = f"{name} correlation is undefined (NaN): the {name} of the {whose} is constant"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            return math.nan
    return float(np.clip(image @ target / (np.linalg.norm(image) * np.linalg.norm(target)), -1.0, 1.0))


def _structural_similarity(name: str, image: NDArray[np.floating], target: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    """Mean SSIM of Wang et al., IEEE Trans. Image Process. 13, 600 (2004): Gaussian window of 1.5 px, K1 .01, K2 .03.

    One affine map, which takes the target's range to 0..1, is applied to both images first: SSIM depends on where zero
    lies, and a phase has no zero of its own. The window weighs valid pixels only. NaN, with a warning, for a constant
    target.
    """
    low, high = target[mask].min(), target[mask].max()
    if high - low < _CONSTANT_BELOW * max(abs(low), abs(high), _CONSTANT_BELOW):
        message = f"{name} SSIM is undefined (NaN): the {name} of the reference is constant"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
        return math.nan
    image, target = ((np.where(mask, values, low) - low) / (high - low) for values in (image, target))

    def window(values: NDArray[np.floating]) -> NDArray[np.floating]:
        blurred: NDArray[np.floating] = ndimage.gaussian_filter(np.where(mask, values, 0.0), 1.5, mode="constant", truncate=3.5)
        return blurred[mask]

    weight = window(np.ones_like(image))
    mean, mean_target = window(image) / weight, window(target) / weight
    variance = window(image**2) / weight - mean**2
    variance_target = window(target**2) / weight - mean_target**2
    covariance = window(image * target) / weight - mean * mean_target
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean * mean_target + c1) / (mean**2 + mean_target**2 + c1)
    structure = (2 * covariance + c2) / (variance + variance_target + c2)
    return float(np.mean(luminance * structure))
