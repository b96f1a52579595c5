"""Every layer that PEFT adapts as one matrix product, rows(x) W^T + bias, in float64.

So one formula, one tolerance and one check serve linear layers, embeddings and convolutions.
"""
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tensors import Array


class Layer:
    """kind: as in MODULE_KIND_*; in_out: a linear layer's weight is kept [in, out] (Conv1D)."""

    def __init__(self, kind, weight, in_out=False):
        self.kind = kind
        self.weight = weight  # an Array in the layout of the checkpoint
        self.transposed = kind == "EMBEDDING" or in_out

    def matrix(self, weight=None):
        """W [out, columns] of `weight`, an Array like the layer's own."""
        values = (weight or self.weight).values()
        return values.T if self.transposed else values.reshape(len(values), -1)

    def in_layout(self, matrix):
        """The way back: [out, columns] in the layout and shape of the weight."""
        return matrix.T if self.transposed else matrix.reshape(self.weight.shape)

    @property
    def is_pointwise(self):
        """Each row of the output depends on one row of the input alone."""
        return self.kind != "CONV" or all(size == 1 for size in self.weight.shape[2:])

    def rows(self, x):
        """The rows that the matrix is applied to: one-hot for ids, patches for a convolution."""
        if self.kind == "EMBEDDING":
            return np.eye(self.weight.shape[0])[x.values()]
        if self.kind != "CONV":
            return x.values()
        high, wide = self.weight.shape[2:]  # stride 1, padded to keep the size
        padded = np.pad(x.values(), ((0, 0), (0, 0), (high // 2,) * 2, (wide // 2,) * 2))
        patches = sliding_window_view(padded, (high, wide), axis=(2, 3))
        return patches.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * high * wide)

    def last(self, tensor):
        """An input or output as ApplyProjection takes it: a convolution's channels come last."""
        if self.kind != "CONV":
            return tensor
        return Array(tensor.dtype, np.moveaxis(tensor.raw, 1, -1))

    def outputs(self, y):
        """y as [rows, out]."""
        values = self.last(y).values()
        return values.reshape(-1, values.shape[-1])
