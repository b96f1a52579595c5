"""What PEFT reads of an adapter that adapterd created for a Llama of the given sizes.

    read_created.py FOLDER CONFIG     CONFIG: the model's LlamaConfig as JSON

The model's own weights are memory that nobody touches, in BF16, to which PEFT rounds the factors that it
reads: only shapes are needed of them. Prints one JSON object: modules, largest (of |B A|), and of the file's
A times sqrt(in_features): draws, mean, deviation, greatest, kolmogorov (the distance to the uniform
distribution on [-1, 1], times the root of the number of draws).
"""
import json
import math
import sys
import warnings

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from compare_exports import MISREAD


def read(folder, config):
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(**config, dtype="bfloat16")).bfloat16()
    base = base.to_empty(device="cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True)
    misread = [str(w.message) for w in caught
               if any(words in str(w.message).lower() for words in MISREAD)]
    if misread:
        raise ValueError(misread[0])
    return model


@torch.no_grad()
def judge(folder, model):
    file = load_file(f"{folder}/adapter_model.safetensors")
    largest, modules, draws = 0.0, 0, []
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        modules += 1
        largest = max(largest, layer.get_delta_weight("default").abs().max().item())
        a = file[f"{name}.lora_A.weight"]
        read = layer.lora_A["default"].weight
        if not torch.equal(read, a.bfloat16().to(read.dtype)):
            raise ValueError(f"{name}: PEFT read other numbers than the file has")
        draws.append((a * math.sqrt(a.shape[1])).flatten())
    values = torch.cat(draws).double().sort().values
    count = len(values)
    expected = (values + 1) / 2
    below = torch.arange(count, dtype=torch.double) / count
    distance = max((expected - below).abs().max(), (below + 1 / count - expected).abs().max())
    return {"modules": modules, "largest": largest, "draws": count, "mean": values.mean().item(),
            "deviation": values.std().item(), "greatest": values.abs().max().item(),
            "kolmogorov": (distance * math.sqrt(count)).item()}


if __name__ == "__main__":
    print(json.dumps(judge(sys.argv[1], read(sys.argv[1], json.loads(sys.argv[2])))))
