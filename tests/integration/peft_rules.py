"""What PEFT's files mean, written a second time and independently of the server.

Patterns are matched by Python's own `re`, as PEFT does it.
"""
import hashlib
import json
import math
import re
import struct
from dataclasses import dataclass, field

from tensors import Array, read_safetensors

_PREFIX = re.compile(r"(?:_orig_mod\.)?(?:base_model\.model\.)?")
_ADAPTED = re.compile(
    r"(?P<path>.+)\.(?:"
    r"(?P<factor>lora_(?:embedding_)?[ABE])(?:(?:\.(?P<adapter>[^.]+))?\.(?P<of_b>weight|bias))?|"
    r"(?P<other>lora_magnitude_vector|vera_lambda_[bd])(?:\.weight)?)")
_TOKENS = re.compile(r"(?P<path>.+)\.token_adapter\.trainable_tokens_delta")
_REPLACED = re.compile(r"(?P<path>.+?)(?:\.base_layer)?\.(?P<what>weight|bias)")
_ROLES = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_E": "lora_e", "lora_embedding_A": "lora_a",
          "lora_embedding_B": "lora_b", "lora_magnitude_vector": "magnitude",
          "vera_lambda_b": "lambda_b", "vera_lambda_d": "lambda_d"}

# Parameters of one module in the order in which transformers' experts register them: each further
# one that PEFT adapts wraps the ones before.
_REGISTERED = ["gate_up_proj", "down_proj"]


def _by_pattern(patterns, path, default):
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


@dataclass
class Pair:
    """delta W = scale * B A of one weight, or of each expert's."""
    path: str
    kind: str      # as in MODULE_KIND_*
    tensors: dict  # role -> Array as stored
    alpha: float = 0.0
    scale: float = 0.0
    experts: int = 0
    replaced_bias: Array = None

    @property
    def dtype(self):
        return self.tensors["lora_a"].dtype

    @property
    def folds(self):
        """Roundings in F32 that can stand between the file and the factors."""
        return 4 if {"lora_e", "lambda_b"} & set(self.tensors) else 0

    def values(self, role):
        """float64, or None when the file has no such tensor; a vector where it stands for one."""
        tensor = self.tensors.get(role)
        if tensor is None:
            return None
        return tensor.values().ravel() if role == "magnitude" else tensor.values()

    def factors(self, expert=None):
        """A [rank, columns] and B [out, rank] in float64, with all that belongs into them."""
        a, b = self.values("lora_a"), self.values("lora_b")
        if self.kind == "EXPERTS":
            rank = len(a) // self.experts
            return (a.reshape(self.experts, rank, -1)[expert],
                    b.reshape(len(b), rank, self.experts)[:, :, expert])
        a, b = (factor.reshape(len(factor), math.prod(factor.shape[1:])) for factor in (a, b))
        if "lora_e" in self.tensors:
            a = a * self.values("lora_e")
        if "lambda_b" in self.tensors:
            a, b = self.values("lambda_d")[:, None] * a, self.values("lambda_b")[:, None] * b
        return a, b

    @property
    def sizes(self):
        """(rank, in_features, out_features) as the API counts them."""
        a, b = self.tensors["lora_a"].shape, self.tensors["lora_b"].shape
        return a[0] // max(self.experts, 1), a[1], b[0]


@dataclass
class Replacement:
    """Tensors that take the place of the base model's."""
    path: str
    weight: Array = None   # with token_ids: these rows alone
    bias: Array = None
    token_ids: list = field(default_factory=list)


