"""How far two right answers may lie apart.

Notation: u(T) is the unit roundoff of a dtype (2^-24 F32, 2^-11 F16, 2^-8 BF16); |M| takes the
absolute value of every element; inequalities hold element by element.
"""
from dataclasses import dataclass

import numpy as np

from tensors import ulp, unit_roundoff

# Products of two roundings are left out of the sums below; they add less than this share.
SECOND_ORDER = 1.02


@dataclass
class Term:
    """What one adapter adds to some rows, factor * B (A x), in float64."""
    x: np.ndarray   # [rows, in]
    a: np.ndarray   # [rank, in]
    b: np.ndarray   # [out, rank]
    factor: float   # the module's scale, times the weight of the request
    dtype: str      # of A and B

    def delta(self):
        return self.factor * (self.x @ self.a.T) @ self.b.T


@dataclass
class Projection:
    """y = base + the sum of the terms, rounded to `output`."""
    terms: list
    base: np.ndarray  # [rows, out]
    output: str       # dtype of y

    def exact(self):
        return self.base + sum(term.delta() for term in self.terms)


def projection_tolerance(p, against_peft):
    """Largest |y - expected|, derived from the dtypes and the lengths of the two reductions.

    A sum of n products in F32 is off by at most n u(F32) times the sum of the absolute products,
    whatever its order. For each term both reductions, the factor and the additions together:
        sums     = (in + rank + 4) u(F32) |factor| |B| |A| |x|
    With half-precision factors the low-rank row A x may be rounded to their dtype (PEFT does it
    always, adapterd when the product runs in BF16):
        low_rank = u(factors) |factor| |B| |A x|          (0 for F32 factors: part of `sums`)
    The result is rounded once:
        result   = u(output) |y|
    That is all that adapterd may be off from the exact value. PEFT computes every step in the dtype
    of its operands, so its answer also carries the roundings of B (A x) and of scale times it:
        steps    = 2 u(factors) |delta|
    and the distance between the two is at most the sum of both errors.
    """
    y = p.exact()
    # Half the distance to the next number, which for tiny numbers is more than u |y|.
    ours = np.maximum(unit_roundoff(p.output) * np.abs(y), ulp(y, p.output) / 2)
    steps = np.zeros_like(y)
    u32 = unit_roundoff("F32")
    for term in p.terms:
        half = 0.0 if term.dtype == "F32" else unit_roundoff(term.dtype)
        length = term.a.shape[1] + term.a.shape[0] + 4
        b = abs(term.factor) * np.abs(term.b).T
        ours += length * u32 * (np.abs(term.x) @ np.abs(term.a).T) @ b
        ours += half * np.abs(term.x @ term.a.T) @ b
        delta = term.delta()
        steps += 2 * max(half, u32) * np.abs(delta) + ulp(delta, term.dtype)
    return SECOND_ORDER * (2 * ours + steps if against_peft else ours)


def merge_tolerance(terms, weight, exact, dtype):
    """Largest |W' - (W + sum of factor * B A)| after F32 sums and one rounding to `dtype`.

    As for a projection: a sum over the rank in F32 for each term, the addition, and the rounding.
    """
    u32 = unit_roundoff("F32")
    error = np.maximum(unit_roundoff(dtype) * np.abs(exact), ulp(exact, dtype) / 2)
    error += 2 * u32 * np.abs(weight)
    for term in terms:
        length = term.a.shape[0] + len(terms) + 4
        error += length * u32 * abs(term.factor) * np.abs(term.b) @ np.abs(term.a)
    return SECOND_ORDER * error


def merged_deviation(merged, expected, weight, factors, delta):
    """None, or what is wrong with a merged weight, beside the one that PEFT merged in one rounding.

    All arguments but `delta` (float64) and `factors` (dtype of A and B) are Arrays in one layout.
    F32 weight: within 1e-5 relative and 1e-6 absolute. Half-precision weight and F32 factors: both
    sides round the same F32 sum once, so they differ by one unit in the last place at most, and only
    where the sums differ, in 0.2 % of the elements. Half-precision factors: PEFT rounds the delta
    before it adds, so one rounding of the largest of weight, delta and result lies between them.
    """
    off = np.abs(merged.values() - expected.values())
    if merged.dtype == "F32":
        limit = 1e-5 * np.abs(expected.values()) + 1e-6
    elif factors == "F32":
        limit = ulp(expected.values(), merged.dtype)
        share = np.count_nonzero(off) / off.size
        if share > 0.002:
            return f"{share:.2%} of the elements differ"
    else:
        largest = np.maximum.reduce([np.abs(weight.values()), np.abs(delta),
                                     np.abs(expected.values())])
        limit = ulp(largest, merged.dtype)
    if (off <= limit).all():
        return None
    return f"{np.count_nonzero(off > limit)} elements off by up to {np.max(off / limit):.3g} limits"


def merged_output_tolerance(p, merged, weight):
    """Largest |x W'^T + bias - y| for the merged weight W' [out, in], against PEFT's y.

    Each element of W' may be off by one rounding of what it is the sum of, and PEFT's y by all of
    projection_tolerance and by the rounding and the F32 sums of its base output.
    """
    x = np.abs(p.terms[0].x)
    rounding = x @ ulp(np.maximum(np.abs(merged.values()), np.abs(weight)), merged.dtype).T
    base = unit_roundoff(p.output) * np.abs(p.base)
    sums = (x.shape[1] + 4) * unit_roundoff("F32") * x @ np.abs(weight).T
    return projection_tolerance(p, against_peft=True) + SECOND_ORDER * (rounding + base + sums)
