"""Base models in memory: what PEFT merges, what its suite computes, quantised ones, and refusals."""
import json
import shutil
import struct
import sys
import unittest
from pathlib import Path

import numpy as np

from harness import ServerTest, fixtures, merge_request
from tensors import array, from_proto, read_safetensors, ulp
from adapterd.v1 import adapter_pb2, base_model_service_pb2

Q0 = "model.layers.0.self_attn.q_proj"
NF4 = base_model_service_pb2.QUANTIZATION_NF4


def checkpoint(folder):
    """Name -> Array, whatever the files."""
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors.update(read_safetensors(file))
    return tensors


def file_of(header):
    """A safetensors file with dtypes that numpy does not have; zeros."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    size = max(entry["data_offsets"][1] for entry in header.values())
    return struct.pack("<Q", len(text)) + text + bytes(size)


class BaseModelTest(ServerTest):
    def setUp(self):
        peft = fixtures("peft")
        self.server = self.start(f"--adapter-root={peft}", f"--model-root={peft}")
        self.client = self.server.client

    def weight(self, path, base="base"):
        return from_proto(self.client.base_weight(base, path))

    def base_bytes(self):
        return self.server.metric("adapterd_memory_bytes", kind="base_models")


class PeftMerges(BaseModelTest):
    """Every module of every checkpoint that PEFT merged and saved."""

    def check(self, name, modules=(), skipped=()):
        folder = fixtures("peft/merge") / name
        source = json.loads((folder / "case.json").read_text())["base"]
        base, merged = checkpoint(fixtures("peft") / source), checkpoint(folder / "merged")
        loaded = self.client.load_base("base", source)
        self.client.load(name, f"merge/{name}/adapter")
        self.client.merge_into("base", name, modules=modules)
        changed = 0
        for module in loaded.modules:
            tensor = f"{module.path}.weight"
            if tensor not in merged or any(part in module.path for part in skipped):
                continue
            ours, theirs = self.weight(module.path), merged[tensor]
            self.assertEqual((ours.dtype, ours.shape), (theirs.dtype, theirs.shape), module.path)
            self.near(ours, theirs, module.path)
            changed += not np.array_equal(base[tensor].raw, ours.raw)
        self.assertGreater(changed, 0)
        self.client.unmerge_from("base")
        for module in loaded.modules:
            if f"{module.path}.weight" in base:
                np.testing.assert_array_equal(self.weight(module.path).raw,
                                              base[f"{module.path}.weight"].raw, module.path)
        print(f"peft/merge/{name}: {changed} of {len(loaded.modules)} modules merged as PEFT does")

    def near(self, ours, theirs, path):
        if ours.dtype == "F32":
            np.testing.assert_allclose(ours.values(), theirs.values(), rtol=1e-5, atol=1e-6,
                                       err_msg=path)
            return
        off = np.abs(ours.values() - theirs.values())
        self.assertTrue((off <= ulp(theirs.values(), ours.dtype)).all(), path)
        self.assertLessEqual(np.count_nonzero(off), 0.002 * off.size, path)

    def test_single_file(self):
        self.check("llama-f32")

    def test_sharded_bf16(self):
        self.check("llama-bf16-sharded")

    def test_dora(self):
        self.check("llama-dora")

    def test_conv1d(self):
        self.check("gpt2")

    def test_replaced_modules_and_biases(self):
        self.check("qwen2-modules-to-save")

    def test_a_tied_embedding(self):
        """The head, which adapters of the embedding do not touch in a forward pass, stays as it is."""
        self.check("llama-tied")
        base = checkpoint(fixtures("peft") / "bases/tiny-llama-tied")
        embedding = base["model.embed_tokens.weight"]
        self.client.merge_into("base", "llama-tied")
        np.testing.assert_array_equal(self.weight("lm_head").raw, embedding.raw)
        self.assertFalse(np.array_equal(self.weight("model.embed_tokens").raw, embedding.raw))

    def test_experts_that_the_checkpoint_spells_otherwise_are_refused(self):
        """The adapter stacks experts, the checkpoint has a tensor for each."""
        self.client.load_base("base", "bases/tiny-mixtral")
        self.client.load("a", "merge/mixtral-experts/adapter")
        self.refused("NOT_FOUND/MODULE_NOT_TARGETED", self.client.merge_into, "base", "a",
                     adapter="a")
        self.unload_all()
        self.check("mixtral-experts", modules=[r".*q_proj"], skipped=["experts"])

    def unload_all(self):
        for name in self.client.list_bases():
            self.client.unload_base(name)
        self.client.unload("a")


class Golden(ServerTest):
    """Checkpoints and outputs of PEFT's regression suite, through merged weights."""

    def setUp(self):
        self.root = self.folder()
        for case in fixtures("golden-peft").iterdir():
            (self.root / case.name).mkdir()
            shutil.copy(case / "base_model.safetensors",
                        self.root / case.name / "model.safetensors")
        self.client = self.start(f"--adapter-root={fixtures('golden-peft')}",
                                 f"--model-root={self.root}").client

    def open(self, name):
        self.client.load_base("base", name)
        self.client.load("a", name)
        self.client.merge_into("base", "a")
        folder = fixtures("golden-peft") / name
        base = read_safetensors(folder / "base_model.safetensors")
        base = {tensor: value.values() for tensor, value in base.items()}
        for module in self.client.list_bases()["base"].modules:
            base[module.path + ".weight"] = from_proto(
                self.client.base_weight("base", module.path)).values()
        return base, read_safetensors(folder / "expected_output.safetensors")["output"].values()

    def check(self, logits, expected):
        log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(log_softmax, expected, rtol=1e-5, atol=1e-5)

    def hidden(self, base):
        x = np.arange(90).reshape(9, 10)
        return np.maximum(x @ base["lin0.weight"].T + base["lin0.bias"], 0)

    def test_the_mlp(self):
        base, expected = self.open("lora_mlp")
        self.check(self.hidden(base) @ base["lin1.weight"].T + base["lin1.bias"], expected)

    def test_the_mlp_with_a_replaced_layer(self):
        """Its bias is replaced, too, and only told by a forward pass."""
        name = "lora_mlp_modules_to_save"
        base, expected = self.open(name)
        saved = read_safetensors(fixtures("golden-peft") / name / "adapter_model.safetensors")
        bias = saved["base_model.model.lin1.bias"].values()
        self.check(self.hidden(base) @ base["lin1.weight"].T + bias, expected)

    def test_the_embedding_and_the_conv1d(self):
        base, expected = self.open("lora_emb_conv1d")
        x = base["emb.weight"][np.arange(90).reshape(9, 10)]
        hidden = np.maximum(x @ base["conv1d.weight"] + base["conv1d.bias"], 0).reshape(9, -1)
        self.check(hidden @ base["lin0.weight"].T + base["lin0.bias"], expected)


