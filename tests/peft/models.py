"""Base models for adapters: tiny random ones made by transformers, and a few without it."""
import json

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCABULARY = 96
LAYERS = 2
SPREAD = 0.06  # of random weights


class ConvNet(nn.Module):
    """Convolutions of 3 x 3 and 1 x 1 and a linear layer, sized as the tensors of a checkpoint."""

    def __init__(self, shapes):
        super().__init__()
        out, channels, size, _ = shapes["conv.weight"]
        self.conv = nn.Conv2d(channels, out, size, padding=size // 2)
        self.point = nn.Conv2d(out, shapes["point.weight"][0], 1)
        self.head = nn.Linear(*reversed(shapes["head.weight"]))

    def forward(self, x):
        return self.head(self.point(self.conv(x)).mean((2, 3)))


class TwoLayers(nn.Module):
    def __init__(self, shapes):
        super().__init__()
        self.lin0 = nn.Linear(*reversed(shapes["lin0.weight"]))
        self.lin1 = nn.Linear(*reversed(shapes["lin1.weight"]))

    def forward(self, x):
        return self.lin1(self.lin0(x).relu())


class EmbeddingAndConv1D(nn.Module):
    def __init__(self, shapes):
        super().__init__()
        self.emb = nn.Embedding(*shapes["emb.weight"])
        self.conv1d = Conv1D(*reversed(shapes["conv1d.weight"]))
        self.lin0 = nn.Linear(*reversed(shapes["lin0.weight"]))

    def forward(self, x):
        return self.lin0(self.conv1d(self.emb(x)).relu().flatten(1))


# A layer that only this one has, and the model.
_WITHOUT_CONFIG = {"point.weight": ConvNet, "lin1.weight": TwoLayers,
                   "emb.weight": EmbeddingAndConv1D}


def _sizes(width):
    return {"hidden_size": width, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
            "vocab_size": VOCABULARY, "max_position_embeddings": 32}


def new_base(name, width):
    """A model without content; `width` is the hidden size, a multiple of 8."""
    t, sizes = transformers, _sizes(width)
    decoder = {**sizes, "num_key_value_heads": 2, "intermediate_size": 3 * width - 4,
               "tie_word_embeddings": False}
    if name == "tiny-llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**decoder))
    if name == "tiny-qwen2":
        return t.Qwen2ForCausalLM(t.Qwen2Config(**decoder))
    if name == "tiny-mixtral":
        return t.MixtralForCausalLM(t.MixtralConfig(
            **decoder, num_local_experts=3, num_experts_per_tok=2))
    if name == "tiny-gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(
            n_embd=width, n_layer=LAYERS, n_head=4, n_positions=32, vocab_size=VOCABULARY,
            bos_token_id=0, eos_token_id=0))
    if name == "tiny-bert":
        return t.BertForSequenceClassification(t.BertConfig(
            **sizes, intermediate_size=2 * width, num_labels=5))
    assert name == "tiny-conv", name
    return ConvNet({"conv.weight": (width, width // 4, 3, 3),
                    "point.weight": (width + 4, width, 1, 1), "head.weight": (3, width + 4)})


def write_base(name, width, seed, folder):
    """Random weights; norms around one and biases around zero matter in every output."""
    model = new_base(name, width)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = SPREAD * torch.randn(parameter.shape, generator=random)
            is_norm = parameter.ndim == 1 and not parameter_name.endswith("bias")
            parameter.copy_(noise + 1 if is_norm else noise)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "model.safetensors")


def load_base(folder, dtype):
    """The model of a checkpoint folder in `dtype`, for inference."""
    config = folder / "config.json"
    if config.exists():
        architecture = json.loads(config.read_text())["architectures"][0]
        model = getattr(transformers, architecture).from_pretrained(folder)
    else:
        (file,) = [f for f in (folder / "model.safetensors", folder / "base_model.safetensors")
                   if f.exists()]
        tensors = load_file(file)
        model = next(made for key, made in _WITHOUT_CONFIG.items() if key in tensors)(
            {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        model.load_state_dict(tensors)
    return model.to(dtype).eval()
