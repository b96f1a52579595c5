"""The table: every adapter in the fixtures loads and computes what PEFT computed, or is refused for
the reason that is written here. Everything goes through gRPC; a folder without an entry fails."""
import json
import sys
import unittest
from types import SimpleNamespace

import numpy as np

from harness import (FULL, ServerTest, apply_request, failure_of, fixtures,
                     merge_request)
from peft_rules import PeftAdapter
from tensors import Array, array, from_proto, read_safetensors, unit_roundoff
from tolerance import (Projection, Term, merged_deviation, merged_output_tolerance,
                       projection_tolerance)
from adapterd.v1 import adapter_pb2, merge_service_pb2, tensor_pb2
import grpc

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
        "adalora": (UNSUPPORTED, "ADALORA"),
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
        "bert-seq-cls": (UNSUPPORTED, "modules_to_save"),
        "conv2d": (UNSUPPORTED, "convolution"),
        "gpt2-conv1d": LOAD,
        "ia3": (UNSUPPORTED, "IA3"),
        "llama-all-linear": LOAD,
        "llama-alora": (UNSUPPORTED, "alora_invocation_tokens"),
        "llama-bf16": LOAD,
        "llama-bf16-base-f32-adapter": LOAD,
        "llama-dora": (UNSUPPORTED, "use_dora"),
        "llama-dora-bf16": (UNSUPPORTED, "use_dora"),
        "llama-embedding-head": (UNSUPPORTED, "embedding"),
        "llama-embedding-saved": (UNSUPPORTED, "embed_tokens"),
        "llama-exclude": LOAD,
        "llama-f16": LOAD,
        "llama-float-alpha": LOAD,
        "llama-layer-replication": LOAD,
        "llama-layers-to-transform": LOAD,
        "llama-modules-to-save": (UNSUPPORTED, "modules_to_save"),
        "llama-olora-unconverted": (UNSUPPORTED, "olora"),
        "llama-patterns": LOAD,
        "llama-pissa-converted": LOAD,
        "llama-pissa-unconverted": (UNSUPPORTED, "pissa"),
        "llama-qv": LOAD,
        "llama-rank1": LOAD,
        "llama-regex-target": LOAD,
        "llama-rslora": LOAD,
        "llama-rslora-patterns": LOAD,
        "llama-trainable-tokens": (UNSUPPORTED, "trainable_token_indices"),
        "loha": (UNSUPPORTED, "LOHA"),
        "lokr": (UNSUPPORTED, "LOKR"),
        "mixtral-experts": (UNSUPPORTED, "target_parameters"),
        "ok-adapter-name-kept": LOAD,
        "ok-compiled-prefix": LOAD,
        "ok-minimal-config": LOAD,
        "ok-no-prefix": LOAD,
        "ok-null-patterns": LOAD,
        "ok-unknown-false-key": LOAD,
        "qwen2-bias-all": (UNSUPPORTED, "bias"),
        "qwen2-bias-lora-only": (UNSUPPORTED, "bias"),
        "qwen2-dora-bias": (UNSUPPORTED, "use_dora"),
        "qwen2-lora-bias": (UNSUPPORTED, "lora_bias"),
        "vera": (UNSUPPORTED, "VERA"),
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
        "lora_emb_conv1d": (UNSUPPORTED, "embedding"),
        "lora_mlp": LOAD,
        "lora_mlp_modules_to_save": (UNSUPPORTED, "modules_to_save"),
    },
    "real": {
        "convnext-vision": LOAD,
        "diffusers-sd-unet": (NOT_FOUND, "adapter_config.json"),
        "mlx-qwen2.5-dpo": (CONFIG, "mlx"),
        "privacy-filter-token-cls": (UNSUPPORTED, "modules_to_save"),
        "sam-flat-names": (NOT_FOUND, "adapter_config.json"),
    },
}
ROOT_NAMES = {"peft/cases": "cases", "refuse": "refuse", "golden-peft": "golden", "real": "real"}
BASE_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def entries(outcome=None):
    """(kind, folder name, expectation) of the whole table, or of what loads / is refused."""
    for kind, cases in TABLE.items():
        for name, expectation in cases.items():
            if outcome in (None, LOAD if expectation == LOAD else "refuse"):
                yield kind, name, expectation