class Lifecycle(BaseModelTest):
    def test_a_load_is_listed_counted_and_free_again_after_the_unload(self):
        before = self.base_bytes()
        base = self.client.load_base("base", "bases/tiny-llama")
        tensors = checkpoint(fixtures("peft/bases") / "tiny-llama")
        self.assertEqual(base.parameter_count, sum(t.raw.size for t in tensors.values()))
        self.assertEqual(base.memory_bytes, sum(t.raw.nbytes for t in tensors.values()))
        self.assertEqual((base.saved_bytes, len(base.fingerprint)), (0, 64))
        self.assertEqual([m.path for m in base.modules], sorted(m.path for m in base.modules))
        self.assertEqual(self.client.list_bases()["base"], base)
        self.assertEqual(self.base_bytes() - before, base.memory_bytes)
        for module in base.modules:
            np.testing.assert_array_equal(self.weight(module.path).raw,
                                          tensors[module.path + ".weight"].raw)
        self.assertEqual(self.client.unload_base("base"), base.memory_bytes)
        self.assertEqual((self.base_bytes(), self.client.list_bases()), (before, {}))

    def test_only_the_modules_asked_for_are_loaded(self):
        for patterns, count in (([Q0], 1), (["model.layers.0"], 9), ([r".*\.[qv]_proj"], 4),
                                (["model.layers.1.mlp", "lm_head"], 4)):
            with self.subTest(patterns):
                base = self.client.load_base("base", "bases/tiny-llama", modules=patterns)
                self.assertEqual(len(base.modules), count)
                self.client.unload_base("base")
        self.refused("NOT_FOUND/MODULE_NOT_TARGETED", self.load_modules, ["model.layers.01"])
        self.refused("NOT_FOUND/MODULE_NOT_TARGETED", self.load_modules, [Q0, "q_proj"])
        self.refused("INVALID_ARGUMENT/INVALID_FIELD", self.load_modules, ["("], field="modules")
        self.refused("INVALID_ARGUMENT/INVALID_FIELD", self.load_modules, [""], field="modules")
        self.assertEqual(self.base_bytes(), 0)

    def load_modules(self, patterns):
        self.client.load_base("base", "bases/tiny-llama", modules=patterns)

    def test_an_equal_load_is_a_no_op_and_another_is_refused(self):
        first = self.client.load_base("base", "bases/tiny-llama", modules=[Q0])
        self.assertEqual(self.client.load_base("base", "bases/tiny-llama", modules=[Q0]), first)
        for fields in ({}, {"modules": [Q0], "quantization": NF4}):
            self.refused("ALREADY_EXISTS/BASE_MODEL_EXISTS",
                         lambda fields=fields: self.client.load_base(
                             "base", "bases/tiny-llama", **fields))
        self.assertEqual(self.client.list_bases(), {"base": first})

    def test_merged_adapters_are_told_kept_and_counted(self):
        self.client.load_base("base", "bases/tiny-llama")
        empty = self.base_bytes()
        revision = self.client.load("qv", "cases/llama-qv").adapter.revision
        reply = self.client.merge_into("base", ("qv", 0.5))
        self.assertEqual(list(reply.base_model.merged_adapters), ["qv"])
        self.assertGreater(reply.stats.max_abs_delta, 0)
        q0 = {m.path: m for m in reply.base_model.modules}[Q0]
        self.assertEqual([(a.name, a.revision, a.weight) for a in q0.merged_adapters],
                         [("qv", revision, 0.5)])
        self.assertEqual(self.base_bytes() - empty, reply.base_model.memory_bytes - empty)
        self.assertEqual(self.client.get("qv").in_flight, 1)
        self.assertFalse(self.client.unload("qv", wait=False).freed)  # drains until it is unmerged
        self.assertGreater(self.server.adapter_bytes(), 0)
        self.client.unmerge_from("base")
        self.assertEqual((self.base_bytes(), self.server.adapter_bytes()), (empty, 0))

    def test_merges_are_in_the_metrics_of_merges(self):
        self.client.load_base("base", "bases/tiny-llama", modules=["model.layers.0"])
        self.client.load("qv", "cases/llama-qv")
        self.refused("NOT_FOUND/MODULE_NOT_TARGETED", self.client.merge_into, "base", "qv")
        self.assertEqual(self.merge_metrics(), (0, 0))
        self.client.merge_into("base", "qv", modules=[Q0])
        one = checkpoint(fixtures("peft/bases") / "tiny-llama")[Q0 + ".weight"].raw.nbytes
        self.assertEqual(self.merge_metrics(), (1, one))
        self.client.unmerge_from("base")
        self.assertEqual(self.merge_metrics(), (1, one))

    def merge_metrics(self):
        return (self.server.metric("adapterd_merge_duration_seconds_count"),
                self.server.metric("adapterd_merge_bytes_total"))

    def test_the_merge_is_what_merge_makes(self):
        self.client.load_base("base", "bases/tiny-llama")
        self.client.load("b", "cases/llama-qv")
        self.client.load("a", "cases/llama-rslora")
        base = checkpoint(fixtures("peft/bases") / "tiny-llama")[Q0 + ".weight"]
        request = merge_request("a", Q0, base.proto())
        request.adapters.append(adapter_pb2.AdapterRef(name="b", weight=-2))
        expected = from_proto(self.client.merge(request).weight).raw
        for order in ((("b", -2), "a"), ("a", ("b", -2))):
            for adapter in order:
                self.client.merge_into("base", adapter)
            np.testing.assert_array_equal(self.weight(Q0).raw, expected)
            self.client.unmerge_from("base")
            np.testing.assert_array_equal(self.weight(Q0).raw, base.raw)

    def test_nf4_saves_memory_and_tells_its_error(self):
        plain = self.client.load_base("plain", "bases/tiny-llama")
        base = self.client.load_base("base", "bases/tiny-llama", quantization=NF4)
        self.assertEqual(base.memory_bytes + base.saved_bytes, plain.memory_bytes)
        self.assertGreater(base.saved_bytes, plain.memory_bytes / 2)
        errors = {m.path: m.quantization_error for m in base.modules}
        self.assertEqual(errors["model.embed_tokens"], 0)
        exact, held = self.weight(Q0, "plain"), self.weight(Q0)
        self.assertEqual(held.dtype, "F32")
        error = np.linalg.norm(exact.values() - held.values()) / np.linalg.norm(exact.values())
        self.assertAlmostEqual(errors[Q0], error, places=6)
        self.assertTrue(0.01 < error < 0.2)
        self.client.load("qv", "cases/llama-qv")
        delta = self.client.merge_into("base", "qv").stats
        self.assertGreater(delta.max_abs_delta, 0)
        merged = self.weight(Q0)
        expected = from_proto(self.client.merge(merge_request("qv", Q0, held.proto())).weight)
        self.assertEqual(merged.dtype, "F32")  # as before the merge, with the values of BF16
        np.testing.assert_array_equal(merged.values(), array(expected.values(), "BF16").values())
        self.client.unmerge_from("base", "qv")
        np.testing.assert_array_equal(self.weight(Q0).raw, held.raw)


