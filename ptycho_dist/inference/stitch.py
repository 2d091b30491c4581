"""Patches into one object, at subpixel positions."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial import KDTree
from torch import Tensor

from ptycho_dist.physics.patches import add_patches, extract_patches
from ptycho_dist.physics.probe import illumination, shift_probe, whole_pixel_and_rest

VALID_WEIGHT = 0.01
"""Pixels that got less than this part of a probe's peak intensity, in all, are not reconstructed."""

_CELLS_A_PATCH = 8
"""Along a side. Within so small a cell the overlap with neighbours hardly differs."""


def stitching_order(positions_px: np.ndarray, patch_size: int) -> np.ndarray:
    """Order in which every patch meets, as far as the scan lets it, patches that lie there already and overlap with it well.

    Patches that grow together from several places would meet with phases that have nothing to do with each other: a seam. So the stitched
    area grows from one place, the middle, along the minimum spanning tree of the positions, in which every link is as short as a way
    between the two allows. To find it does not take longer than a network, positions are gathered in cells. Islands, more than a patch
    apart, have no phase in common, and grow each from its own place.

    Parameters
    ----------
    positions_px
        float64 (n, 2) as (y, x): patch centres of the whole scan.
    patch_size
        N.

    Returns
    -------
    ndarray
        int64 (n,): pattern numbers.
    """
    _, cell_of, patches_in = np.unique(
        np.floor(positions_px / (patch_size / _CELLS_A_PATCH)), axis=0, return_inverse=True, return_counts=True
    )
    cell_of = cell_of.reshape(-1)  # NumPy 2.0 gives it another axis
    centres = np.stack([np.bincount(cell_of, weights=along) for along in positions_px.T], axis=1) / patches_in[:, None]
    neighbours = KDTree(centres)
    tree = minimum_spanning_tree(neighbours.sparse_distance_matrix(neighbours, patch_size, output_type="coo_matrix"))
    _, island_of = connected_components(tree, directed=False)
    from_the_middle = np.argsort(np.square(centres - positions_px.mean(axis=0)).sum(axis=1), kind="stable")
    first_of_islands = from_the_middle[np.unique(island_of[from_the_middle], return_index=True)[1]]
    # One more node, from which all islands are reached.
    root = len(centres)
    to_islands = coo_matrix(
        (np.ones(len(first_of_islands)), (np.full(len(first_of_islands), root), first_of_islands)), (root + 1, root + 1)
    )
    tree.resize(root + 1, root + 1)
    cells = breadth_first_order(tree + to_islands, root, directed=False, return_predecessors=False)
    rank = np.argsort(cells)
    return np.argsort(rank[cell_of], kind="stable")


class StitchedObject:
    """The weighted mean of patches, on a canvas that covers a scan. Its memory does not depend on the number of patches.

    Parameters
    ----------
    positions_px
        float64 (n, 2) as (y, x): patch centres of the whole scan.
    probe
        complex64 (modes, N, N).
    """

    def __init__(self, positions_px: np.ndarray, probe: Tensor) -> None:
        self.probe = probe
        self.patch_size = probe.shape[-1]
        whole_px, _ = whole_pixel_and_rest(torch.from_numpy(positions_px))
        first, last = whole_px.amin(dim=0), whole_px.amax(dim=0)
        self.origin_px = (first - self.patch_size // 2).double().numpy()
        canvas_shape = (1, *(last - first + self.patch_size).tolist())
        self.light = torch.zeros(canvas_shape, dtype=torch.float32, device=probe.device)
        self.weighted_sum = torch.zeros(canvas_shape, dtype=torch.complex64, device=probe.device)
        self.weight_sum = torch.zeros_like(self.light)
        self.aligned_sum = torch.zeros_like(self.weighted_sum)  # what phases are fitted to

    def place(self, positions_px: np.ndarray) -> tuple[Tensor, Tensor]:
        """Corners of patches on the canvas, int64 (k, 2), and the probes at their subpixel positions, complex64 (k, modes, N, N)."""
        corners, rest_px = self.corners(positions_px)
        return corners, shift_probe(self.probe, rest_px)

    def corners(self, positions_px: np.ndarray) -> tuple[Tensor, Tensor]:
        """Corners of patches on the canvas, int64 (k, 2), and what is left of the positions below a pixel, float64 (k, 2)."""
        whole_px, rest_px = whole_pixel_and_rest(torch.from_numpy(positions_px - self.patch_size // 2 - self.origin_px))
        return whole_px.to(self.probe.device), rest_px.to(self.probe.device)

    def add(self, patches: Tensor, light: Tensor, corners: Tensor) -> None:
        """Add patches (k, N, N), seen in some light (k, N, N), each patch's global phase fitted to what already lies there.

        A pattern does not tell the global phase of its patch, so neighbours may disagree in it. The order matters: see `stitching_order`.
        A patch counts by its light squared: where it was dim, it is not only noisier but more of it was guessed.
        """
        weights = light.square()
        add_patches(self.light, light[None], corners[None])
        add_patches(self.weight_sum, weights[None], corners[None])
        # One after the other, as each waits for those before it; windows are views, and the phases stay on the device.
        for patch, weight, lit, (row, column) in zip(patches, weights, light, corners.tolist(), strict=True):
            window = (0, slice(row, row + self.patch_size), slice(column, column + self.patch_size))
            # By the light itself: what is dim counts less for the object, but there is much of it to tell a phase from.
            agreement = (self.aligned_sum[window] * (lit * patch).conj()).sum()
            patch = patch * torch.where(agreement == 0, 1, agreement.sgn())
            self.aligned_sum[window] += lit * patch
            self.weighted_sum[window] += weight * patch

    def hold(self, object_: Tensor) -> None:
        """Put an object (H, W), seen in the light that lies on the canvas, in place of the mean of patches."""
        self.weighted_sum, self.weight_sum = object_ * self.light, self.light

    def replace(self, object_: Tensor, probe: Tensor, positions_px: np.ndarray) -> None:
        """Put an object (H, W) in place of the mean of patches, and the probe (modes, N, N) that saw it in place of theirs."""
        self.probe = probe
        self.light = torch.zeros_like(self.light)
        for position_px in positions_px:  # one by one: a GPU adds what overlaps in any order
            corner, shifted_probe = self.place(position_px[None])
            add_patches(self.light, illumination(shifted_probe)[None], corner[None])
        self.hold(object_)

    def extract(self, corners: Tensor) -> Tensor:
        """Patches (k, N, N) of the stitched object."""
        return extract_patches(self._mean()[None], corners[None], self.patch_size)[0]

    def object(self) -> np.ndarray:
        """complex64 (H, W); zero where no patch has weight."""
        return self._mean().cpu().numpy()

    def valid(self) -> np.ndarray:
        """bool (H, W): where the object was illuminated enough to be reconstructed."""
        return (self.light[0] > VALID_WEIGHT * illumination(self.probe).max()).cpu().numpy()

    def illumination(self) -> np.ndarray:
        """float32 (H, W): the probe's intensity summed over the patches, normalised units."""
        return self.light[0].cpu().numpy()

    def _mean(self) -> Tensor:
        return self.weighted_sum[0] / self.weight_sum[0].clamp_min(1e-12)
