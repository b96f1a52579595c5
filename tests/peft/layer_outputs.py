"""What PEFT computes, layer by layer, with an adapter that it has read from its files."""
import copy

import torch
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

ADAPTER = "default"
PREFIX = "base_model.model."


def layers(model):
    """(path in the base model, layer) of all that the adapter has changed."""
    for name, layer in model.named_modules():
        if isinstance(layer, (BaseTunerLayer, ModulesToSaveWrapper, TrainableTokensWrapper)):
            if isinstance(layer, BaseTunerLayer) and hasattr(layer, "get_base_layer"):
                if ADAPTER not in layer.active_adapters:
                    continue
            yield name.removeprefix(PREFIX), layer


def is_pair(layer):
    return not isinstance(layer, (ModulesToSaveWrapper, TrainableTokensWrapper, ParamWrapper))


def is_pruned_away(layer):
    """AdaLoRA has left it no rank."""
    pairs = getattr(layer, "lora_E", {})
    return any(factors.shape[0] == 0 for factors in pairs.values())


def some_input(layer, random):
    base = layer.get_base_layer()
    if isinstance(base, torch.nn.Embedding):
        return torch.randint(0, base.num_embeddings, (7,), generator=random)
    dtype = base.weight.dtype
    if isinstance(base, torch.nn.Conv2d):
        return torch.randn(2, base.in_channels, 4, 6, generator=random).to(dtype)
    wide = base.in_features if hasattr(base, "in_features") else base.weight.shape[0]
    return torch.randn(4, wide, generator=random).to(dtype)


def merged_layer(layer):
    """(weight, bias or None) of the layer after PEFT's merge with one rounding."""
    whole = copy.deepcopy(layer)
    whole.merge(adapter_names=[ADAPTER])
    base = whole.get_base_layer()
    return base.weight.detach(), getattr(base, "bias", None)
