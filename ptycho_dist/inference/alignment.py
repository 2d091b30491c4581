"""Patches that were reconstructed alone, put together: each one's phase is fitted to what lies
there already."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial import KDTree
from torch import Tensor

from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.physics.patches import add_patches

_CELLS_A_PATCH = 8
"""Along a side. Within so small a cell the overlap with neighbours hardly differs."""


def stitching_order(positions_px: np.ndarray, patch_size: int) -> np.ndarray:
    """Order in which every patch meets, as far as the scan lets it, patches that lie there already
    and overlap with it well.

    Patches that grow together from several places would meet with phases that have nothing to do
    with each other: a seam. So the stitched area grows from one place, the middle, along the
    minimum spanning tree of the positions, in which every link is as short as a way between the two
    allows. To find it does not take longer than a network, positions are gathered in cells.
    Islands, more than a patch apart, have no phase in common, and grow each from its own place.

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
        np.floor(positions_px / (patch_size / _CELLS_A_PATCH)),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    cell_of = cell_of.reshape(-1)  # NumPy 2.0 gives it another axis
    centres = (
        np.stack([np.bincount(cell_of, weights=along) for along in positions_px.T], axis=1)
        / patches_in[:, None]
    )
    neighbours = KDTree(centres)
    tree = minimum_spanning_tree(
        neighbours.sparse_distance_matrix(neighbours, patch_size, output_type="coo_matrix")
    )
    _, island_of = connected_components(tree, directed=False)
    from_the_middle = np.argsort(
        np.square(centres - positions_px.mean(axis=0)).sum(axis=1), kind="stable"
    )
    first_of_islands = from_the_middle[np.unique(island_of[from_the_middle], return_index=True)[1]]
    # One more node, from which all islands are reached.
    root = len(centres)
    to_islands = coo_matrix(
        (np.ones(len(first_of_islands)), (np.full(len(first_of_islands), root), first_of_islands)),
        (root + 1, root + 1),
    )
    tree.resize(root + 1, root + 1)
    cells = breadth_first_order(tree + to_islands, root, directed=False, return_predecessors=False)
    rank = np.argsort(cells)
    return np.argsort(rank[cell_of], kind="stable")


class AlignedPatches:
    """The mean of patches that agree but for their global phases, weighted by their light squared.

    A pattern does not tell the global phase of its patch, so neighbours may disagree in it. The
    order matters: see `stitching_order`.

    Parameters
    ----------
    stitched
        Where the patches lie; their light is added to it.
    """

    def __init__(self, stitched: StitchedObject) -> None:
        self._stitched = stitched
        self._weight_sum = torch.zeros_like(stitched.light)
        self._weighted_sum = torch.zeros_like(stitched.light, dtype=torch.complex64)
        self._aligned_sum = torch.zeros_like(self._weighted_sum[0])  # what phases are fitted to

    def add(self, patches: Tensor, light: Tensor, corners: Tensor) -> None:
        """Add patches (k, N, N), seen in some light (k, N, N), each patch's global phase fitted to
        what already lies there.

        A patch counts by its light squared: where it was dim, it is not only noisier but more of it
        was guessed.
        """
        size = patches.shape[-1]
        weights = light.square()
        # By the light itself: what is dim counts less for the object, but there is much of it to
        # tell a phase from.
        lit, phases = light * patches, []
        # One after the other, as each waits for those before it; windows are views, and the phases
        # stay on the device.
        for patch, (row, column) in zip(lit, corners.tolist(), strict=True):
            window = self._aligned_sum[row : row + size, column : column + size]
            agreement = (window * patch.conj()).sum()
            phases.append(torch.where(agreement == 0, 1, agreement.sgn()))
            window.addcmul_(patch, phases[-1])
        add_patches(self._stitched.light, light[None], corners[None])
        add_patches(self._weight_sum, weights[None], corners[None])
        add_patches(
            self._weighted_sum,
            (weights * patches * torch.stack(phases)[:, None, None])[None],
            corners[None],
        )

    def mean(self) -> Tensor:
        """complex64 (H, W); zero where no patch has weight."""
        return self._weighted_sum[0] / self._weight_sum[0].clamp_min(1e-12)
