"""The numbers of a fresh adapter, written a second time after docs/creation.md.

In whole numbers of any size and in doubles, which Python has on every machine.
"""
import hashlib
import math

import numpy as np

from tensors import array

_MASK = (1 << 64) - 1


class Stream:
    """SplitMix64."""

    def __init__(self, state):
        self.state = state

    @classmethod
    def of(cls, seed, purpose):
        text = f"adapterd-random-v1\n{seed}\n{purpose}"
        return cls(int(hashlib.sha256(text.encode()).hexdigest()[:16], 16))

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & _MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)


def uniform(stream, features, count):
    """Of [count] draws in +-1/sqrt(features), as F32."""
    step = 1 / math.sqrt(features) * 2.0 ** -24
    return np.float32([(2 * (stream.next() >> 40) + 1 - (1 << 24)) * step for _ in range(count)])


def _exp_minus_half(stream):
    last, even = 1 << 63, True
    while (draw := stream.next()) < last:
        last, even = draw, not even
    return even


def _wins(stream, k, x):
    last, even = x, True
    while (draw := stream.next()) < last and stream.next() * (2 * k + 2) < ((2 * k) << 64) + x:
        last, even = draw, not even
    return even


def _normal(stream):
    while True:
        k = 0
        while _exp_minus_half(stream):
            k += 1
        if not all(_exp_minus_half(stream) for _ in range(k * (k - 1))):
            continue
        x = stream.next()
        if not all(_wins(stream, k, x) for _ in range(k + 1)):
            continue
        magnitude = k + (x >> 11) * 2.0 ** -53
        return -magnitude if stream.next() >> 63 else magnitude


def normal(stream, count):
    return np.float32([_normal(stream) for _ in range(count)])


def fresh_pair(seed, path, in_features, out_features, rank, dtype="F32", embedding=False):
    """(A, B) as Arrays."""
    if embedding:
        a = np.zeros(rank * in_features)
        b = normal(Stream.of(seed, f"lora_b\n{path}"), out_features * rank)
    else:
        a = uniform(Stream.of(seed, f"lora_a\n{path}"), in_features, rank * in_features)
        b = np.zeros(out_features * rank)
    return (array(a.reshape(rank, in_features), dtype), array(b.reshape(out_features, rank), dtype))