class Base:
    """The base model of a case: a weight in the layout and dtype that PEFT merged into."""

    def __init__(self, case, config):
        self.tensors = read_safetensors(fixtures("peft/bases") / case["base"] / "model.safetensors")
        self.dtype = BASE_DTYPES[case["base_dtype"]]
        self.in_out = bool(config.get("fan_in_fan_out"))
        self.replication = config.get("layer_replication")

    def _source(self, path):
        """Replicated layers share the weights of the layer that they repeat."""
        if not self.replication:
            return path
        order = [layer for begin, end in self.replication for layer in range(begin, end)]
        parts = path.split(".")
        at = next(i for i, part in enumerate(parts) if part.isdigit())
        parts[at] = str(order[int(parts[at])])
        return ".".join(parts)

    def weight(self, path):
        return array(self.tensors[self._source(path) + ".weight"].values(), self.dtype)

    def bias(self, path):
        bias = self.tensors.get(self._source(path) + ".bias")
        return 0.0 if bias is None else array(bias.values(), self.dtype).values()


class CasesTest(ServerTest):
    @classmethod
    def setUpClass(cls):
        cls.covered = []  # lines of the report

    @classmethod
    def tearDownClass(cls):
        print("\n".join(["", f"{'fixture':42} {'outcome':38} what was checked"] +
                        sorted(cls.covered)), flush=True)

    def setUp(self):
        roots = [f"--adapter-root={name}={fixtures(kind)}" for kind, name in ROOT_NAMES.items()]
        self.server = self.start(*roots)
        self.client = self.server.client

    def note(self, kind, name, outcome, what):
        self.covered.append(f"{kind + '/' + name:42} {outcome:38} {what}")

    def source(self, kind, name):
        return f"{ROOT_NAMES[kind]}:{name}"

    def test_every_folder_has_an_entry_and_every_entry_a_folder(self):
        for kind, cases in TABLE.items():
            with self.subTest(kind):
                folders = {path.name for path in fixtures(kind).iterdir() if path.is_dir()}
                self.assertEqual(folders, set(cases))

    def test_nothing_loads_that_peft_says_to_refuse(self):
        for kind, name, expectation in entries(LOAD):
            case = fixtures(kind) / name / "case.json"
            if case.exists():
                self.assertEqual(json.loads(case.read_text())["expect"], "load", name)

    def test_what_is_not_supported_is_refused_for_the_true_reason(self):
        for kind, name, (status, says) in entries("refuse"):
            with self.subTest(name):
                load = lambda: self.client.load(name, self.source(kind, name))
                failure = self.refused(status, load, adapter=name)
                self.assertIn(says, failure.message)
                self.note(kind, name, failure.reason, failure.message[:150])
        self.assertEqual(self.server.adapter_bytes(), 0)
        self.assertEqual(self.client.list().total_size, 0)

    def test_validate_finds_the_same_reason_or_none(self):
        for kind, name, expectation in entries():
            with self.subTest(name):
                try:
                    reply = self.client.validate(name, self.source(kind, name))
                    errors = [p.reason for p in reply.problems if p.severity == 1]
                    self.assertEqual(reply.valid, not errors)
                except grpc.RpcError as error:
                    errors = [failure_of(error).reason]
                expected = [] if expectation == LOAD else [expectation[0].split("/")[1]]
                self.assertEqual(errors[:1], expected)
        self.assertEqual(self.client.list().total_size, 0)

    def test_every_case_that_loads_computes_what_peft_computed(self):
        for kind, name, _ in entries(LOAD):
            if kind != "peft/cases":
                continue
            with self.subTest(name):
                self.check_case(name, fixtures(kind) / name)

    def check_case(self, name, folder):
        adapter = self.client.load(name, self.source("peft/cases", name), view=FULL).adapter
        truth = PeftAdapter(folder)
        self.check_modules(adapter, truth)
        self.assertEqual(adapter.revision, truth.revision())
        expected_path = folder / "expected.safetensors"
        if not expected_path.exists():  # ok-* are other spellings of llama-qv
            expected_path = folder.parent / "llama-qv" / "expected.safetensors"
        expected = read_safetensors(expected_path)
        case = json.loads((folder / "case.json").read_text())
        base = Base(case, truth.config)
        paths = sorted(key[:-2] for key in expected if key.endswith("|x"))
        self.assertEqual(paths, sorted(truth.modules), "expected values for every module")
        worst, merged = 0.0, 0
        for path in paths:
            values = {key.split("|")[1]: tensor for key, tensor in expected.items()
                      if key.startswith(path + "|")}
            module = SimpleNamespace(name=name, path=path, truth=truth, base=base, **{
                key: values.get(key) for key in ("x", "y", "y_base", "merged", "delta_weight")})
            p = self.projection(module)
            worst = max(worst, self.check_apply(module, p))
            merged += self.check_merge(module, p)
        self.note("peft/cases", name, "loads",
                  f"{len(paths)} modules applied (worst {worst:.2f} of the tolerance) and merged, "
                  f"{merged} beside PEFT's weight")

    def check_modules(self, adapter, truth):
        self.assertEqual([m.path for m in adapter.modules], sorted(truth.modules))
        for m in adapter.modules:
            selector = adapter_pb2.ModuleSelector(target=m.target, layer=m.layer)
            found = self.client.get(adapter.name, module=selector).modules
            self.assertIn(m, found)
            a, b = truth.modules[m.path]
            self.assertEqual((m.rank, m.in_features, m.out_features), (*a.shape, b.shape[0]))
            self.assertEqual(m.alpha, truth.alpha(m.path), m.path)
            self.assertEqual(m.scale, truth.scale(m.path), m.path)
            self.assertEqual(m.dtype, getattr(tensor_pb2, "DATA_TYPE_" + a.dtype))

    def projection(self, module):
        a, b = module.truth.modules[module.path]
        term = Term(module.x.values(), a.values(), b.values(), module.truth.scale(module.path),
                    a.dtype)
        p = Projection([term], module.y_base.values(), module.y.dtype)
        # Guards the fixtures: the base file holds the weight that y_base was computed with.
        weight = module.base.weight(module.path).values()
        weight = weight.T if module.base.in_out else weight
        y_base = term.x @ weight.T + module.base.bias(module.path)
        share = 2 * unit_roundoff(module.base.dtype) + len(weight.T) * unit_roundoff("F32")
        limit = share * (np.abs(term.x) @ np.abs(weight).T + np.abs(module.base.bias(module.path)))
        self.assertTrue((np.abs(y_base - p.base) <= limit).all(), module.path)
        return p

    def check_apply(self, module, p):
        """The share of the tolerance that the worst element uses."""
        reply = self.client.apply(apply_request(
            module.name, module.path, module.x.proto(), module.y_base.proto()))
        (output,) = reply.outputs
        self.assertEqual((output.path, output.applied), (module.path, 1))
        y = from_proto(output.output)
        self.assertEqual((y.dtype, y.shape), (module.y.dtype, module.y.shape))
        readable = self.client.apply(apply_request(
            module.name, module.path, module.x.readable(), module.y_base.readable()))
        np.testing.assert_array_equal(from_proto(readable.outputs[0].output).raw, y.raw)
        ours = np.abs(y.values() - p.exact()) / projection_tolerance(p, against_peft=False)
        both = (np.abs(y.values() - module.y.values()) /
                projection_tolerance(p, against_peft=True))
        self.assertLessEqual(ours.max(), 1, f"{module.path}: farther from the exact value than "
                                            f"roundings explain")
        self.assertLessEqual(both.max(), 1, f"{module.path}: not what PEFT computed")
        return max(ours.max(), both.max())

    def check_merge(self, module, p):
        """Merges the base weight; 1 when PEFT's merged weight was there to compare with."""
        weight = module.base.weight(module.path)
        layout = (merge_service_pb2.WEIGHT_LAYOUT_IN_OUT if module.base.in_out
                  else merge_service_pb2.WEIGHT_LAYOUT_OUT_IN)
        reply = self.client.merge(merge_request(module.name, module.path, weight.proto(),
                                                weight_layout=layout))
        merged = from_proto(reply.weight)
        self.assertEqual((merged.dtype, merged.shape), (weight.dtype, weight.shape))
        (term,) = p.terms
        delta = term.factor * term.b @ term.a
        largest = np.abs(delta).max()
        self.assertAlmostEqual(reply.stats.max_abs_delta, largest, delta=1e-5 * largest)
        self.check_merged_output(module, p, merged, weight)
        if module.merged is None:
            return 0
        wrong = merged_deviation(merged, module.merged, weight, term.dtype,
                                 delta.T if module.base.in_out else delta)
        self.assertIsNone(wrong, module.path)
        return 1

    def check_merged_output(self, module, p, merged, weight):
        """x W'^T is PEFT's y too, for every module and without PEFT's merge."""
        transposed = module.base.in_out
        out_in = [Array(w.dtype, w.raw.T) if transposed else w for w in (merged, weight)]
        y = p.terms[0].x @ out_in[0].values().T + module.base.bias(module.path)
        limit = merged_output_tolerance(p, out_in[0], out_in[1].values())
        self.assertLessEqual((np.abs(y - module.y.values()) / limit).max(), 1, module.path)

    def test_the_golden_mlp_gives_the_output_of_pefts_regression_suite(self):
        """log_softmax(lin1(relu(lin0 + adapter))), with the suite's input: 0 to 89 in 9 rows."""
        kind, name = "golden-peft", "lora_mlp"
        folder = fixtures(kind) / name
        base = read_safetensors(folder / "base_model.safetensors")
        x = array(np.arange(90).reshape(9, 10))
        y_base = x.values() @ base["lin0.weight"].values().T + base["lin0.bias"].values()
        self.client.load(name, self.source(kind, name))
        reply = self.client.apply(apply_request(name, "lin0", x.proto(), array(y_base).proto()))
        hidden = np.maximum(from_proto(reply.outputs[0].output).values(), 0)
        logits = hidden @ base["lin1.weight"].values().T + base["lin1.bias"].values()
        output = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected = read_safetensors(folder / "expected_output.safetensors")["output"].values()
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
        self.note(kind, name, "loads", "the suite's output, through its own model")

    def test_published_adapters_apply_as_the_formula_says(self):
        """No tool's numbers come with them: the exact value from the file's factors decides."""
        for kind, name, _ in entries(LOAD):
            if kind != "real":
                continue
            with self.subTest(name):
                self.check_published(kind, name)

    def check_published(self, kind, name):
        adapter = self.client.load(name, self.source(kind, name), view=FULL).adapter
        truth = PeftAdapter(fixtures(kind) / name)
        self.check_modules(adapter, truth)
        random = np.random.default_rng(1)
        worst = 0.0
        for path, (a, b) in truth.modules.items():
            x = array(random.standard_normal((5, a.shape[1])), a.dtype)
            term = Term(x.values(), a.values(), b.values(), truth.scale(path), a.dtype)
            p = Projection([term], np.zeros((5, b.shape[0])), a.dtype)
            reply = self.client.apply(apply_request(name, path, x.proto()))
            y = from_proto(reply.outputs[0].output).values()
            share = np.abs(y - p.exact()) / projection_tolerance(p, against_peft=False)
            worst = max(worst, share.max())
        self.assertLessEqual(worst, 1)
        self.note(kind, name, "loads", f"{len(truth.modules)} modules applied beside the formula "
                                       f"(worst {worst:.2f} of the tolerance)")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
