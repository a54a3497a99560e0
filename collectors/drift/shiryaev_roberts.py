"""The Shiryaev–Roberts and CUSUM sums of streams of e-values, over whole arrays instead of a sample at a time.

With e-values `e` the sums are `R ← (1 + R) e` (Shiryaev 1963, Roberts 1966) and `W ← max(1, W) e` (Page 1954). While
nothing changes, `E[e | past] ≤ 1`, so `R_n − n` is a supermartingale and the mean time to `R ≥ 1 / alpha` is at least
`1 / alpha`; `W ≤ R` inherits that, and so do weighted sums over alternatives (Shin, Ramdas & Rinaldo 2022,
"E-detectors: a nonparametric framework for sequential change detection").

With `P` the running product of a block of e-values and `T_n = Σ_{k ≤ n} 1 / P_{k−1}`, `R_n = P_n (R_0 + T_n)`: two
accumulations instead of a loop. Blocks are counted on the stream's own clock, never by how it was cut into chunks, and
accumulations go on from the stored values, so that any chunking gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Form = Literal["sr", "cusum"]

# Products of a block stay within 2^±EXPONENTS, so that neither they nor the sum of their inverses leave float64.
EXPONENTS = 900
LONGEST_BLOCK = 256
# Sums at most, that are carried from block to block one by one.
FEW = 16


def block_length(largest: float) -> int:
    """Samples a block, when every e-value is within [1 / largest, largest]."""
    return max(1, min(LONGEST_BLOCK, int(EXPONENTS / max(np.log2(largest), 1e-9))))


@dataclass(frozen=True, slots=True)
class Sums:
    """State of the sums of J alternatives by C streams; every array is (J, C).

    `start` is the sum at the beginning of the block, `product` and `inverses` are P and T within it, and `drop` is the
    logarithm of the product of all whole blocks. `peak` is the greatest `−ln` of the product before a sample at which a
    change may have begun, `since` that sample's index and `total` the sum of the observations before it; `block_…` are
    the same within the block, where the peak is 1 / product.
    """

    start: Floats
    product: Floats
    inverses: Floats
    drop: Floats
    peak: Floats
    since: Integers
    total: Floats
    block_peak: Floats
    block_since: Integers
    block_total: Floats

    @classmethod
    def zero(cls, alternatives: int, streams: int) -> Sums:
        """Nothing seen."""
        shape = (alternatives, streams)
        return cls(
            start=np.zeros(shape),
            product=np.ones(shape),
            inverses=np.zeros(shape),
            drop=np.zeros(shape),
            peak=np.full(shape, -np.inf),
            since=np.zeros(shape, np.int64),
            total=np.zeros(shape),
            block_peak=np.zeros(shape),
            block_since=np.zeros(shape, np.int64),
            block_total=np.zeros(shape),
        )

    def of(self, streams: slice) -> Sums:
        """The state of some of the streams."""
        return Sums(*(getattr(self, field.name)[:, streams] for field in fields(self)))

    def put(self, streams: slice, other: Sums) -> None:
        """Write the state of some of the streams in place."""
        for field in fields(self):
            getattr(self, field.name)[:, streams] = getattr(other, field.name)

    def evidence(self, form: Form) -> Floats:
        """The sums now, (J, C)."""
        if form == "sr":
            return self.product * (self.start + self.inverses)
        return np.exp(self.change()[0])

    def change(self) -> tuple[Floats, Integers, Floats]:
        """The most likely change (J, C): logarithm of its likelihood ratio, first sample's index, total before it."""
        within = _log(self.block_peak) - self.drop
        newer = within > self.peak
        ratio = np.where(newer, within, self.peak) + self.drop + np.log(self.product)
        return ratio, np.where(newer, self.block_since, self.since), np.where(newer, self.block_total, self.total)


