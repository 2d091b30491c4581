"""Fit of what diffraction intensities leave open: global phase, phase ramp, scale and shift."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

FARTHEST_SHIFT_PX = 5
"""Largest shift along either axis. Probe and positions leave a few pixels open; a wider search
would find chance similarities."""

WHOLE_PIXEL_WITHIN_PX = 1e-6
_SHIFT_WITHIN_PX = 1e-3
_REFINEMENTS = 10


class OnReference(NamedTuple):
    """An object on the pixels of a reference: `field` complex128 (H, W), zero where `mask`, bool
    (H, W), is False."""

    field: NDArray[np.complexfloating]
    mask: NDArray[np.bool_]


class Resampler:
    """An object that can be moved by any shift and sampled on a window, by cubic splines.

    Parameters
    ----------
    object_ : ndarray, complex, (H, W)
        Finite where it is valid.
    valid : ndarray, bool, (H, W)
    offset_px : ndarray, (2,)
        (y, x) of the window's first pixel in the object, whole or not.
    shape : tuple of int
        Rows and columns of the window.
    """

    def __init__(
        self,
        object_: NDArray[np.complexfloating],
        valid: NDArray[np.bool_],
        offset_px: NDArray[np.float64],
        shape: tuple[int, int],
    ) -> None:
        self.object_ = np.where(valid, object_, 0).astype(np.complex128)
        self.valid = valid
        self.offset_px = offset_px
        self.shape = shape
        # A cubic spline reads four pixels along each axis: all of them must be valid.
        self._inner = ndimage.binary_erosion(valid, structure=np.ones((3, 3))).astype(np.float64)
        # The spline's filter reaches past the mask. Continue the valid pixels there: a jump to zero
        # would ring inside.
        nearest = ndimage.distance_transform_edt(
            ~valid, return_distances=False, return_indices=True
        )
        self._coefficients = ndimage.spline_filter(
            self.object_[tuple(nearest)], order=3, output=np.complex128
        )

    def moved(self, shift_px: NDArray[np.float64]) -> OnReference:
        """Return the object moved by (y, x), pixels, towards larger rows and columns."""
        offset = self.offset_px - shift_px
        whole = np.rint(offset)
        if np.abs(offset - whole).max() <= WHOLE_PIXEL_WITHIN_PX:
            at = ([1, 1], whole, self.shape)
            # Order 0 reads single pixels.
            field = ndimage.affine_transform(self.object_, *at, order=0)
            mask = ndimage.affine_transform(self.valid.astype(np.float64), *at, order=0)
        else:
            at = ([1, 1], offset, self.shape)
            field = ndimage.affine_transform(
                self._coefficients, *at, order=3, prefilter=False, mode="nearest"
            )
            mask = ndimage.affine_transform(self._inner, *at, order=1)
        known = mask > 1 - WHOLE_PIXEL_WITHIN_PX
        return OnReference(np.where(known, field, 0), known)


def register(resampler: Resampler, reference: OnReference) -> NDArray[np.float64]:
    """Return the shift (y, x), pixels, that brings an object closest to a reference, whatever its
    ramp, global phase and scale.

    It minimises `residual`. The start is the result of a whole-pixel search or no shift, whichever
    is better; Gauss-Newton steps in shift, ramp and complex factor together follow. The shift is
    zero if it makes no difference, as for a flat object.
    """

    def residual_after(shift_px: NDArray[np.float64]) -> float:
        return residual(resampler.moved(shift_px), reference)

    starts = (np.zeros(2), _whole_pixel_shift(resampler, reference))
    start = best = min(starts, key=residual_after)
    shift = start
    for _ in range(_REFINEMENTS):
        step = _refinement(resampler.moved(shift), reference)
        shift = np.clip(shift + np.clip(step, -0.5, 0.5), start - 1, start + 1)
        if np.abs(step).max() < _SHIFT_WITHIN_PX:
            break
    return min((best, shift), key=residual_after)


def residual(object_: OnReference, reference: OnReference) -> float:
    """Return the RMS difference of an object and a reference, relative to the RMS of the reference,
    after the best ramp and complex factor.

    ``min over a, b, c of |c exp(-i (a y + b x)) object - reference| / |reference|`` (Fienup, Appl.
    Opt. 36, 8352, 1997) over the pixels of both masks: 0 for equal fields, 1 for unrelated ones,
    and 1 if either is zero.
    """
    both = object_.mask & reference.mask
    field, target = np.where(both, object_.field, 0), np.where(both, reference.field, 0)
    energies = np.vdot(field, field).real * np.vdot(target, target).real
    if energies == 0:
        return 1.0
    product = field * target.conj()
    matched = abs(remove_phase_ramp(product, fit_phase_ramp(product)).sum())
    return float(np.sqrt(max(1 - matched**2 / energies, 0.0)))


def fit_phase_ramp(product: NDArray[np.complexfloating]) -> tuple[float, float]:
    """Return the ramp (a, b) along y and x, radians per pixel, that maximises ``|sum product
    exp(-i(a y + b x))|``.

    The peak of the zero-padded spectrum gives the ramp to a quarter of a fringe across the image,
    however often the phase wraps. It is refined on the wrapped phase residuals by steps that
    minimise the quadratic bound ``-cos(t + d) <= -cos(t) + d sin(t) + d^2 / 2``. So no step lowers
    the sum, and no phase is unwrapped.

    Parameters
    ----------
    product : ndarray, complex, (H, W)
        ``field * conj(reference)``, or a field alone for its own ramp; zero at unknown pixels.
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
    # A single row or column of pixels does not determine the ramp across it: the pseudo-inverse
    # leaves it alone.
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


