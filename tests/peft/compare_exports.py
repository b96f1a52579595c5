"""Compares adapters as PEFT reads them: the original folder and the one that adapterd exported.

    compare_exports.py JOBS      a JSON list of {name, base, dtype, original, exported, exact}

`original` is a folder, or the expected.safetensors of one that PEFT cannot read back itself.
Prints one JSON object a job: {name, compared, worst, where, trouble}. `worst` is the largest
difference in units of what is allowed, at tensor `where`; `trouble` says why none could be taken.
"""
import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file

from layer_outputs import is_pair, is_pruned_away, layers, some_input
from models import load_base

# What PEFT says when it reads less, or other tensors, than a file holds.
MISREAD = ("missing adapter keys", "unexpected", "were not used", "mismatch")

# Of the largest element of a tensor, in units in its last place: where the factors are those of the
# original PEFT computes the same numbers; where they were folded in F32, or the numbers were computed
# on another machine, a few roundings differ.
EXACT_ULPS, ROUNDED_ULPS = 1, 32


def read(base, dtype, folder):
    """The base with the adapter; ValueError when PEFT passes over anything."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(load_base(base, dtype), folder).eval()
    misread = [str(w.message) for w in caught
               if any(words in str(w.message).lower() for words in MISREAD)]
    if misread:
        raise ValueError(f"{folder}: {misread[0]}")
    return model


@torch.no_grad()
def results(model, inputs=None):
    """Outputs of the layers for `inputs`; without them for seeded ones, and every tensor after
    merge_and_unload."""
    random = torch.Generator().manual_seed(3)
    found = {}
    for path, layer in sorted(layers(model), key=lambda item: item[0]):
        # A LoRA cannot have a pair without rank, so an export leaves it out; what it does to its
        # weight is compared after the merge.
        if is_pair(layer) and not path.endswith("token_adapter") and not is_pruned_away(layer):
            x = some_input(layer, random) if inputs is None else inputs[path]
            found[path] = layer(x)
    if inputs is None:
        found |= {f"merged {name}": tensor
                  for name, tensor in model.merge_and_unload().state_dict().items()}
    return found


def distance(ours, expected, ulps):
    if ours.shape != expected.shape or ours.dtype != expected.dtype:
        return float("inf")
    if not ours.is_floating_point():
        return 0.0 if torch.equal(ours, expected) else float("inf")
    limit = ulps * torch.finfo(ours.dtype).eps * expected.abs().max()
    off = (ours - expected).abs().max()
    return 0.0 if off == 0 else (off / limit).item()


def compare(job):
    base, dtype = Path(job["base"]), getattr(torch, job["dtype"])
    original, inputs = Path(job["original"]), None
    if original.is_dir():
        expected = results(read(base, dtype, original))
    else:
        stored = load_file(original)
        inputs, expected = ({key.removesuffix(end): tensor for key, tensor in stored.items()
                             if key.endswith(end)} for end in ("|x", "|y"))
    ours = results(read(base, dtype, job["exported"]), inputs)
    if set(ours) != set(expected):
        return {"trouble": f"other tensors: {sorted(set(ours) ^ set(expected))[:8]}"}
    ulps = EXACT_ULPS if job["exact"] and original.is_dir() else ROUNDED_ULPS
    distances = {name: distance(ours[name], expected[name], ulps) for name in expected}
    where = max(distances, key=distances.get)
    return {"compared": len(distances), "worst": distances[where], "where": where, "trouble": ""}


def main(jobs):
    for job in json.loads(Path(jobs).read_text()):
        try:
            report = compare(job)
        except Exception as error:  # whatever PEFT raises, the other jobs go on
            report = {"trouble": f"{type(error).__name__}: {error}"}
        print(json.dumps({"name": job["name"], **report}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
