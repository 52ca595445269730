"""Convex hulls in the plane: where pilots were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Hull:
    """A convex polygon by its corners [m, 2], counter-clockwise; m is 1 or 2 for points or lines."""

    corners: Floats

    @classmethod
    def of(cls, points: Floats) -> Hull:
        """Hull of points [n, 2] (Andrew's monotone chain)."""
        ordered = np.unique(np.asarray(points, float), axis=0)
        if len(ordered) <= 2:
            return cls(ordered)
        chains = [_chain(side) for side in (ordered, ordered[::-1])]
        return cls(np.asarray(chains[0][:-1] + chains[1][:-1]))

    @property
    def centre(self) -> Floats:
        return self.corners.mean(0)

    @property
    def size(self) -> Floats:
        """Width and height [2]."""
        return self.corners.max(0) - self.corners.min(0)

    def contains(self, points: Floats, slack: float = 1e-9) -> NDArray[np.bool_]:
        """True [n] inside or within `slack` x size of an edge; points [n, 2]."""
        scale = np.maximum(self.size, 1e-12 + 1e-9 * np.abs(self.corners).max())
        corners, points = self.corners / scale, np.asarray(points, float) / scale
        if len(corners) < 3:
            return self._distance_to_line(corners, points) <= max(slack, 1e-9)
        edges = np.roll(corners, -1, axis=0) - corners
        normals = np.stack([-edges[:, 1], edges[:, 0]], axis=-1)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
        depth = np.einsum("ek,nek->ne", normals, points[:, None, :] - corners[None])
        return depth.min(1) >= -slack

    @staticmethod
    def _distance_to_line(corners: Floats, points: Floats) -> Floats:
        start, along = corners[0], corners[-1] - corners[0]
        share = np.clip((points - start) @ along / max(float(along @ along), 1e-300), 0, 1)
        return np.linalg.norm(points - start - share[:, None] * along, axis=1)


def _chain(points: Floats) -> list[Floats]:
    kept: list[Floats] = []
    for point in points:
        while len(kept) > 1 and _turn(kept[-2], kept[-1], point) <= 0:
            kept.pop()
        kept.append(point)
    return kept


def _turn(a: Floats, b: Floats, c: Floats) -> float:
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))