class HostedBase(BaseModelTest):
    def test_an_adapter_is_checked_against_it_like_against_a_checkpoint(self):
        self.client.load_base("base", "bases/tiny-llama")
        self.client.load_base("other", "bases/tiny-gpt2")
        hosted = self.client.load("h", "cases/llama-dora", hosted_base="base").adapter
        told = self.client.load("t", "cases/llama-dora", base_checkpoint="bases/tiny-llama").adapter
        self.assertEqual((hosted.revision, list(hosted.warnings)),
                         (told.revision, list(told.warnings)))
        self.refused("INVALID_ARGUMENT/BASE_MODEL_MISMATCH", self.load_with, "other",
                     field="hosted_base")
        self.refused("NOT_FOUND/BASE_MODEL_NOT_FOUND", self.load_with, "nobody",
                     field="hosted_base")
        with self.subTest("both"):
            self.refused("INVALID_ARGUMENT/INVALID_FIELD",
                         lambda: self.client.load("x", "cases/llama-dora", hosted_base="base",
                                                  base_checkpoint="bases/tiny-llama"),
                         field="hosted_base")
        self.assertTrue(self.client.validate("x", "cases/llama-dora", hosted_base="base").valid)
        # Neither load keeps the base model.
        self.assertGreater(self.client.unload_base("base"), 0)

    def load_with(self, base):
        self.client.load("x", "cases/llama-dora", hosted_base=base)

    def test_after_a_restart_the_adapter_waits_for_its_base(self):
        data, peft = self.folder(), fixtures("peft")
        flags = (f"--adapter-root={peft}", f"--model-root={peft}", f"--data-dir={data}")
        first = self.start(*flags)
        first.client.load_base("base", "bases/tiny-llama")
        first.client.load("a", "cases/llama-dora", hosted_base="base")
        expected = from_proto(first.client.tensors(
            "a", adapter_pb2.ModuleSelector(path=Q0)).lora_a).raw
        first.stop()
        client = self.start(*flags).client
        self.assertEqual(client.list_bases(), {})
        self.refused("FAILED_PRECONDITION/BASE_REQUIRED", client.tensors, "a",
                     adapter_pb2.ModuleSelector(path=Q0), expected="base")
        client.load_base("base", "bases/tiny-llama")
        tensors = client.tensors("a", adapter_pb2.ModuleSelector(path=Q0))
        np.testing.assert_array_equal(from_proto(tensors.lora_a).raw, expected)


