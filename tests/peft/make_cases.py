"""Writes adapters with the real PEFT, and the numbers that PEFT computes with them.

    make_cases.py OUT SEED WIDTH

OUT gets the layout of tests/fixtures (peft/bases, peft/cases), so that the integration tests run on
it with ADAPTERD_FIXTURES_DIR=OUT. Every case is one of tests/integration/cases_table.py; its sizes,
ranks, alphas and weights are drawn from SEED. The numbers come from the adapter as PEFT
reads it back from its files.
"""
import json
import sys
from pathlib import Path

import peft
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from safetensors.torch import save_file

from layer_outputs import ADAPTER, is_pair, layers, merged_layer, some_input
from models import VOCABULARY, load_base, write_base

BASES = ["tiny-bert", "tiny-conv", "tiny-gpt2", "tiny-llama", "tiny-mixtral", "tiny-qwen2"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EVERY = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
CAUSAL = "CAUSAL_LM"


def cases(draw):
    """name -> (base, config, dtype of base and, without autocast, adapter). `draw(low, high)`."""
    def lora(*targets, **more):
        return LoraConfig(**{"r": draw(2, 12), "lora_alpha": draw(1, 40), "target_modules":
                             list(targets), "task_type": CAUSAL, **more})

    f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
    return {
        "adalora": ("tiny-llama", AdaLoraConfig(
            init_r=draw(6, 9), target_r=3, lora_alpha=draw(1, 30), total_step=10,
            target_modules=["q_proj", "v_proj"], task_type=CAUSAL), f32),
        "adalora-rank-zero": ("tiny-llama", AdaLoraConfig(
            init_r=draw(3, 6), target_r=2, lora_alpha=draw(1, 30), total_step=10,
            target_modules=["k_proj", "down_proj"], task_type=CAUSAL), f32),
        "bert-seq-cls": ("tiny-bert", lora("query", "value", task_type="SEQ_CLS"), f32),
        "conv2d": ("tiny-conv", lora("conv", "point", "head", task_type=None), f32),
        "conv2d-dora": ("tiny-conv", lora("conv", "point", task_type=None, use_dora=True), f32),
        "gpt2-conv1d": ("tiny-gpt2", lora("c_attn", "c_fc", fan_in_fan_out=True), f32),
        "gpt2-dora": ("tiny-gpt2", lora("c_attn", fan_in_fan_out=True, use_dora=True), f32),
        "llama-all-linear": ("tiny-llama", lora(*EVERY), f32),
        "llama-bf16": ("tiny-llama", lora(*EVERY), bf16),
        "llama-bf16-base-f32-adapter": ("tiny-llama", lora("k_proj", "up_proj"), bf16),
        "llama-dora": ("tiny-llama", lora("v_proj", "down_proj", use_dora=True), f32),
        "llama-dora-bf16": ("tiny-llama", lora("k_proj", "up_proj", use_dora=True), bf16),
        "llama-dora-embedding": ("tiny-llama", lora("embed_tokens", use_dora=True), f32),
        "llama-embedding-bf16": ("tiny-llama", lora("embed_tokens", "q_proj"), bf16),
        "llama-embedding-head": ("tiny-llama", lora("embed_tokens", "lm_head"), f32),
        "llama-embedding-saved": ("tiny-llama", lora("embed_tokens", "o_proj"), f32),
        "llama-f16": ("tiny-llama", lora("q_proj", "down_proj"), f16),
        "llama-layer-replication": ("tiny-llama", lora(
            "k_proj", layer_replication=[[0, 2], [0, 1], [1, 2]]), f32),
        "llama-layers-to-transform": ("tiny-llama", lora(
            *ATTENTION, layers_to_transform=[0], layers_pattern="layers"), f32),
        "llama-modules-to-save": ("tiny-llama", lora(
            "v_proj", modules_to_save=["lm_head", "norm"]), f32),
        "llama-patterns": ("tiny-llama", lora(
            *EVERY, rank_pattern={"k_proj": draw(1, 5), r".*\.1\..*up_proj": draw(5, 9)},
            alpha_pattern={"^model.layers.1.self_attn.k_proj": 3.5, "gate_proj": 7}), f32),
        "llama-qv": ("tiny-llama", lora("q_proj", "v_proj"), f32),
        "llama-rank1": ("tiny-llama", lora("o_proj", "gate_proj", r=1), f32),
        "llama-rslora": ("tiny-llama", lora(*ATTENTION, use_rslora=True), f32),
        "llama-trainable-tokens": ("tiny-llama", lora("k_proj", trainable_token_indices={
            "embed_tokens": [VOCABULARY - 1, 0, draw(2, 50)]}), f32),
        "mixtral-experts": ("tiny-mixtral", lora("k_proj", target_parameters=[
            "mlp.experts.down_proj", "mlp.experts.gate_up_proj"]), f32),
        "qwen2-bias-all": ("tiny-qwen2", lora("q_proj", "o_proj", bias="all"), f32),
        "qwen2-bias-lora-only": ("tiny-qwen2", lora("k_proj", "o_proj", bias="lora_only"), f32),
        "qwen2-dora-bias": ("tiny-qwen2", lora("k_proj", "o_proj", use_dora=True), f32),
        "qwen2-lora-bias": ("tiny-qwen2", lora("k_proj", "v_proj", lora_bias=True), f32),
        "qwen2-lora-bias-bf16": ("tiny-qwen2", lora("q_proj", "v_proj", lora_bias=True), bf16),
        "vera": ("tiny-llama", VeraConfig(r=draw(5, 40), target_modules=["q_proj", "o_proj"],
                                          task_type=CAUSAL), f32),
    }


# Factors are kept in the dtype of the base.
HALF_ADAPTERS = {"llama-bf16", "llama-f16", "llama-embedding-bf16", "qwen2-lora-bias-bf16"}


def fill(model, random):
    """Gives every trainable tensor a content that shows in the outputs."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=random).to(parameter.dtype)
        if "magnitude" in name:
            parameter.data.mul_(1 + 0.1 * noise)
        elif "modules_to_save" in name or "trainable_tokens" in name or name.endswith("bias"):
            parameter.data.add_(0.1 * noise)
        else:
            parameter.data.copy_(0.12 * noise)


def prune(model, random, emptied):
    """As AdaLoRA does at the end of a training: some singular values go, in `emptied` all of the
    first module."""
    pattern = {}
    for path, layer in layers(model):
        values = layer.lora_E[ADAPTER]
        keep = torch.rand(len(values), generator=random) < 0.6
        keep[0] = True
        if emptied and not pattern:
            keep[:] = False
        values.data[~keep] = 0
        pattern[f"{path}.lora_E.{ADAPTER}"] = keep.tolist()
    model.peft_config[ADAPTER].rank_pattern = pattern


@torch.no_grad()
def numbers(model, random):
    """What tests/fixtures/README.md says of expected.safetensors."""
    found = {}
    for path, layer in layers(model):
        if isinstance(layer, ModulesToSaveWrapper):
            for name, tensor in layer.modules_to_save[ADAPTER].state_dict().items():
                found[f"{path}|replaced.{name}"] = tensor
        elif isinstance(layer, TrainableTokensWrapper):
            found[f"{path}|merged"] = layer.token_adapter.get_merged_weights([ADAPTER])
        elif isinstance(layer, ParamWrapper):
            found[f"{path}|delta_weight.{layer.parameter_name}"] = layer.get_delta_weight(ADAPTER)
        elif is_pair(layer) and not path.endswith("token_adapter"):
            x = some_input(layer, random)
            found[f"{path}|x"], found[f"{path}|y"] = x, layer(x)
            found[f"{path}|y_base"] = layer.get_base_layer()(x)
            weight, bias = merged_layer(layer)
            found[f"{path}|merged"] = weight
            if bias is not None:
                found[f"{path}|merged_bias"] = bias.detach()
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


def write_case(out, name, base, config, dtype, random):
    folder, checkpoint = out / "cases" / name, out / "bases" / base
    config.base_model_name_or_path = base
    autocast = name not in HALF_ADAPTERS
    model = get_peft_model(load_base(checkpoint, dtype), config, autocast_adapter_dtype=autocast)
    model.peft_config[ADAPTER].base_model_name_or_path = base
    fill(model, random)
    if isinstance(config, AdaLoraConfig):
        prune(model, random, emptied="zero" in name)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    read = PeftModel.from_pretrained(load_base(checkpoint, dtype), folder,
                                     autocast_adapter_dtype=autocast).eval()
    save_file(numbers(read, random), folder / "expected.safetensors")
    (folder / "case.json").write_text(json.dumps({
        "base": base, "base_dtype": str(dtype).removeprefix("torch."), "expect": "load",
        "note": "", "written_by": f"peft {peft.__version__}"}, indent=1))


def main(out, seed, width):
    random = torch.Generator().manual_seed(seed)
    for i, base in enumerate(BASES):
        write_base(base, width, 1000 * seed + i, out / "bases" / base)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=random))

    for i, (name, (base, config, dtype)) in enumerate(cases(draw).items()):
        torch.manual_seed(i)  # for what PEFT initialises
        write_case(out, name, base, config, dtype, random)
    print(f"{out}: {i + 1} adapters by peft {peft.__version__}, seed {seed}, width {width}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "peft", int(sys.argv[2]), int(sys.argv[3]))
