"""Checkpoint folders: read as a whole, and written small, whole or broken on purpose."""
import hashlib
import json

import numpy as np

from tensors import Array, RAW, array, read_safetensors, safetensors_bytes

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CERTIFICATE = "adapterd_merge.json"

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32,
          "tie_word_embeddings": False}

# Modules of `layer`: path below the layer -> (out, in).
PROJECTIONS = {"self_attn.q_proj": (24, 16), "self_attn.k_proj": (8, 16),
               "self_attn.v_proj": (8, 16), "self_attn.o_proj": (16, 24),
               "mlp.gate_proj": (40, 16), "mlp.up_proj": (40, 16), "mlp.down_proj": (16, 40)}


def read_checkpoint(folder):
    """Name -> Array over all files of weights; fails when an index says something else."""
    if not (folder / INDEX).exists():
        return read_safetensors(folder / WEIGHTS)
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    tensors = {}
    for name in sorted(set(places.values())):
        for tensor, value in read_safetensors(folder / name).items():
            assert places[tensor] == name, f"{tensor} is in {name}, not in {places[tensor]}"
            tensors[tensor] = value
    assert set(tensors) == set(places), set(tensors) ^ set(places)
    return tensors


def projection_paths(layers):
    return {f"model.layers.{layer}.{path}": shape
            for layer in range(layers) for path, shape in PROJECTIONS.items()}


def llama_tensors(layers=2, dtype="F32", seed=0, more=None):
    """A model of seven projections a layer, with norms, embedding and head; and `more`."""
    random = np.random.default_rng(seed)
    tensors = {"model.embed_tokens.weight": (32, 16), "model.norm.weight": (16,),
               "lm_head.weight": (32, 16)}
    for path, shape in projection_paths(layers).items():
        tensors[f"{path}.weight"] = shape
    for layer in range(layers):
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = (16,)
    return {**{name: array(random.standard_normal(shape), dtype) for name, shape in tensors.items()},
            **(more or {})}


def odd_tensors(count, seed=1):
    """Of every type that numpy can hold, with any bits, also NaN payloads; scalars and empty ones."""
    random = np.random.default_rng(seed)
    shapes = [(), (0,), (1,), (7,), (3, 5), (2, 3, 4), (33, 129)]
    tensors = {}
    for i in range(count):
        dtype = sorted(RAW)[i % len(RAW)]
        shape = shapes[i % len(shapes)]
        raw = np.frombuffer(random.bytes(int(np.prod(shape)) * np.dtype(RAW[dtype]).itemsize),
                            np.uint8)
        if dtype == "BOOL":
            raw = raw % 2
        tensors[f"extra.{i:03}.buffer"] = Array(dtype, raw.view(RAW[dtype]).reshape(shape))
    return tensors


def write_checkpoint(folder, tensors, config=CONFIG, shards=1):
    """One file, or shards with their index."""
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    if shards == 1:
        (folder / WEIGHTS).write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
        return folder
    names = sorted(tensors)
    places = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        (folder / file).write_bytes(safetensors_bytes(part, {"format": "pt"}))
        places.update({name: file for name in part})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def digests(tensors):
    return {name: (t.dtype, t.shape, hashlib.sha256(t.tobytes()).hexdigest())
            for name, t in tensors.items()}


def checkpoint_digest(tensors):
    """As docs/merging.md defines it."""
    digest = hashlib.sha256(b"adapterd-checkpoint-v1\n")
    for name, (dtype, shape, sha256) in sorted(digests(tensors).items(),
                                               key=lambda item: item[0].encode()):
        digest.update(f"{name}\t{dtype}\t{'x'.join(map(str, shape))}\t{sha256}\n".encode())
    return digest.hexdigest()
