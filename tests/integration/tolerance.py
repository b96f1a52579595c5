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
    """What one adapter adds to some rows, factor * (B (A x) + bias), in float64."""
    x: np.ndarray   # [rows, in]; of an embedding: one row of the identity an id
    a: np.ndarray   # [rank, in]
    b: np.ndarray   # [out, rank]
    factor: float   # the module's scale, times the weight of the request
    dtype: str      # of A and B
    bias: np.ndarray = 0.0  # [out], B's own
    folds: int = 0  # roundings in F32 that made A and B out of what the file holds

    @classmethod
    def of(cls, pair, x, weight=1.0, expert=None):
        """The term of a module (a peft_rules.Pair); x None: only for its weight."""
        bias = pair.values("lora_bias")
        return cls(x, *pair.factors(expert), pair.scale * weight, pair.dtype,
                   0.0 if bias is None else bias, pair.folds)

    def delta(self):
        return self.factor * ((self.x @ self.a.T) @ self.b.T + self.bias)

    def weight(self):
        """[out, in]"""
        return self.factor * self.b @ self.a

    def sums_error(self):
        """Of delta() in F32. Products with a zero of x add no error, whatever their number."""
        products = np.count_nonzero(self.x, axis=1).max(initial=0)
        length = products + len(self.a) + 4 + self.folds
        absolute = np.abs(self.x) @ np.abs(self.a).T @ np.abs(self.b).T + np.abs(self.bias)
        return length * unit_roundoff("F32") * abs(self.factor) * absolute

    def weight_error(self, terms=1):
        """Of weight() in F32, when `terms` of them are added up."""
        length = len(self.a) + terms + 4 + self.folds
        return length * unit_roundoff("F32") * abs(self.factor) * np.abs(self.b) @ np.abs(self.a)


@dataclass
class Dora:
    """y = bias + gain * (base - bias + delta); W' = gain * (W + factor * B A)."""
    gain: np.ndarray   # [out]: the magnitude over the norm of the row of W + factor * B A
    error: np.ndarray  # [out]: largest relative error of the gain after a norm in F32
    bias: np.ndarray   # [out]: the base layer's

    @classmethod
    def of(cls, weight, magnitude, term, bias):
        """`weight` [out, in] in float64.

        The norm is off by no more than the norm of what the elements of W + D are off. A sum of n
        squares in F32 is off by n u(F32) of itself and its root by half of that; the root, the
        division and the conversion of the norm are one rounding each.
        """
        adapted = weight + term.weight()
        norm = np.linalg.norm(adapted, axis=1)
        u32 = unit_roundoff("F32")
        elements = np.linalg.norm(term.weight_error() + 2 * u32 * np.abs(weight), axis=1)
        error = elements / norm + (weight.shape[1] / 2 + 3) * u32
        return cls(magnitude / norm, error, bias + np.zeros_like(norm))


@dataclass
class Projection:
    """y = base + the sum of the terms, rounded to `output`."""
    terms: list
    base: np.ndarray   # [rows, out]
    output: str        # dtype of y
    dora: Dora = None  # of the only term

    def exact(self):
        y = self.base + sum(term.delta() for term in self.terms)
        if self.dora is None:
            return y
        return self.dora.bias + self.dora.gain * (y - self.dora.bias)

    def amplified(self, error):
        """What an error before the gain is after it."""
        return error if self.dora is None else np.abs(self.dora.gain) * error

    def gain_error(self):
        """Of the gain itself, and of the sums in F32 around it."""
        if self.dora is None:
            return 0.0
        delta, bias = np.abs(self.terms[0].delta()), np.abs(self.dora.bias)
        inner = np.abs(self.base - self.dora.bias + self.terms[0].delta())
        sums = 4 * unit_roundoff("F32") * (self.amplified(np.abs(self.base) + delta + bias) + bias)
        return self.amplified(self.dora.error * inner) + sums