def advance(
    sums: Sums,
    evalues: Floats,
    totals: Floats,
    weights: Floats,
    *,
    clock: int,
    block: int,
    form: Form = "sr",
    may_change: Booleans | None = None,
) -> tuple[Sums, Floats]:
    """The state after `evalues` (J, C, t), and the weighted sum after each of them, (C, t).

    `clock` is the index of the first sample and `totals` (C, t) the sum of the observations before each. `may_change`
    (C, t) says where a change may begin: False while a stream learns, when its e-values must be 1. `evalues` is used
    up.
    """
    alternatives, streams, steps = evalues.shape
    shown = np.empty((streams, steps))
    at = 0
    while at < steps:
        offset = (clock + at) % block
        count = max(1, (steps - at) // block) if not offset else 1
        take = min(count * block - offset, steps - at)
        part = slice(at, at + take)
        mask = None if may_change is None else may_change[:, part]
        blocks = _Blocks.of(sums, evalues[:, :, part], totals[:, part], clock + at, count, mask)
        values, sums = blocks.shiryaev_roberts() if form == "sr" else blocks.cusum()
        shown[:, part] = _weighted(values.reshape(alternatives, streams, take), weights)
        sums = blocks.after(sums, ended=(offset + take) % block == 0)
        at += take
    return sums, shown


def _log(values: Floats) -> Floats:
    """Logarithm, −inf at 0."""
    with np.errstate(divide="ignore"):
        return np.log(values)


def _weighted(values: Floats, weights: Floats) -> Floats:
    """Sum over the first axis, in order, so that the shape never changes the rounding; `values` is used up."""
    values *= weights[:, None, None]
    for value in values[1:]:
        values[0] += value
    total: Floats = values[0]
    return total


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Some whole blocks, or a part of one: (J, C, blocks, samples) and, without the samples, (J, C, blocks)."""

    sums: Sums
    products: Floats
    inverses: Floats
    """One over the product before each sample; 0 where no change may begin."""
    drops: Floats
    """Logarithm of the product of everything before each block, and after the last."""
    peaks: Floats
    since: Integers
    totals: Floats

    @classmethod
    def of(
        cls, sums: Sums, evalues: Floats, totals: Floats, clock: int, count: int, may_change: Booleans | None
    ) -> _Blocks:
        alternatives, streams, steps = evalues.shape
        length = steps // count
        shape = (alternatives, streams, count, length)
        products = evalues.reshape(shape)
        products[:, :, 0, 0] *= sums.product
        np.multiply.accumulate(products, axis=3, out=products)
        inverses = np.empty(shape)
        inverses[..., 0] = 1.0
        inverses[:, :, 0, 0] = 1.0 / sums.product
        np.divide(1.0, products[..., :-1], out=inverses[..., 1:])
        if may_change is not None:
            inverses *= may_change.reshape(1, streams, count, length)

        places = inverses.argmax(axis=3)
        flat = places + np.arange(0, inverses.size, length).reshape(shape[:3])
        peaks = inverses.reshape(-1)[flat]
        since = clock + np.arange(0, steps, length) + places
        marks = totals[np.arange(streams)[:, None], np.arange(0, steps, length) + places]
        earlier = sums.block_peak >= peaks[..., 0]
        peaks[..., 0] = np.where(earlier, sums.block_peak, peaks[..., 0])
        since[..., 0] = np.where(earlier, sums.block_since, since[..., 0])
        marks[..., 0] = np.where(earlier, sums.block_total, marks[..., 0])
        drops = np.concatenate([sums.drop[..., None], np.log(products[..., -1])], axis=2)
        np.add.accumulate(drops, axis=2, out=drops)
        return cls(sums, products, inverses, drops, peaks, since, marks)

    def shiryaev_roberts(self) -> tuple[Floats, Sums]:
        """R after each sample, and the state of the sum after the last."""
        sums = np.array(self.inverses)
        sums[:, :, 0, 0] += self.sums.inverses
        np.add.accumulate(sums, axis=3, out=sums)
        last = sums[..., -1].copy()
        starts = _starts(self.sums.start, self.products[..., -1], last)
        sums += starts[..., :-1, None]
        sums *= self.products
        return sums, replace(self.sums, start=starts[..., -1], inverses=last[..., -1])

    def cusum(self) -> tuple[Floats, Sums]:
        """W after each sample, `P_n` over the least product before a possible change up to n, and the state."""
        within = np.maximum.accumulate(self.inverses, axis=3)
        within[:, :, 0] = np.maximum(within[:, :, 0], self.sums.block_peak[..., None])
        earlier = np.concatenate([self.sums.peak[..., None], _log(self.peaks) - self.drops[..., :-1]], axis=2)
        np.maximum.accumulate(earlier, axis=2, out=earlier)
        # An earlier block's peak in this one's units: less than about 1 / alpha, or the alarm had come before.
        np.maximum(within, np.exp(np.minimum(earlier[..., :-1] + self.drops[..., :-1], 700.0))[..., None], out=within)
        within *= self.products
        return within, self.sums

    def after(self, sums: Sums, *, ended: bool) -> Sums:
        """The state after the last sample, given that of the sum; `ended` says that it is a block's last."""
        if not ended:
            return replace(
                sums,
                start=self.sums.start,
                product=self.products[..., -1, -1],
                block_peak=self.peaks[..., -1],
                block_since=self.since[..., -1],
                block_total=self.totals[..., -1],
            )
        peaks = np.concatenate([self.sums.peak[..., None], _log(self.peaks) - self.drops[..., :-1]], axis=2)
        place = peaks.argmax(axis=2)[..., None]
        since = np.concatenate([self.sums.since[..., None], self.since], axis=2)
        totals = np.concatenate([self.sums.total[..., None], self.totals], axis=2)
        return replace(
            Sums.zero(*sums.start.shape),
            start=sums.start,
            drop=self.drops[..., -1],
            peak=np.take_along_axis(peaks, place, axis=2)[..., 0],
            since=np.take_along_axis(since, place, axis=2)[..., 0],
            total=np.take_along_axis(totals, place, axis=2)[..., 0],
        )


def _starts(start: Floats, products: Floats, inverses: Floats) -> Floats:
    """The sum at the start of each block, and after the last one: (J, C, blocks + 1)."""
    terms = products * inverses
    if start.size <= FEW:  # Python's numbers are faster than arrays of a few; the rounding is the same
        found = []
        for now, factors, added in zip(
            start.ravel().tolist(),
            products.reshape(start.size, -1).tolist(),
            terms.reshape(start.size, -1).tolist(),
            strict=True,
        ):
            value, row = now, [now]
            for factor, term in zip(factors, added, strict=True):
                value = factor * value + term
                row.append(value)
            found.append(row)
        return np.array(found).reshape(*start.shape, -1)
    by_block = np.empty((products.shape[2] + 1, *start.shape))
    by_block[0] = start
    for index in range(products.shape[2]):
        np.multiply(products[..., index], by_block[index], out=by_block[index + 1])
        by_block[index + 1] += terms[..., index]
    return np.moveaxis(by_block, 0, 2)