class Refusals(BaseModelTest):
    def test_bad_sources(self):
        root = self.folder()
        client = self.start(f"--model-root={root}").client
        (root / "fp8").mkdir()
        (root / "fp8/model.safetensors").write_bytes(file_of({
            "a.weight": {"dtype": "F8_E4M3", "shape": [4, 4], "data_offsets": [0, 16]},
            "b.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 32]},
            "ids": {"dtype": "I64", "shape": [2], "data_offsets": [32, 48]}}))
        for source, status in (("nothing", "NOT_FOUND/SOURCE_NOT_FOUND"),
                               ("../x", "INVALID_ARGUMENT/PATH_OUTSIDE_ROOT"),
                               ("", "INVALID_ARGUMENT/INVALID_FIELD"),
                               ("fp8", "INVALID_ARGUMENT/UNSUPPORTED_DTYPE")):
            with self.subTest(source):
                failure = self.refused(status, client.load_base, "base", source)
                self.assertEqual(failure.metadata.get("field", "source"), "source", failure)
        self.assertEqual(len(client.load_base("base", "fp8", modules=["b"]).modules), 1)

    def test_bad_fields(self):
        for name, fields, field in (
                ("", {}, "name"), ("a/b", {}, "name"),
                ("x", {"block_size": 0, "quantization": NF4}, "block_size"),
                ("x", {"block_size": -1, "quantization": NF4}, "block_size"),
                ("x", {"block_size": 64}, "block_size"), ("x", {"quantization": 7}, "quantization")):
            with self.subTest(f"{name} {fields}"):
                self.refused("INVALID_ARGUMENT/INVALID_FIELD", lambda: self.client.load_base(
                    name, "bases/tiny-llama", **fields), field=field)

    def test_unknown_bases(self):
        status = "NOT_FOUND/BASE_MODEL_NOT_FOUND"
        self.client.load("qv", "cases/llama-qv")
        self.refused(status, self.client.unload_base, "base")
        self.refused(status, self.client.merge_into, "base", "qv")
        self.refused(status, self.client.unmerge_from, "base", "qv")
        self.refused(status, self.client.base_weight, "base", Q0)

    def test_modules_that_the_base_does_not_have(self):
        self.client.load_base("base", "bases/tiny-llama", modules=["model.layers.0"])
        for path in ("nowhere", "model.layers.1.self_attn.q_proj"):
            failure = self.refused("NOT_FOUND/MODULE_NOT_TARGETED", self.client.base_weight, "base",
                                   path, module=path)
            self.assertEqual(failure.message, f"the base model has no module {path}")

    def test_a_base_over_the_budget_changes_nothing(self):
        peft = fixtures("peft")
        server = self.start(f"--adapter-root={peft}", f"--model-root={peft}",
                            "--memory-budget=300KiB")
        server.client.load("qv", "cases/llama-qv")
        self.refused("RESOURCE_EXHAUSTED/MEMORY_BUDGET_EXCEEDED", server.client.load_base, "base",
                     "bases/tiny-llama", needed_bytes=None, budget_bytes=str(300 << 10))
        self.assertEqual(server.client.list_bases(), {})
        # A part of it fits, once the adapter has made room.
        layer = server.client.load_base("base", "bases/tiny-llama", modules=["model.layers.0",
                                                                             "model.norm"])
        self.assertEqual(server.metric("adapterd_memory_bytes", kind="base_models"),
                         layer.memory_bytes)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