def projection_tolerance(p, against_peft):
    """Largest |y - expected|, derived from the dtypes and the lengths of the two reductions.

    A sum of n products in F32 is off by at most n u(F32) times the sum of the absolute products,
    whatever its order. For each term both reductions, the factor and the additions together:
        sums     = (in + rank + 4) u(F32) |factor| (|B| |A| |x| + |bias|)
    With half-precision factors the low-rank row A x may be rounded to their dtype (PEFT does it
    always, adapterd when the product runs in BF16):
        low_rank = u(factors) |factor| |B| |A x|          (0 for F32 factors: part of `sums`)
    DoRA's gain multiplies both and has an error of its own (Dora.of). The result is rounded once:
        result   = u(output) |y|
    That is all that adapterd may be off from the exact value. PEFT computes every step in the dtype
    of its operands, so its answer also carries the roundings of B (A x) and of scale times it:
        steps    = 2 u(factors) |delta|
    and the distance between the two is at most the sum of both errors.
    """
    y = p.exact()
    # Half the distance to the next number, which for tiny numbers is more than u |y|.
    ours = np.maximum(unit_roundoff(p.output) * np.abs(y), ulp(y, p.output) / 2) + p.gain_error()
    steps = np.zeros_like(y)
    for term in p.terms:
        half = 0.0 if term.dtype == "F32" else unit_roundoff(term.dtype)
        rounded = half * abs(term.factor) * np.abs(term.x @ term.a.T) @ np.abs(term.b).T
        ours += p.amplified(term.sums_error() + rounded)
        delta = term.delta()
        steps += p.amplified(2 * max(half, unit_roundoff("F32")) * np.abs(delta) +
                             ulp(delta, term.dtype))
    return SECOND_ORDER * (2 * ours + steps if against_peft else ours)


def merge_sums_error(terms, weight, exact, dora=None):
    """Largest error of a merged weight before it is rounded; all [out, in].

    As for a projection: a sum over the rank in F32 for each term, the addition, and DoRA's gain.
    """
    u32 = unit_roundoff("F32")
    error = 2 * u32 * np.abs(weight) + sum(term.weight_error(len(terms)) for term in terms)
    if dora is not None:
        error = np.abs(dora.gain)[:, None] * error + (dora.error[:, None] + 2 * u32) * np.abs(exact)
    return SECOND_ORDER * error


def merge_tolerance(terms, weight, exact, dtype, dora=None):
    """Largest |W' - exact| after F32 sums and one rounding to `dtype`; all [out, in]."""
    rounding = np.maximum(unit_roundoff(dtype) * np.abs(exact), ulp(exact, dtype) / 2)
    return SECOND_ORDER * rounding + merge_sums_error(terms, weight, exact, dora)


def merged_deviation(merged, expected, weight, factors, delta, sums):
    """None, or what is wrong with a merged weight, beside the one that PEFT merged in one rounding.

    `factors` is the dtype of A and B, `delta` and `sums` (merge_sums_error) are float64, the others
    Arrays, all in one layout.
    F32 weight: within 1e-5 relative and 1e-6 absolute. Half-precision weight and F32 factors: both
    sides round nearly the same F32 sum once, so they differ by one unit in the last place at most
    (more only where weight and delta nearly cancel), and only where the sums differ, in 0.2 % of
    the elements. Half-precision factors: PEFT rounds the delta before it adds, so one rounding of the
    largest of weight, delta and result lies between them.
    """
    off = np.abs(merged.values() - expected.values())
    if merged.dtype == "F32":
        limit = 1e-5 * np.abs(expected.values()) + 1e-6
    elif factors == "F32":
        limit = ulp(expected.values(), merged.dtype) + 2 * sums
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


def merged_output_tolerance(p, merged, weight, dtype):
    """Largest |x W'^T + bias - y| for the merged weight W' [out, in] of `dtype`, against PEFT's y.

    Each element of W' may be off by one rounding of what it is the sum of, and PEFT's y by all of
    projection_tolerance and by the rounding and the F32 sums of its base output.
    """
    x = np.abs(p.terms[0].x)
    rounding = x @ ulp(np.maximum(np.abs(merged), np.abs(weight)), dtype).T
    base = p.amplified(unit_roundoff(p.output) * np.abs(p.base))
    length = np.count_nonzero(x, axis=1).max(initial=0) + 4
    sums = p.amplified(length * unit_roundoff("F32") * x @ np.abs(weight).T)
    return projection_tolerance(p, against_peft=True) + SECOND_ORDER * (rounding + base + sums)