def remove_phase_ramp(
    field: NDArray[np.complexfloating], ramp_rad_per_px: tuple[float, float]
) -> NDArray[np.complexfloating]:
    """Return ``field`` (H, W) without the ramp (y, x), whose phase is zero at ``field[0, 0]``."""
    y, x = (
        np.exp(-1j * ramp * np.arange(size))
        for ramp, size in zip(ramp_rad_per_px, field.shape, strict=True)
    )
    return field * y[:, None] * x


def mean_phase(field: NDArray[np.complexfloating]) -> float:
    """Return the circular mean of the phase, radians, weighted by the amplitude."""
    return float(np.angle(field.sum(dtype=np.complex128)))


def relative_phase(field: NDArray[np.complexfloating], zero_rad: float) -> NDArray[np.floating]:
    """Return the phase of ``field`` relative to ``zero_rad``, radians, wrapped to -pi .. pi."""
    phase: NDArray[np.floating] = np.angle(field * np.exp(-1j * zero_rad))
    return phase


def _whole_pixel_shift(resampler: Resampler, reference: OnReference) -> NDArray[np.float64]:
    """Return a whole-pixel shift, from the products of neighbouring pixels.

    A ramp is only a constant phase in them, so it need not be known before the shift.
    """
    object_ = resampler.moved(np.zeros(2))
    padded = [fft.next_fast_len(side + FARTHEST_SHIFT_PX) for side in reference.mask.shape]
    strength = np.zeros((2 * FARTHEST_SHIFT_PX + 1,) * 2)
    candidates = np.arange(-FARTHEST_SHIFT_PX, FARTHEST_SHIFT_PX + 1)
    for axis in (0, 1):
        spectra = []
        for field, mask in (object_, reference):
            known = mask & np.roll(mask, -1, axis)
            known[(slice(None),) * axis + (-1,)] = False
            product = np.where(known, field.conj() * np.roll(field, -1, axis), 0)
            product -= np.where(known, product.sum() / max(np.count_nonzero(known), 1), 0)
            spectra.append(fft.fft2(product, padded))
        correlation = fft.ifft2(spectra[1] * spectra[0].conj())
        strength += np.abs(correlation[np.ix_(candidates, candidates)]) ** 2
    peak = np.unravel_index(np.argmax(strength), strength.shape)
    return np.array([candidates[index] for index in peak], dtype=np.float64)


def _refinement(object_: OnReference, reference: OnReference) -> NDArray[np.float64]:
    """Return a Gauss-Newton step in the shift: least squares in it, the ramp and the complex factor
    at once."""
    # The gradient is taken between neighbours.
    both = ndimage.binary_erosion(object_.mask & reference.mask, structure=np.ones((3, 3)))
    if not both.any():
        return np.zeros(2)
    product = np.where(both, object_.field * reference.field.conj(), 0)
    fitted = remove_phase_ramp(object_.field, fit_phase_ramp(product))
    fitted = fitted * (
        np.vdot(fitted[both], reference.field[both])
        / max(np.vdot(fitted[both], fitted[both]).real, 1e-300)
    )
    along_y, along_x = (derivative[both] for derivative in np.gradient(fitted))
    y, x = (coordinate - coordinate.mean() for coordinate in np.nonzero(both))
    model = fitted[both]
    columns = np.stack([-along_y, -along_x, model, 1j * model, 1j * y * model, 1j * x * model])
    difference = reference.field[both] - model
    # The unknowns are real: the normal equations hold the real parts. The pseudo-inverse leaves
    # alone what makes no difference.
    normal = (columns.conj() @ columns.T).real
    scale = np.sqrt(np.maximum(normal.diagonal(), 1e-300))
    step: NDArray[np.float64] = np.linalg.pinv(
        normal / scale / scale[:, None], rcond=1e-9, hermitian=True
    ) @ ((columns.conj() @ difference).real / scale)
    return (step / scale)[:2]
