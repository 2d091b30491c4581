"""Stitching of patches that were reconstructed alone: the phase of each is fitted to those that lie
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
"""Cells along a patch's side; within one, the overlap with neighbours hardly differs."""


def stitching_order(positions_px: np.ndarray, patch_size: int) -> np.ndarray:
    """Return an order in which each patch overlaps well with those before it, as far as the scan
    allows.

    Areas that grow from several places have unrelated phases and meet in a seam. So the stitched
    area grows from one place, the middle, along the minimum spanning tree of the positions, whose
    links are as short as possible. Positions are gathered in cells, so that finding the tree takes
    less time than the network. Islands, more than a patch apart, have no phase in common; each
    grows from a place of its own.

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
    # One more node links all islands.
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
    """Mean of patches up to their global phases, weighted by their light squared.

    A pattern leaves the global phase of its patch open, so neighbours may differ in it. The order
    of the patches matters: see `stitching_order`.

    Parameters
    ----------
    stitched
        The canvas; the light of the patches is added to it.
    """

    def __init__(self, stitched: StitchedObject) -> None:
        self._stitched = stitched
        self._weight_sum = torch.zeros_like(stitched.light)
        self._weighted_sum = torch.zeros_like(stitched.light, dtype=torch.complex64)
        self._aligned_sum = torch.zeros_like(self._weighted_sum[0])  # what phases are fitted to

    def add(self, patches: Tensor, light: Tensor, corners: Tensor) -> None:
        """Add patches (k, N, N), seen in some light (k, N, N), and fit the global phase of each to
        what already lies there.

        The weight is the light squared: a dim part is not only noisier, more of it is guessed.
        """
        size = patches.shape[-1]
        weights = light.square()
        # Phases are fitted with the light itself as the weight: dim pixels are many.
        lit, phases = light * patches, []
        # One by one, as each depends on those before it. Windows are views; phases stay on the
        # device.
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
        """Return the mean, complex64 (H, W); zero where no patch has weight."""
        return self._weighted_sum[0] / self._weight_sum[0].clamp_min(1e-12)