class PeftAdapter:
    """A folder: `modules` maps paths to Pairs, `replacements` maps paths to Replacements."""

    def __init__(self, folder):
        self.config = json.loads((folder / "adapter_config.json").read_text())
        self.modules, self.replacements, shared, replaced = {}, {}, {}, []
        for name, tensor in read_safetensors(folder / "adapter_model.safetensors").items():
            if name in ("base_model.vera_A", "base_model.vera_B"):
                shared["lora_" + name[-1].lower()] = tensor
                continue
            plain = name[_PREFIX.match(name).end():]
            if not (self._adapted(plain, tensor) or self._tokens(plain, tensor)):
                replaced.append((plain, tensor))
        for plain, tensor in replaced:
            self._replaced(plain, tensor)
        for pair in self.modules.values():
            self._share(pair, shared)
            self._scale(pair)

    def _adapted(self, name, tensor):
        key = _ADAPTED.fullmatch(name)
        if key is None:
            return False
        role = _ROLES[key["factor"] or key["other"]]
        kind = "EMBEDDING" if "embedding" in (key["factor"] or "") else "LINEAR"
        if key["of_b"] == "bias":
            role = "lora_bias"
        path = self._parameter(key["path"])
        if path != key["path"]:
            kind = "EXPERTS"
        elif role == "lora_a" and len(tensor.shape) > 2:
            kind = "CONV"
        pair = self.modules.setdefault(path, Pair(path, kind, {}))
        pair.kind = kind if pair.kind == "LINEAR" else pair.kind
        pair.tensors[role] = tensor
        return True

    def _parameter(self, path):
        """The parameter that is adapted, when `path` is a wrapper of target_parameters."""
        owner = re.sub(r"(\.base_layer)+$", "", path)
        names = [name for name in _REGISTERED
                 if any(f".{owner}.{name}".endswith(f".{target}")
                        for target in self.config.get("target_parameters") or [])]
        if not names:
            return path
        wrapped = path[len(owner):].count(".base_layer")
        return f"{owner}.{names[len(names) - 1 - wrapped]}"

    def _tokens(self, name, tensor):
        key = _TOKENS.fullmatch(name)
        if key is None:
            return False
        indices = self.config["trainable_token_indices"]
        if isinstance(indices, dict):
            indices = next(ids for layer, ids in indices.items()
                           if f".{key['path']}".endswith(f".{layer}"))
        self.replacements[key["path"]] = Replacement(key["path"], tensor, token_ids=indices)
        return True

    def _replaced(self, name, tensor):
        key = _REPLACED.fullmatch(name)
        if key is None:
            raise ValueError(f"{name} is nothing that PEFT writes")
        pair = self.modules.get(key["path"])
        if pair is not None and key["what"] == "bias":
            pair.replaced_bias = tensor
            return
        setattr(self.replacements.setdefault(key["path"], Replacement(key["path"])), key["what"],
                tensor)

    def _share(self, pair, shared):
        """VeRA's modules share two matrices, of which a module uses the first rows of B."""
        if "lambda_b" in pair.tensors:
            b = shared["lora_b"]
            rows = pair.tensors["lambda_b"].shape[0]
            pair.tensors |= {"lora_a": shared["lora_a"], "lora_b": Array(b.dtype, b.raw[:rows])}

    def _scale(self, pair):
        config = self.config
        if config["peft_type"] == "VERA":
            pair.scale = 1.0
            return
        pair.alpha = _by_pattern(config.get("alpha_pattern"), pair.path,
                                 config.get("lora_alpha", 8))
        rank = pair.tensors["lora_a"].shape[0]
        if config["peft_type"] == "ADALORA":
            alpha = pair.alpha if pair.alpha > 0 else config["init_r"]
            pair.scale = alpha / (config["init_r"] + 1e-5)
            return
        if pair.kind == "EXPERTS":
            pair.experts = rank // _by_pattern(config.get("rank_pattern"), pair.path,
                                               config.get("r", 8))
            rank //= pair.experts
        pair.scale = pair.alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    @property
    def uses_dora(self):
        return any("magnitude" in pair.tensors for pair in self.modules.values())

    @property
    def is_plain(self):
        """Holds nothing but the pairs of linear layers."""
        return not self.replacements and all(
            pair.kind == "LINEAR" and set(pair.tensors) == {"lora_a", "lora_b"}
            and pair.replaced_bias is None for pair in self.modules.values())

    def revision(self):
        """The content digest that the API documents, step by step, of a plain adapter."""
        assert self.is_plain
        lines = []
        for path, pair in self.modules.items():
            scale = struct.pack(">d", pair.scale).hex()
            for role, tensor in pair.tensors.items():
                dims = "x".join(map(str, tensor.shape))
                digest = hashlib.sha256(tensor.tobytes()).hexdigest()
                fields = (path, role, scale, tensor.dtype, dims, digest)
                lines.append(("\t".join(fields) + "\n").encode())
        return hashlib.sha256(b"adapterd-revision-v1\n" + b"".join(sorted(lines))).hexdigest()
