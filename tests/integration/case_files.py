"""One folder of peft/cases: the adapter, its base model, and what PEFT computed with them."""
import json

import numpy as np

from harness import fixtures
from layers import Layer
from peft_rules import PeftAdapter
from tensors import Array, array, read_safetensors, safetensors_bytes
from tolerance import Dora

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

# transformers stacks Mixtral's experts in memory and keeps them one by one in files.
_EXPERT_FILES = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}


class Base:
    """A base model: its tensors in the dtype that a case has them in."""

    def __init__(self, name, dtype="F32", replication=None):
        self.name, self.dtype = name, dtype
        self._folder = fixtures("peft/bases") / name
        self._tensors = read_safetensors(self._folder / "model.safetensors")
        self._replication = replication

    def _source(self, path):
        """Replicated layers share the weights of the layer that they repeat."""
        if not self._replication:
            return path
        order = [layer for begin, end in self._replication for layer in range(begin, end)]
        parts = path.split(".")
        at = next(i for i, part in enumerate(parts) if part.isdigit())
        parts[at] = str(order[int(parts[at])])
        return ".".join(parts)

    def tensor(self, path, what):
        """`path`.weight or `path`.bias; None when the base has none."""
        tensor = self._tensors.get(f"{self._source(path)}.{what}")
        return None if tensor is None else array(tensor.values(), self.dtype)

    def expert(self, path, expert):
        """The weight [out, in] of one expert; `path` names the parameter that stacks them."""
        owner, parameter = path.rsplit(".", 1)
        owner = owner.replace(".mlp.experts", f".block_sparse_moe.experts.{expert}")
        parts = [self.tensor(f"{owner}.{name}", "weight") for name in _EXPERT_FILES[parameter]]
        return Array(self.dtype, np.concatenate([part.raw for part in parts]))

    def write(self, folder):
        """As a checkpoint in this dtype, so that the norms of DoRA are those that PEFT took."""
        folder.mkdir()
        config = self._folder / "config.json"
        if config.exists():
            (folder / "config.json").write_bytes(config.read_bytes())
        (folder / "model.safetensors").write_bytes(safetensors_bytes(
            {name: array(tensor.values(), self.dtype) for name, tensor in self._tensors.items()}))


class Case:
    def __init__(self, name):
        self.name = name
        self.folder = fixtures("peft/cases") / name
        self.truth = PeftAdapter(self.folder)
        meta = json.loads((self.folder / "case.json").read_text())
        self.base = Base(meta["base"], _DTYPES[meta["base_dtype"]],
                         self.truth.config.get("layer_replication"))
        self.expected = self._expected()

    def _expected(self):
        """Module path -> {what: Array}."""
        path = self.folder / "expected.safetensors"
        if not path.exists():  # ok-* are other spellings of llama-qv
            path = self.folder.parent / "llama-qv" / "expected.safetensors"
        expected = {}
        for key, tensor in read_safetensors(path).items():
            module, what = key.split("|")
            what, _, parameter = what.partition(".")
            if what == "delta_weight" and parameter:
                module, what = f"{module.replace('.base_layer', '')}.{parameter}", "delta_weight"
            elif parameter:
                what = f"{what}_{parameter}"  # replaced_weight, replaced_bias
            expected.setdefault(module, {})[what] = tensor
        return expected

    @property
    def checkpoint(self):
        """Name of the base in its dtype, as a folder."""
        return f"{self.base.name}-{self.base.dtype}"

    def layer(self, pair, expert=None):
        """What the pair adapts; the file may bring the weight itself."""
        if expert is not None:
            return Layer("LINEAR", self.base.expert(pair.path, expert))
        replaced = self.truth.replacements.get(pair.path)
        weight = replaced.weight if replaced else self.base.tensor(pair.path, "weight")
        return Layer(pair.kind, weight, bool(self.truth.config.get("fan_in_fan_out")))

    def bias(self, pair):
        """The layer's, or the one in its place, as an Array; None: it has none."""
        return pair.replaced_bias or self.base.tensor(pair.path, "bias")

    def dora(self, pair, layer, term):
        magnitude = pair.values("magnitude")
        if magnitude is None:
            return None
        bias = self.bias(pair)
        return Dora.of(layer.matrix(), magnitude, term, 0.0 if bias is None else bias.values())
