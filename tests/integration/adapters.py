"""Writes small PEFT folders for the tests, whole or broken on purpose."""
import json
import math
import time

import numpy as np

from peft_rules import PeftAdapter
from tensors import array, safetensors_bytes
from adapterd.v1 import adapter_pb2, projection_service_pb2

Q0 = "model.layers.0.self_attn.q_proj"
Q1 = "model.layers.1.self_attn.q_proj"
V0 = "model.layers.0.self_attn.v_proj"
V1 = "model.layers.1.self_attn.v_proj"

# path -> (in_features, out_features, rank)
SMALL = {Q0: (8, 6, 2), V0: (8, 4, 2), Q1: (8, 6, 2), V1: (8, 4, 2)}

CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "tiny", "r": 2, "lora_alpha": 3}


def config_of(modules, **changes):
    """A config that targets `modules`; a change to ... (Ellipsis) takes the key away."""
    targets = sorted({path.rsplit(".", 1)[-1] for path in modules})
    ranks = {rank for _, _, rank in modules.values()}
    config = {**CONFIG, "target_modules": targets, "r": max(ranks), **changes}
    return {key: value for key, value in config.items() if value is not ...}


def tensors_of(modules, seed=0, dtype="F32"):
    random = np.random.default_rng(seed)
    tensors = {}
    for path, (wide_in, wide_out, rank) in modules.items():
        for factor, shape in (("A", (rank, wide_in)), ("B", (wide_out, rank))):
            tensors[f"base_model.model.{path}.lora_{factor}.weight"] = array(
                random.standard_normal(shape), dtype)
    return tensors


def write_files(folder, config, weights, weights_name="adapter_model.safetensors"):
    """`config`: a dict, text or None for no file; `weights`: Arrays by name, bytes or None."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "adapter_config.json").write_text(text)
    if weights is not None:
        content = weights if isinstance(weights, bytes) else safetensors_bytes(weights)
        (folder / weights_name).write_bytes(content)
    return folder


def write_adapter(folder, modules=None, seed=0, dtype="F32", **config):
    """A valid adapter with random factors; its truth as PeftAdapter."""
    modules = modules or SMALL
    write_files(folder, config_of(modules, **config), tensors_of(modules, seed, dtype))
    return PeftAdapter(folder)


# Much work for few bytes; exact_adapter's sums stay whole numbers below 2^24 all the same.
HEAVY = {Q0: (64, 64, 2048)}


def heavy_request(client, name, x, seconds):
    """A request for HEAVY that keeps one worker busy for about so long on this machine.

    Gives the request and the factor on the adapter's delta in each of its outputs.
    """
    request = projection_service_pb2.ApplyProjectionRequest(input=x)
    request.segments.add().adapters.extend([adapter_pb2.AdapterRef(name=name)] * 16)
    request.projections.add(module=adapter_pb2.ModuleSelector(path=Q0))
    times = []
    for _ in range(3):
        start = time.monotonic()
        client.apply(request)
        times.append(time.monotonic() - start)
    repeats = min(200, math.ceil(seconds / min(times)))
    request.projections.extend([request.projections[0]] * (repeats - 1))
    return request, 16


def delta_of(truth, path, x):
    """scale * B (A x) in float64."""
    pair = truth.modules[path]
    a, b = pair.factors()
    return pair.scale * (x @ a.T) @ b.T


def exact_adapter(folder, modules, seed=0, **config):
    """An adapter of small whole numbers, whose arithmetic is exact in F32 in any order."""
    random = np.random.default_rng(seed)
    tensors = {name: array(random.integers(-4, 5, tensor.shape))
               for name, tensor in tensors_of(modules).items()}
    write_files(folder, config_of(modules, lora_alpha=max(r for _, _, r in modules.values()),
                                  **config), tensors)
    return PeftAdapter(folder)
