"""Similarity of two real images: errors, structural similarity, correlation.

Each function takes an image and its reference, real (H, W), as they are; nothing is scaled, shifted
or clipped. A mask, bool (H, W), selects the pixels to look at, all by default; the others may hold
anything. Shapes that differ, complex numbers, an empty mask, NaN or infinite values within it and a
`data_range` that is not positive raise a `ValueError`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch.nn.functional import avg_pool2d
from torchmetrics.functional.image import structural_similarity_index_measure

from ptycho_dist.report.checks import require_finite

GAUSSIAN_WINDOW_PX = 11
"""Side of the Gaussian window of sigma = 1.5 px, as in Wang et al. (2004)."""

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales of MS-SSIM, finest first: Wang, Simoncelli and Bovik, Asilomar Conf.
Signals 37, 1398 (2003)."""


def mean_absolute_error(
    image: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None
) -> float:
    """Return the mean of ``|image - reference|``, in the images' unit."""
    image, reference, mask = _checked(image, reference, mask)
    return float(np.mean(np.abs(image - reference)[mask]))


def peak_signal_noise_ratio(
    image: ArrayLike, reference: ArrayLike, data_range: float, mask: ArrayLike | None = None
) -> float:
    """Return ``10 log10(data_range^2 / mean squared error)`` in dB; infinite for equal images.

    `data_range` is the "peak", the range of possible values. The ratio means nothing without it, so
    it has no default.
    """
    image, reference, mask = _checked(image, reference, mask)
    _require_positive(data_range)
    mean_squared_error = float(np.mean(np.square(image - reference)[mask]))
    return (
        math.inf if mean_squared_error == 0 else 10 * math.log10(data_range**2 / mean_squared_error)
    )


def correlation(
    image: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None, *, rounding: float = 0.0
) -> float:
    """Return the Pearson correlation, -1 to 1.

    It is 0 for an image without contrast, and NaN for a reference without contrast. A standard
    deviation of at most `rounding` is no contrast.
    """
    image, reference, mask = _checked(image, reference, mask)
    if reference[mask].std() <= rounding:
        return math.nan
    if image[mask].std() <= rounding:
        return 0.0
    return float(np.clip(np.corrcoef(image[mask], reference[mask])[0, 1], -1.0, 1.0))


def structural_similarity(
    image: ArrayLike,
    reference: ArrayLike,
    data_range: float,
    mask: ArrayLike | None = None,
    *,
    uniform_window_px: int | None = None,
) -> float:
    """Return the mean SSIM (Wang et al., IEEE Trans. Image Process. 13, 600, 2004; K1 = .01, K2 =
    .03), at most 1.

    The mean is over the pixels whose whole window lies in the mask; NaN if there are none.

    Parameters
    ----------
    image, reference, mask
        See the module.
    data_range : float
        L of the stabilising constants (K L)^2.
    uniform_window_px : int, optional
        Side, odd, of a square window of equal weights; the Gaussian of the paper by default.
    """
    image, reference, mask = _checked(image, reference, mask)
    _require_positive(data_range)
    whole = _whole_windows(mask, uniform_window_px or GAUSSIAN_WINDOW_PX)
    if not whole.any():
        return math.nan
    pair = _tensors(image, reference, mask)
    similarity = _similarity_map(*pair, data_range, uniform_window_px=uniform_window_px)
    return float(similarity[whole].mean())


