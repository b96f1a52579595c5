"""What soak's clients load, and what it must answer, with numpy alone.

All factors, inputs and weights are small whole numbers: every sum stays below 2^24, so that each answer is
exact in F32 whatever the order of the sums, and any other bit is a wrong answer.
"""
from dataclasses import dataclass, field

import numpy as np

from adapters import Q0, V0, exact_adapter, tensors_of, config_of, write_files
from checkpoints import write_checkpoint
from tensors import array

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CONTENTS = 12
IN = 64
OUT = {Q0: 48, V0: 32}
MODEL = "model"  # the source of the base model


def modules(rank):
    return {path: (IN, out, rank) for path, out in OUT.items()}


@dataclass(frozen=True)
class Content:
    """An adapter. `deltas`: path -> scale * B A. Without a source it was made by a request."""
    revision: str
    deltas: dict
    source: str = ""
    files: dict = field(default_factory=dict)
    rank: int = 0

    @staticmethod
    def of(truth, **fields):
        deltas = {}
        for path, pair in truth.modules.items():
            a, b = pair.factors()
            deltas[path] = pair.scale * b @ a
        return Content(truth.revision(), deltas, **fields)


def write_contents(root):
    """Below `root`; the same in every process."""
    contents = []
    for i in range(CONTENTS):
        rank, folder = 2 + i % 7, root / f"s{i}"
        truth = exact_adapter(folder, modules(rank), seed=i)
        files = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
        contents.append(Content.of(truth, source=folder.name, files=files, rank=rank))
    return contents


def write_broken(root):
    """Sources that are refused, by reason."""
    weights = tensors_of(modules(2))
    write_files(root / "nan", config_of(modules(2)), {
        name: array(np.full(t.shape, np.nan)) for name, t in weights.items()})
    write_files(root / "torn", config_of(modules(2)), b"\xff" * 100)
    write_files(root / "text", "no config", weights)
    return {"nan": "NON_FINITE_WEIGHTS", "torn": "MALFORMED_TENSOR_FILE",
            "text": "MALFORMED_CONFIG", "nothing": "SOURCE_NOT_FOUND", "../s0": "PATH_OUTSIDE_ROOT"}


def base_weights():
    random = np.random.default_rng(99)
    return {path: random.integers(-4, 5, (out, IN)).astype(float) for path, out in OUT.items()}


def write_model(root):
    write_checkpoint(root / MODEL, {f"{path}.weight": array(weight)
                                    for path, weight in base_weights().items()})
