"""What transformers computes with checkpoints: how far their logits are from those of the first.

    read_logits.py FOLDER FOLDER ...

Loads each in F32 and lets it read the same tokens. Prints one JSON object: scale, the largest magnitude among
the first one's logits, and distances, the largest difference from them, one for each further folder.
"""
import json
import sys

import torch
from transformers import AutoModelForCausalLM

TOKENS = 12


@torch.no_grad()
def logits(folder):
    model, told = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                       output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told[what]:
            raise ValueError(f"{what}: {sorted(map(str, told[what]))[:3]}")
    draw = torch.Generator().manual_seed(5)
    tokens = torch.randint(model.config.vocab_size - 8, (2, TOKENS), generator=draw)
    return model.eval()(input_ids=tokens, use_cache=False).logits


def main(first, *others):
    expected = logits(first)
    distances = []
    for folder in others:
        found = logits(folder)
        # A resized embedding has more or fewer tokens than the other.
        width = min(expected.shape[-1], found.shape[-1])
        distances.append((found[..., :width] - expected[..., :width]).abs().max().item())
    print(json.dumps({"scale": expected.abs().max().item(), "distances": distances}))


if __name__ == "__main__":
    main(*sys.argv[1:])
