"""Tensors with the dtypes that adapters have, and safetensors files, with numpy alone.

numpy has no bfloat16: a BF16 array keeps its elements as the uint16 that is the upper half of the
float32. All comparisons are made in float64, which holds every value of every dtype here exactly.
"""
import json
import struct
from dataclasses import dataclass

import numpy as np

import stubs  # noqa: F401 (makes the next import possible)
from adapterd.v1 import tensor_pb2

RAW = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16,
       "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
       "BOOL": np.bool_}

# Significant bits (with the hidden one) and the exponent of the smallest subnormal number.
PRECISION = {"F64": (53, -1074), "F32": (24, -149), "F16": (11, -24), "BF16": (8, -133)}


@dataclass
class Array:
    """A dense row-major array: the dtype as safetensors spells it, and the elements as stored."""
    dtype: str
    raw: np.ndarray

    @property
    def shape(self):
        return self.raw.shape

    def values(self):
        """The elements as float64 (integers stay integers)."""
        if self.dtype == "BF16":
            return (self.raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        if self.dtype in PRECISION:
            return self.raw.astype(np.float64)
        return self.raw

    def tobytes(self):
        return np.ascontiguousarray(self.raw).tobytes()

    def proto(self):
        """As a message, with the content in `data`."""
        return tensor_pb2.Tensor(dtype=getattr(tensor_pb2, "DATA_TYPE_" + self.dtype),
                                 shape=self.shape, data=self.tobytes())

    def readable(self):
        """As a message, with the content in `f32_values` or `int64_values`."""
        content = "f32_values" if self.dtype in PRECISION else "int64_values"
        return tensor_pb2.Tensor(dtype=getattr(tensor_pb2, "DATA_TYPE_" + self.dtype),
                                 shape=self.shape, **{content: self.values().ravel()})


def array(values, dtype="F32"):
    """`values`, rounded to nearest even."""
    if dtype != "BF16":
        return Array(dtype, np.asarray(values).astype(RAW[dtype]))
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    return Array(dtype, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))


def from_proto(message):
    """A reply's tensor. Fails when dtype, shape and content do not agree."""
    dtype = tensor_pb2.DataType.Name(message.dtype).removeprefix("DATA_TYPE_")
    shape = tuple(message.shape)
    if message.f32_values:
        return array(np.array(message.f32_values, dtype=np.float32).reshape(shape), dtype)
    return Array(dtype, np.frombuffer(message.data, RAW[dtype]).reshape(shape))


def ulp(values, dtype):
    """Distance from each |value| to the next number of the dtype that is larger."""
    bits, smallest = PRECISION[dtype]
    exponent = np.where(values == 0, smallest, np.frexp(np.abs(values))[1] - bits)
    return np.exp2(np.maximum(exponent, smallest).astype(np.float64))


def unit_roundoff(dtype):
    """Largest relative error of one rounding."""
    return 2.0 ** -PRECISION[dtype][0]


def read_safetensors(path):
    """Name -> Array, in the order of the data."""
    content = path.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8:8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        raw = np.frombuffer(content[8 + size + begin:8 + size + end], RAW[entry["dtype"]])
        tensors[name] = Array(entry["dtype"], raw.reshape(entry["shape"]))
    return tensors


def safetensors_bytes(tensors, metadata=None):
    """A whole file, with the data in the order of `tensors`."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, tensor in tensors.items():
        content = tensor.tobytes()
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data
