"""What PEFT's files mean, written a second time and independently of the server.

Patterns are matched by Python's own `re`, as PEFT does it.
"""
import hashlib
import json
import math
import re
import struct

from tensors import read_safetensors

_KEY = re.compile(r"(?:_orig_mod\.)?(?:base_model\.model\.)?(?P<path>.+)\.lora_(?P<factor>[AB])"
                  r"(?:\.(?P<adapter>[^.]+))?\.weight")


def _by_pattern(patterns, path, default):
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


class PeftAdapter:
    """A folder with a plain LoRA: `modules` maps each path to its (A, B) as stored."""

    def __init__(self, folder):
        self.config = json.loads((folder / "adapter_config.json").read_text())
        self.modules = {}
        for name, tensor in read_safetensors(folder / "adapter_model.safetensors").items():
            key = _KEY.fullmatch(name)
            if key is None:
                raise ValueError(f"{folder}: {name} is no factor of a plain LoRA")
            pair = self.modules.setdefault(key["path"], [None, None])
            pair["AB".index(key["factor"])] = tensor

    def alpha(self, path):
        return _by_pattern(self.config.get("alpha_pattern"), path, self.config.get("lora_alpha", 8))

    def scale(self, path):
        rank = self.modules[path][0].shape[0]
        return self.alpha(path) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def revision(self):
        """The content digest that the API documents, step by step."""
        lines = []
        for path, pair in self.modules.items():
            scale = struct.pack(">d", self.scale(path)).hex()
            for role, tensor in zip(("lora_a", "lora_b"), pair):
                dims = "x".join(map(str, tensor.shape))
                digest = hashlib.sha256(tensor.tobytes()).hexdigest()
                fields = (path, role, scale, tensor.dtype, dims, digest)
                lines.append(("\t".join(fields) + "\n").encode())
        return hashlib.sha256(b"adapterd-revision-v1\n" + b"".join(sorted(lines))).hexdigest()
