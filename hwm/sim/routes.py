"""Ways through a place: shortest paths on a grid of its free floor, straightened."""

from __future__ import annotations

import heapq

import numpy as np

from hwm.sim.building import Place


class Routes:
    """Finds ways for a base that keeps ``margin`` metres from everything.

    Args:
        place: what is free.
        low, high: floor corners (x, y) of what is searched.
        margin: distance kept to walls and furniture, in metres.
        cell: side of a grid cell in metres.
    """

    def __init__(
        self, place: Place, low: tuple[float, float], high: tuple[float, float], margin: float = 0.42, cell: float = 0.1
    ) -> None:
        self.place, self.margin, self.cell = place, margin, cell
        self._low = np.array(low)
        shape = np.ceil((np.array(high) - low) / cell).astype(int) + 1
        self._clearance = np.array(
            [[place.clearance(self._point((i, j))) for j in range(shape[1])] for i in range(shape[0])]
        )

    def _point(self, cell: tuple[int, int]) -> np.ndarray:
        return self._low + np.array(cell) * self.cell

    def _nearest(self, point: np.ndarray) -> tuple[int, int]:
        """The free cell that is nearest to a floor point."""
        cells = np.argwhere(self._clearance >= self.margin)
        best = cells[np.argmin(((self._low + cells * self.cell - point) ** 2).sum(1))]
        return int(best[0]), int(best[1])

    def way(self, start: np.ndarray, goal: np.ndarray) -> list[np.ndarray]:
        """Way points from a floor point to another, the goal last; straight to it where there is no way."""
        cells = self._cells(self._nearest(start), self._nearest(goal))
        points = [np.asarray(start), *(self._point(cell) for cell in cells), np.asarray(goal)]
        kept, here = [], 0
        while here < len(points) - 1:
            ahead = len(points) - 1
            while ahead > here + 1 and not self.straight(points[here], points[ahead]):
                ahead -= 1
            kept.append(points[ahead])
            here = ahead
        return kept

    def straight(self, start: np.ndarray, goal: np.ndarray) -> bool:
        """Whether the straight way is free, but for its two ends."""
        steps = max(int(np.hypot(*(goal - start)) / self.cell), 1)
        return all(self.place.is_free(start + (goal - start) * k / steps, self.margin - 0.03) for k in range(1, steps))

    def _cells(self, start: tuple[int, int], goal: tuple[int, int]) -> list[tuple[int, int]]:
        """Cells of the shortest way, which rather keeps off walls (Dijkstra)."""
        cost = {start: 0.0}
        came: dict[tuple[int, int], tuple[int, int]] = {}
        queue = [(0.0, start)]
        while queue:
            so_far, cell = heapq.heappop(queue)
            if cell == goal:
                break
            if so_far > cost[cell]:
                continue
            for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
                other = (cell[0] + di, cell[1] + dj)
                if not (0 <= other[0] < self._clearance.shape[0] and 0 <= other[1] < self._clearance.shape[1]):
                    continue
                room = self._clearance[other]
                if room < self.margin:
                    continue
                new = so_far + float(np.hypot(di, dj)) * (1.0 + max(0.0, 0.5 - room))
                if new < cost.get(other, np.inf):
                    cost[other], came[other] = new, cell
                    heapq.heappush(queue, (new, other))
        way = [goal]
        while way[-1] in came:
            way.append(came[way[-1]])
        return way[::-1]