def multiscale_structural_similarity(
    image: ArrayLike, reference: ArrayLike, data_range: float, mask: ArrayLike | None = None
) -> float:
    """Return the MS-SSIM (Wang, Simoncelli and Bovik, Asilomar Conf. Signals 37, 1398, 2003), 0
    to 1; NaN if no window fits into the mask.

    With the Gaussian window of `structural_similarity`: the product over scales of mean contrast
    and structure, and at the coarsest scale of mean SSIM, each to the power of its weight. From
    scale to scale 2 x 2 pixels are averaged. A negative mean counts as 0. If the mask is too small
    for the five scales of the paper (`num_scales`), the weights of those that fit are scaled to the
    same sum.
    """
    image, reference, mask = _checked(image, reference, mask)
    _require_positive(data_range)
    scales = num_scales(mask)
    if scales == 0:
        return math.nan
    pair = _tensors(image, reference, mask)
    weights = np.array(SCALE_WEIGHTS[:scales]) * (sum(SCALE_WEIGHTS) / sum(SCALE_WEIGHTS[:scales]))
    product = 1.0
    for scale, weight in enumerate(weights, start=1):
        # The library's multi-scale function takes no mask and gives no map of contrast and
        # structure. A huge K1 makes the luminance term 1 and leaves these two.
        similarity = _similarity_map(*pair, data_range, k1=0.01 if scale == scales else 1e8)
        product *= (
            max(float(similarity[_whole_windows(mask, GAUSSIAN_WINDOW_PX)].mean()), 0.0) ** weight
        )
        pair = (avg_pool2d(pair[0], 2), avg_pool2d(pair[1], 2))
        mask = _halved(mask)
    return product


def num_scales(mask: ArrayLike) -> int:
    """Return the number of the five scales of MS-SSIM at which a whole window fits into a mask
    (H, W). All five need at least 176 px a side."""
    mask = np.asarray(mask)
    scales = 0
    while scales < len(SCALE_WEIGHTS) and _whole_windows(mask, GAUSSIAN_WINDOW_PX).any():
        scales += 1
        mask = _halved(mask)
    return scales


def _similarity_map(
    image: torch.Tensor,
    reference: torch.Tensor,
    data_range: float,
    *,
    k1: float = 0.01,
    uniform_window_px: int | None = None,
) -> NDArray[np.float64]:
    """Return the SSIM around every pixel (H, W); a window that leaves the image sees it
    reflected."""
    _, similarity = structural_similarity_index_measure(
        image,
        reference,
        gaussian_kernel=uniform_window_px is None,
        sigma=1.5,
        kernel_size=uniform_window_px or GAUSSIAN_WINDOW_PX,
        data_range=float(data_range),
        k1=k1,
        return_full_image=True,
    )
    array: NDArray[np.float64] = similarity[0, 0].numpy()
    return array


def _whole_windows(mask: NDArray[np.bool_], window_px: int) -> NDArray[np.bool_]:
    """Return the pixels (H, W) whose whole window lies in the mask."""
    # A square is separable: two passes instead of one with a hundred neighbours.
    rows: NDArray[np.bool_] = ndimage.binary_erosion(mask, np.ones((window_px, 1)))
    both: NDArray[np.bool_] = ndimage.binary_erosion(rows, np.ones((1, window_px)))
    return both


def _halved(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask (H // 2, W // 2) of the 2 x 2 blocks that lie in a mask as a whole."""
    rows, columns = (side // 2 for side in mask.shape)
    return np.logical_and.reduce(
        mask[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2), axis=(1, 3)
    )


def _tensors(
    image: NDArray[np.floating], reference: NDArray[np.floating], mask: NDArray[np.bool_]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two float64 tensors (1, 1, H, W), zero outside the mask."""
    first, second = (np.where(mask, values, 0.0)[None, None] for values in (image, reference))
    return torch.from_numpy(first), torch.from_numpy(second)


def _checked(
    image: ArrayLike, reference: ArrayLike, mask: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    arrays = {"the image": np.asarray(image), "the reference": np.asarray(reference)}
    for name, values in arrays.items():
        if values.ndim != 2 or values.dtype.kind not in "fiub":
            raise ValueError(
                f"{name} is {values.dtype} {values.shape}; expected real numbers (rows, columns)"
            )
    first, second = (values.astype(np.float64) for values in arrays.values())
    chosen = np.ones(first.shape, dtype=bool) if mask is None else np.asarray(mask)
    if not first.shape == second.shape == chosen.shape or chosen.dtype != np.bool_:
        raise ValueError(
            f"the image is {first.shape}, the reference {second.shape} and the mask "
            f"{chosen.dtype} {chosen.shape}; expected one shape, and a mask of bool"
        )
    if not chosen.any():
        raise ValueError("the mask is empty; expected at least one pixel to look at")
    for name, values in arrays.items():
        require_finite(name, values[chosen])
    return first, second, chosen


def _require_positive(data_range: float) -> None:
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range is {data_range}; expected a positive number")
