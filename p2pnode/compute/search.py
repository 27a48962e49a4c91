"""The fastest pipeline for one stream: dynamic programming over devices in an order, and over cuts.

A unit is one device, or a tensor group that acts as one. For a given order of units the best choice of units and
cuts is exact: the time of a token is a sum over stages and hops. Orders are tried all for few units, and improved
by moves for many.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2pnode import limits
from p2pnode.compute import cost
from p2pnode.compute.builder import output_unit_bytes
from p2pnode.compute.cost import Group, Mesh, ModelShape
from p2pnode.compute.wish import Wish, resolve

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Unit:
    """Devices that compute a stage together, with integer shares; usually one."""

    peers: tuple[str, ...]
    shares: tuple[int, ...] = (1,)


@dataclass(frozen=True, slots=True)
class Found:
    """The best pipeline of an order."""

    seconds: float
    """Of a token, without the output matrix and its step."""
    groups: tuple[Group, ...]


class Search:
    """Costs of one wish, worked out once, and searches over them."""

    def __init__(self, wish: Wish, shape: ModelShape, mesh: Mesh, units: Sequence[Unit]) -> None:
        self.wish, self.shape, self.mesh = wish, shape, mesh
        self.units = tuple(units)
        self.layers = shape.layer_count
        self._active = _prefix(shape.active_bytes)
        self._context = _prefix([limits.CONTEXT_ASSUMED_TOKENS * n for n in shape.kv_bytes_per_token])
        load = wish.load
        kv = [n * load.n_ctx * load.parallel for n in shape.kv_bytes_per_token]
        self._memory = _prefix([w + k for w, k in zip(shape.layer_bytes, kv, strict=True)])
        self._pins = {resolve(name, mesh).peer: layers for name, layers in wish.pins.items()}
        self._times = [self._stage_times(unit) for unit in self.units]
        self._hops = self._hop_times()

    # --- costs -----------------------------------------------------------------------------------
    def _stage_times(self, unit: Unit) -> Times:
        """Seconds of layers [i, j) on a unit at [i, j]; infinite where it cannot or must not be."""
        first = np.arange(self.layers + 1)[:, None]
        end = np.arange(self.layers + 1)[None, :]
        total = sum(unit.shares)
        weights, context = self._active[end] - self._active[first], self._context[end] - self._context[first]
        computing = np.max(
            [
                share
                / total
                * (
                    weights / self.mesh.devices[peer].decode_bytes_per_s
                    + context / self.mesh.devices[peer].context_bytes_per_s
                )
                for peer, share in zip(unit.peers, unit.shares, strict=True)
            ],
            axis=0,
        )
        reduce_s = 2 * cost.reduce_s(self.shape, self.mesh, unit.peers)
        times = computing + (end - first) * reduce_s + cost.overhead_s(self.mesh, unit.peers)
        if unit.peers == (self.wish.head,):
            times[0, self.layers] -= cost.overhead_s(
                self.mesh, unit.peers
            )  # the output is of the same step there
        allowed = (
            (first < end) & self._on_boundary(first) & self._on_boundary(end) & self._pinned(unit, first, end)
        )
        for peer, share in zip(unit.peers, unit.shares, strict=True):
            allowed &= self._needed(unit, peer, share / total) <= self.mesh.devices[peer].memory_free_bytes
        return np.where(allowed, times, np.inf)

    def _needed(self, unit: Unit, peer: str, part: float) -> Times:
        """Memory of layers [i, j) on one device of a unit, with the ends it would also hold."""
        needed = (self._memory[None, :] - self._memory[:, None]) * part
        needed += cost.buffer_bytes(self.shape, self.wish.load, layers=True, output=False)
        needed[0, :] += self.shape.embedding_bytes
        if peer == self.wish.head:
            separate = output_unit_bytes(self.wish, self.shape)
            needed += separate
            if unit.peers == (peer,):
                needed[:, self.layers] += self._joined_output_bytes() - separate
                if self.shape.is_tied:
                    needed[0, self.layers] -= self.shape.output_bytes
        return needed

    def _joined_output_bytes(self) -> int:
        """What the output adds to a unit with layers."""
        wide, narrow = (
            cost.buffer_bytes(self.shape, self.wish.load, layers=True, output=output)
            for output in (True, False)
        )
        return self.shape.output_bytes + wide - narrow

    def _on_boundary(self, cut: NDArray[np.int_]) -> NDArray[np.bool_]:
        allowed: NDArray[np.bool_] = np.logical_or(cut % self.shape.boundary == 0, cut == self.layers)
        return allowed

    def _pinned(self, unit: Unit, first: NDArray[np.int_], end: NDArray[np.int_]) -> NDArray[np.bool_]:
        """A pinned device computes its layers, and nobody else does."""
        allowed = np.ones((self.layers + 1, self.layers + 1), dtype=bool)
        for peer, (pin_first, pin_end) in self._pins.items():
            if peer in unit.peers:
                allowed &= (first <= pin_first) & (pin_end <= end)
            else:
                allowed &= (end <= pin_first) | (pin_end <= first)
        return allowed

    def _hop_times(self) -> Times:
        """Seconds of one row from unit to unit; row and column 0 are the head."""
        leaders = [self.wish.head, *(unit.peers[0] for unit in self.units)]
        row = self.shape.row_bytes
        return np.array([[cost.hop_s(self.mesh, a, b, row) for b in leaders] for a in leaders])

    # --- one order -------------------------------------------------------------------------------
    def best_of(self, order: Sequence[int], stages: int | None = None) -> Found | None:
        """The fastest pipeline that uses some of the units in this order, or exactly `stages` of them."""
        if stages is None:
            return self._solve(order)
        return self._solve_exactly(order, stages)

    def _solve(self, order: Sequence[int]) -> Found | None:
        size = self.layers + 1
        best = np.full((len(order), size), np.inf)
        came_from: list[tuple[NDArray[np.int_], NDArray[np.int_]]] = []
        for at, unit in enumerate(order):
            entry = np.full((at + 1, size), np.inf)
            entry[0, 0] = self._hops[0, unit + 1]
            if at:
                hops = np.array([self._hops[previous + 1, unit + 1] for previous in order[:at]])
                entry[1:] = best[:at] + hops[:, None]
            source = entry.argmin(axis=0)
            total = entry.min(axis=0)[:, None] + self._times[unit]
            best[at] = total.min(axis=0)
            came_from.append((source, total.argmin(axis=0)))
        back = np.array([self._hops[unit + 1, 0] for unit in order])
        finish = best[:, self.layers] + back
        last = int(finish.argmin())
        if not np.isfinite(finish[last]):
            return None
        groups: list[Group] = []
        end, at = self.layers, last
        while True:
            source, cuts = came_from[at]
            first = int(cuts[end])
            groups.append(self._group(order[at], first, end))
            if first == 0:
                break
            end, at = first, int(source[first]) - 1
        return Found(float(finish[last]), tuple(reversed(groups)))

    def _solve_exactly(self, order: Sequence[int], stages: int) -> Found | None:
        """As `_solve`, with one more dimension: how many stages are behind."""
        size, count = self.layers + 1, len(order)
        best = np.full((stages + 1, count, size), np.inf)
        trace: dict[tuple[int, int], tuple[NDArray[np.int_], NDArray[np.int_]]] = {}
        for used in range(1, stages + 1):
            for at, unit in enumerate(order):
                entry = np.full((at + 1, size), np.inf)
                if used == 1:
                    entry[0, 0] = self._hops[0, unit + 1]
                elif at:
                    hops = np.array([self._hops[previous + 1, unit + 1] for previous in order[:at]])
                    entry[1:] = best[used - 1, :at] + hops[:, None]
                total = entry.min(axis=0)[:, None] + self._times[unit]
                best[used, at] = total.min(axis=0)
                trace[used, at] = (entry.argmin(axis=0), total.argmin(axis=0))
        finish = best[stages, :, self.layers] + np.array([self._hops[unit + 1, 0] for unit in order])
        last = int(finish.argmin())
        if not np.isfinite(finish[last]):
            return None
        groups: list[Group] = []
        end, at = self.layers, last
        for used in range(stages, 0, -1):
            source, cuts = trace[used, at]
            first = int(cuts[end])
            groups.append(self._group(order[at], first, end))
            end, at = first, int(source[first]) - 1
        return Found(float(finish[last]), tuple(reversed(groups)))

    def _group(self, unit: int, first: int, end: int) -> Group:
        return Group(first, end, self.units[unit].peers, self.units[unit].shares)

    def balanced(self, found: Found) -> Found:
        """The same units in the same order, cut so that the slowest stage is as quick as a small price allows.

        One stream does not care where the cuts are; prompts and several streams are as fast as the slowest stage.
        """
        if len(found.groups) == 1:
            return found
        order = [next(n for n, unit in enumerate(self.units) if unit.peers == g.peers) for g in found.groups]
        saved = self._times
        low, high = (
            0.0,
            max(float(saved[u][g.first, g.end]) for u, g in zip(order, found.groups, strict=True)),
        )
        best = found
        try:
            for _ in range(limits.PLAN_BALANCE_STEPS):
                pace = (low + high) / 2
                self._times = [np.where(times <= pace, times, np.inf) for times in saved]
                made = self._solve_exactly(order, len(order))
                if made is not None and made.seconds <= found.seconds * limits.PLAN_BALANCE_PRICE_MAX:
                    best, high = made, pace
                else:
                    low = pace
        finally:
            self._times = saved
        return best

    # --- over orders -----------------------------------------------------------------------------
    def best(self, *, stages: int | None = None, fixed_order: bool = False) -> Found | None:
        """The fastest pipeline over the orders worth trying, its cuts balanced."""
        found = self._best(stages, fixed_order=fixed_order)
        return None if found is None else self.balanced(found)

    def _best(self, stages: int | None, *, fixed_order: bool) -> Found | None:
        natural = list(range(len(self.units)))
        if fixed_order or len(natural) < 2:
            return self.best_of(natural, stages)
        if len(natural) <= limits.PLAN_ALL_ORDERS_DEVICES_MAX:
            # The first of equals is the one that leaves the head, unit 0, in front: it embeds the tokens anyway.
            return _fastest(self.best_of(list(order), stages) for order in itertools.permutations(natural))
        chain = self._nearest_chain()
        best_order, best = natural, self.best_of(natural, stages)
        other = self.best_of(chain, stages)
        if other is not None and (best is None or other.seconds < best.seconds):
            best_order, best = chain, other
        return self._improve(best_order, best, stages)

    def _nearest_chain(self) -> list[int]:
        """From the head always on to the nearest unit left."""
        chain: list[int] = []
        left = set(range(len(self.units)))
        at = 0
        while left:
            nearest = min(left, key=lambda unit: (self._hops[at, unit + 1], unit))
            chain.append(nearest)
            left.discard(nearest)
            at = nearest + 1
        return chain

    def _improve(self, order: list[int], best: Found | None, stages: int | None) -> Found | None:
        """Move used units to other places while that helps, within a fixed number of tries."""
        if best is None:
            return None
        used_peers = {group.peers for group in best.groups}
        used = [unit for unit in order if self.units[unit].peers in used_peers]
        tries = 0
        improved = True
        while improved and tries < limits.PLAN_ORDER_TRIES_MAX:
            improved = False
            for a, b in itertools.permutations(range(len(used)), 2):
                moved = used.copy()
                moved.insert(b, moved.pop(a))
                tries += 1
                found = self.best_of(moved, stages)
                if found is not None and found.seconds < best.seconds * (1 - 1e-9):
                    used, best, improved = moved, found, True
                    break
                if tries >= limits.PLAN_ORDER_TRIES_MAX:
                    break
        return best


def _fastest(found: Iterable[Found | None]) -> Found | None:
    candidates = [one for one in found if one is not None]
    return min(candidates, key=lambda one: (round(one.seconds, 9), len(one.groups)), default=None)


def _prefix(values: Sequence[int]) -> Times:
    return np.concatenate(([0.0], np.cumsum(np.array(values, dtype=np.float64))))
