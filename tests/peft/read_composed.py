"""How far compositions that adapterd exported are from add_weighted_adapter's, in the real PEFT.

    read_composed.py BASE ADAPTERS EXPORTS     folders; ADAPTERS has compose.json
    read_composed.py time                      seconds of PEFT's SVD of eight adapters on one 4096 x 4096 module

Prints one JSON object: the largest distance of a module's deltas, relative to the norm, by case.
"""
import json
import sys
import time
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from compare_exports import MISREAD
from models import load_base


def layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


@torch.no_grad()
def compare(base, adapters, exports):
    cases = json.loads((adapters / "compose.json").read_text())
    model = PeftModel.from_pretrained(load_base(base, torch.float32), adapters / "a", adapter_name="a")
    for name in "bcd":
        model.load_adapter(adapters / name, adapter_name=name)
    found = {}
    for name, case in cases.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.load_adapter(exports / name, adapter_name=f"ours-{name}")
        misread = [str(w.message) for w in caught
                   if any(words in str(w.message).lower() for words in MISREAD)]
        if misread:
            raise ValueError(misread[0])
        model.add_weighted_adapter(adapter_name=f"peft-{name}", **case)
        distances = []
        for layer in layers(model).values():
            theirs = layer.get_delta_weight(f"peft-{name}")
            ours = layer.get_delta_weight(f"ours-{name}")
            distances.append(((ours - theirs).norm() / theirs.norm()).item())
        found[name] = max(distances)
    return found


@torch.no_grad()
def seconds(inputs=8, rank=16, side=4096):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("q_proj", nn.Linear(side, side, bias=False))
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj"],
                        init_lora_weights=False)
    model = get_peft_model(model, config, adapter_name="0")
    for i in range(1, inputs):
        model.add_adapter(str(i), config)
    start = time.monotonic()
    model.add_weighted_adapter([str(i) for i in range(inputs)], [0.5] * inputs, "mixed",
                               combination_type="svd", svd_rank=rank)
    return time.monotonic() - start


if __name__ == "__main__":
    print(json.dumps(seconds() if sys.argv[1] == "time" else compare(*map(Path, sys.argv[1:]))))
