"""Every folder of adapters among the fixtures, and what becomes of it."""
from harness import FIXTURES, OWN_FIXTURES, fixtures

LOAD = "load"
UNSUPPORTED = "INVALID_ARGUMENT/UNSUPPORTED_ADAPTER"
INVALID = "INVALID_ARGUMENT/INVALID_ADAPTER"
CONFIG = "INVALID_ARGUMENT/MALFORMED_CONFIG"
NON_FINITE = "INVALID_ARGUMENT/NON_FINITE_WEIGHTS"
UNSAFE = "INVALID_ARGUMENT/UNSAFE_FORMAT"
NOT_FOUND = "NOT_FOUND/SOURCE_NOT_FOUND"

# Folder -> LOAD, or (CODE/REASON, what the message must name).
TABLE = {
    "peft/cases": {
        "adalora": LOAD,
        "bad-3d": (INVALID, "not 2-D"),
        "bad-empty-tensor": (INVALID, "empty"),
        "bad-extra-tensor": (INVALID, "not explained"),
        "bad-inf": (NON_FINITE, "lora_B"),
        "bad-inner-rank": (INVALID, "rank"),
        "bad-int8": ("INVALID_ARGUMENT/UNSUPPORTED_DTYPE", "I8"),
        "bad-missing-a": (INVALID, "no lora_A"),
        "bad-missing-b": (INVALID, "no lora_B"),
        "bad-nan": (NON_FINITE, "lora_A"),
        "bad-negative-alpha-string": (CONFIG, "lora_alpha"),
        "bad-no-peft-type": (CONFIG, "peft_type is missing"),
        "bad-null-alpha": (CONFIG, "lora_alpha"),
        "bad-rank-config": (INVALID, "rank 16"),
        "bad-target-mismatch": (INVALID, "does not target"),
        "bad-unknown-true-key": (UNSUPPORTED, "not known"),
        "bad-zero-rank": (CONFIG, "r must be"),
        "bert-seq-cls": LOAD,
        "conv2d": LOAD,
        "gpt2-conv1d": LOAD,
        "ia3": (UNSUPPORTED, "IA3"),
        "llama-all-linear": LOAD,
        "llama-alora": (UNSUPPORTED, "alora_invocation_tokens"),
        "llama-bf16": LOAD,
        "llama-bf16-base-f32-adapter": LOAD,
        "llama-dora": LOAD,
        "llama-dora-bf16": LOAD,
        "llama-embedding-head": LOAD,
        "llama-embedding-saved": LOAD,
        "llama-exclude": LOAD,
        "llama-f16": LOAD,
        "llama-float-alpha": LOAD,
        "llama-layer-replication": LOAD,
        "llama-layers-to-transform": LOAD,
        "llama-modules-to-save": LOAD,
        "llama-olora-unconverted": (UNSUPPORTED, "olora"),
        "llama-patterns": LOAD,
        "llama-pissa-converted": LOAD,
        "llama-pissa-unconverted": (UNSUPPORTED, "pissa"),
        "llama-qv": LOAD,
        "llama-rank1": LOAD,
        "llama-regex-target": LOAD,
        "llama-rslora": LOAD,
        "llama-rslora-patterns": LOAD,
        "llama-trainable-tokens": LOAD,
        "loha": (UNSUPPORTED, "LOHA"),
        "lokr": (UNSUPPORTED, "LOKR"),
        "mixtral-experts": LOAD,
        "ok-adapter-name-kept": LOAD,
        "ok-compiled-prefix": LOAD,
        "ok-minimal-config": LOAD,
        "ok-no-prefix": LOAD,
        "ok-null-patterns": LOAD,
        "ok-unknown-false-key": LOAD,
        "qwen2-bias-all": LOAD,
        "qwen2-bias-lora-only": LOAD,
        "qwen2-dora-bias": LOAD,
        "qwen2-lora-bias": LOAD,
        "vera": LOAD,
    },
    "refuse": {
        "dora-config-without-weights": (NOT_FOUND, "holds no weights"),
        "lfs-pointer": ("INVALID_ARGUMENT/MALFORMED_TENSOR_FILE", "LFS"),
        "pickle-adalora_mlp": (UNSAFE, "pickle"),
        "pickle-ia3_mlp": (UNSAFE, "pickle"),
        "pickle-lora_conv2d": (UNSAFE, "pickle"),
        "pickle-lora_emb_conv1d": (UNSAFE, "pickle"),
        "pickle-lora_mlp": (UNSAFE, "pickle"),
    },
    "golden-peft": {
        "lora_emb_conv1d": LOAD,
        "lora_mlp": LOAD,
        "lora_mlp_modules_to_save": LOAD,
    },
    "real": {
        "convnext-vision": LOAD,
        "diffusers-sd-unet": LOAD,
        "mlx-qwen2.5-dpo": LOAD,
        "privacy-filter-token-cls": LOAD,
        "sam-flat-names": (INVALID, "no format"),
    },
}

# Cases that only tests/peft/make_cases.py writes.
GENERATED = {
    "adalora-rank-zero": LOAD,
    "conv2d-dora": LOAD,
    "gpt2-dora": LOAD,
    "llama-dora-embedding": LOAD,
    "llama-embedding-bf16": LOAD,
    "qwen2-lora-bias-bf16": LOAD,
}
if FIXTURES != OWN_FIXTURES:
    TABLE["peft/cases"] |= GENERATED

ROOT_NAMES = {"peft/cases": "cases", "refuse": "refuse", "golden-peft": "golden", "real": "real"}


# Not low rank in form: supported one day or refused by name, but never misread.
EITHER = {"loha", "lokr"}


def entries(outcome=None, kind=None):
    """(kind, folder name, expectation) of the table, or of what loads or is refused in it.

    Fixtures of another seed need not have all folders.
    """
    for its_kind, cases in TABLE.items():
        for name, expectation in cases.items():
            if outcome not in (None, LOAD if expectation == LOAD else "refuse"):
                continue
            if kind in (None, its_kind) and (fixtures(its_kind) / name).is_dir():
                yield its_kind, name, expectation


def unlisted():
    """Folders without an entry, and entries of our own fixtures without a folder."""
    wrong = []
    for kind, cases in TABLE.items():
        folders = {path.name for path in fixtures(kind).iterdir() if path.is_dir()}
        wrong += [f"{kind}/{name}" for name in folders - set(cases)]
        if FIXTURES == OWN_FIXTURES:
            wrong += [f"{kind}/{name}" for name in set(cases) - folders]
    return wrong


def root_flags():
    return [f"--adapter-root={name}={fixtures(kind)}" for kind, name in ROOT_NAMES.items()]


def source(kind, name):
    return f"{ROOT_NAMES[kind]}:{name}"
