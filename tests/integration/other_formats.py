"""Adapters of mlx-lm, sd-scripts and diffusers, read by their own tools' rules, and what those tools
computed with them (tests/fixtures/other)."""
import json
import re
from dataclasses import dataclass, field

import numpy as np

from harness import fixtures
from tensors import Array, read_safetensors
from tolerance import Term

_EMBEDDINGS = ("embed_tokens",)


@dataclass
class Factors:
    """One pair: A [rank, columns] and B [out, rank] in float64, and the factor on their product."""
    a: np.ndarray
    b: np.ndarray
    scale: float
    dtype: str
    experts: int = 0
    expert: int = None

    def term(self, x, weight=1.0):
        return Term(x, self.a, self.b, self.scale * weight, self.dtype)


@dataclass
class Module:
    """`delta` in the layout of the base weight; `base`, `x` and `y` where the tool gave them."""
    path: str
    kind: str
    pairs: list
    kernel: tuple = ()
    magnitude: np.ndarray = None
    delta: Array = None
    base: Array = None
    x: Array = None
    y: Array = None
    ids: np.ndarray = None  # experts that `x` goes to

    @property
    def sizes(self):
        """(rank, in_features, out_features) as the API counts them."""
        places = int(np.prod(self.kernel, dtype=int))
        return len(self.pairs[0].a), self.pairs[0].a.shape[1] // places, len(self.pairs[0].b)

    def in_layout(self, matrix):
        """[out, columns] as the base weight lies."""
        if self.kind == "EMBEDDING":
            return matrix.T
        return matrix.reshape(*self._weight_shape()) if self.kind == "CONV" else matrix

    def _weight_shape(self):
        _, wide_in, wide_out = self.sizes
        return (wide_out, wide_in, *self.kernel)


@dataclass
class Adapter:
    """A weights file below tests/fixtures; `files` are the names that the API calls it by."""
    kind: str       # of fixtures: "other", "real"
    source: str     # below that folder: a folder or a file
    weights: str    # the file
    format: str
    method: str
    modules: dict = field(default_factory=dict)

    @property
    def folder(self):
        return fixtures(self.kind) / self.source.split("/")[0]

    @property
    def file(self):
        return self.folder / self.weights

    def expect(self):
        """Adds what the tool computed."""
        path = self.folder / "expected.safetensors"
        for key, tensor in (read_safetensors(path) if path.exists() else {}).items():
            path, _, what = key.rpartition(".")
            setattr(self.modules[path], "ids" if what == "indices" else what, tensor)
        return self


def _by_module(tensors, parts):
    """Path -> {part: Array} of names that end with one of `parts` (suffix -> part)."""
    modules = {}
    for name, tensor in tensors.items():
        suffix = next(s for s in parts if name.endswith(s))
        modules.setdefault(name.removesuffix(suffix), {})[parts[suffix]] = tensor
    return modules


def mlx(kind, source):
    """lora_a [in, rank], lora_b [rank, out]; experts lora_a [e, rank, in], lora_b [e, out, rank]."""
    folder = fixtures(kind) / source
    config = json.loads((folder / "adapter_config.json").read_text())
    adapter = Adapter(kind, source, "adapters.safetensors", "MLX", config["fine_tune_type"])
    scale = config["lora_parameters"]["scale"]
    parts = {".lora_a": "a", ".lora_b": "b", ".m": "m"}
    for path, tensors in _by_module(read_safetensors(adapter.file), parts).items():
        a, b = tensors["a"].values(), tensors["b"].values()
        if a.ndim == 3:
            pairs = [Factors(*ab, scale, tensors["a"].dtype, len(a), e)
                     for e, ab in enumerate(zip(a, b))]
            adapter.modules[path] = Module(path, "EXPERTS", pairs)
            continue
        is_embedding = path.rpartition(".")[2] in _EMBEDDINGS
        adapter.modules[path] = Module(path, "EMBEDDING" if is_embedding else "LINEAR",
                                       [Factors(a.T, b.T, scale, tensors["a"].dtype)])
        if "m" in tensors:
            adapter.modules[path].magnitude = tensors["m"].values()
    return adapter.expect()


def _pair_of_files(adapter, path, down, up, scale):
    """down [rank, in, kernel...], up [out, rank, 1...]."""
    a, b = down.values(), up.values()
    factors = Factors(a.reshape(len(a), -1), b.reshape(len(b), -1), scale, down.dtype)
    adapter.modules[path] = Module(path, "CONV" if a.ndim > 2 else "LINEAR", [factors], a.shape[2:])


def kohya(source, weights):
    adapter = Adapter("other", f"{source}/{weights}", weights, "KOHYA", "lora")
    parts = {".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha"}
    for path, t in _by_module(read_safetensors(adapter.file), parts).items():
        _pair_of_files(adapter, path, t["down"], t["up"],
                       float(t["alpha"].values()) / t["down"].shape[0])
    return adapter.expect()


def diffusers(kind, folder, weights, scale):
    """`scale`: what the folder's README says that diffusers uses."""
    adapter = Adapter(kind, f"{folder}/{weights}", weights, "DIFFUSERS", "lora")
    parts = {".lora.down.weight": "down", ".lora.up.weight": "up", ".lora_A.weight": "down",
             ".lora_B.weight": "up"}
    for path, t in _by_module(read_safetensors(adapter.file), parts).items():
        _pair_of_files(adapter, re.sub(r"^unet\.", "", path), t["down"], t["up"], scale)
    return adapter.expect()


def adapters():
    """All of them, by a name for messages."""
    return {
        "mlx-llama-lora": mlx("other", "mlx-llama-lora"),
        "mlx-llama-dora": mlx("other", "mlx-llama-dora"),
        "mlx-llama-embed-lora": mlx("other", "mlx-llama-embed-lora"),
        "mlx-moe-lora": mlx("other", "mlx-moe-lora"),
        "mlx-published": mlx("real", "mlx-qwen2.5-dpo"),
        "kohya-native": kohya("kohya-native", "lora.safetensors"),
        "kohya-native-fp16": kohya("kohya-native", "lora-fp16.safetensors"),
        "kohya-native-conv": kohya("kohya-native-conv", "lora.safetensors"),
        "kohya-unet": kohya("kohya-unet", "pytorch_lora_weights_kohya.safetensors"),
        "diffusers-metadata": diffusers("other", "diffusers-unet-metadata",
                                        "pytorch_lora_weights.safetensors", 2.0),
        "diffusers-metadata-unet": diffusers("other", "diffusers-unet-metadata",
                                             "unet_lora_adapter.safetensors", 2.0),
        "diffusers-plain": diffusers("other", "diffusers-unet-plain",
                                     "pytorch_lora_weights.safetensors", 1.0),
        "diffusers-plain-peft-keys": diffusers("other", "diffusers-unet-plain",
                                               "pytorch_lora_weights_peft_keys.safetensors", 1.0),
        "diffusers-published": diffusers("real", "diffusers-sd-unet",
                                         "pytorch_lora_weights.safetensors", 1.0),
    }
