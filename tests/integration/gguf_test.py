"""GGUF adapters through the real binary: llama.cpp's files against its own numbers and PEFT's, heads,
restarts, uploads, and exports that gguf-py reads."""
import json
import os
import subprocess
import sys
import unittest

import numpy as np

from harness import FULL, TOOLS, ServerTest, apply_request, fixtures, merge_request
from tensors import array, from_proto, read_safetensors
from adapterd.v1 import adapter_pb2, adapter_service_pb2

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ROPE = {"attn_q": HEADS["num_attention_heads"], "attn_k": HEADS["num_key_value_heads"]}

# Folder -> what separates PEFT's deltas from those of the file, by the folder's README; None: the
# two tools disagree by design.
FOLDERS = {
    "gguf-llama-alpha0": None,
    "gguf-llama-bf16": 3e-4,
    "gguf-llama-embed": 1e-7,
    "gguf-llama-f16": 4e-5,
    "gguf-llama-f32": 1e-7,
    "gguf-llama-noalpha": 1e-7,
    "gguf-llama-q8_0": 6e-4,
    "gguf-llama-q8_0-fallback": 5e-4,
    "gguf-qwen2-f32": 1e-7,
}
# Sums of at most 32 products in F32, of factors and deltas below 1 in these folders.
F32_TOLERANCE = 1e-6

BASE_REQUIRED = "FAILED_PRECONDITION/BASE_REQUIRED"
MISMATCH = "INVALID_ARGUMENT/BASE_MODEL_MISMATCH"
UNSUPPORTED = "INVALID_ARGUMENT/UNSUPPORTED_ADAPTER"
FIELD = "INVALID_ARGUMENT/INVALID_FIELD"
FILE = "INVALID_ARGUMENT/MALFORMED_TENSOR_FILE"


def heads(**counts):
    return adapter_pb2.HeadCounts(**counts or HEADS)


def in_base_order(rows, gguf_name, folder):
    """Rows of a GGUF tensor as Hugging Face has them: the inverse of llama.cpp's permute."""
    count = ROPE.get(gguf_name.split(".")[-2]) if "llama" in folder else None
    if count is None:
        return rows
    return rows.reshape(count, rows.shape[0] // count // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


class GgufTest(ServerTest):
    def setUp(self):
        self.exports = self.folder()
        self.flags = [f"--adapter-root={fixtures('other')}", f"--adapter-root=exports={self.exports}",
                      f"--model-root={fixtures('peft/bases')}"]
        self.server = self.start(*self.flags)
        self.client = self.server.client

    def load(self, folder, name="x", **fields):
        fields.setdefault("head_counts", heads())
        return self.client.load(name, f"{folder}/adapter.gguf", view=FULL, **fields).adapter

    def delta(self, module, client=None, name="x"):
        """The whole delta as ApplyProjection gives it: [out, in], of an embedding [in, out]."""
        if module.kind == adapter_pb2.MODULE_KIND_EMBEDDING:
            x = array(np.arange(module.in_features), "I64")
        else:
            x = array(np.eye(module.in_features))
        reply = (client or self.client).apply(apply_request(name, module.path, x.proto()))
        y = from_proto(reply.outputs[0].output).values()
        return y if module.kind == adapter_pb2.MODULE_KIND_EMBEDDING else y.T

    def merged(self, module, weight):
        return from_proto(self.client.merge(
            merge_request("x", module.path, array(weight).proto())).weight).values()

    def near(self, found, expected, tolerance):
        self.assertEqual(found.shape, expected.shape)
        self.assertLessEqual(np.abs(found - expected).max(), tolerance)


class Numbers(GgufTest):
    def test_every_folder_is_known(self):
        found = {path.name for path in fixtures("other").glob("gguf-*")}
        self.assertEqual(found, {*FOLDERS, "gguf-broken", "gguf-llama-merged"})

    def test_deltas_are_those_of_llama_cpp_and_of_peft(self):
        for folder, peft_tolerance in FOLDERS.items():
            expected = read_safetensors(fixtures("other") / folder / "expected.safetensors")
            adapter = self.load(folder, replace=True)
            self.assertEqual(adapter.format, adapter_pb2.ADAPTER_FORMAT_GGUF)
            self.assertEqual(adapter.method, "lora")
            self.assertEqual(2 * len(adapter.modules), len(expected))
            for module in adapter.modules:
                with self.subTest(folder=folder, module=module.path):
                    gguf_name = module.lora_a_tensor.removesuffix(".lora_a")
                    of_llama_cpp = in_base_order(expected[f"{gguf_name}.delta"].values(),
                                                 gguf_name, folder)
                    of_peft = expected[f"peft.{module.path}.delta"].values()
                    delta = self.delta(module)
                    self.near(delta, of_llama_cpp, F32_TOLERANCE)
                    self.near(self.merged(module, np.zeros(delta.shape)), of_llama_cpp,
                              F32_TOLERANCE)
                    if peft_tolerance is not None:
                        self.near(delta, of_peft, peft_tolerance + F32_TOLERANCE)
                    # GGUF's own names find the same module.
                    for own in (gguf_name, gguf_name.removesuffix(".weight")):
                        reply = self.client.adapters.GetAdapter(
                            adapter_service_pb2.GetAdapterRequest(
                                name="x", view=FULL, module=adapter_pb2.ModuleSelector(path=own)))
                        self.assertEqual([m.path for m in reply.adapter.modules], [module.path])

    def test_merges_are_those_of_llama_export_lora(self):
        folder = "gguf-llama-merged"
        expected = read_safetensors(fixtures("other") / folder / "expected.safetensors")
        for module in self.load(folder).modules:
            gguf_name = module.lora_a_tensor.removesuffix(".lora_a")
            base, merged = (in_base_order(expected[f"{gguf_name}.{which}"].values(), gguf_name,
                                          folder) for which in ("base", "merged"))
            self.near(self.merged(module, base), merged, 3e-8)  # 1.1e-8 of theirs, and ours

    def test_the_scale_in_use_is_told(self):
        warnings = " ".join(self.load("gguf-llama-f32").warnings)
        self.assertIn("16 / 8 = 2", warnings)
        self.assertIn("rsLoRA", warnings)
        warnings = " ".join(self.load("gguf-llama-alpha0", replace=True).warnings)
        self.assertIn("every scale is 1", warnings)


class Heads(GgufTest):
    def test_without_heads_a_llama_is_refused_and_a_qwen_is_not(self):
        load = lambda folder, **fields: self.client.load("x", f"{folder}/adapter.gguf", **fields)
        self.refused(BASE_REQUIRED, lambda: load("gguf-llama-f32"), field="head_counts",
                     tensor="blk.0.attn_k.weight.lora_b")
        reply = self.client.validate("x", "gguf-llama-f32/adapter.gguf")
        self.assertFalse(reply.valid)
        self.assertEqual({p.reason for p in reply.problems
                          if p.severity == adapter_service_pb2.SEVERITY_ERROR}, {"BASE_REQUIRED"})
        load("gguf-qwen2-f32")

    def test_a_base_checkpoint_tells_them_too(self):
        self.load("gguf-llama-f32")
        given = self.client.get("x", view=FULL)
        loaded = self.load("gguf-llama-f32", "y", head_counts=None, base_checkpoint="tiny-llama")
        self.assertEqual(loaded.revision, given.revision)
        for module in loaded.modules:
            np.testing.assert_array_equal(self.delta(module, name="y"), self.delta(module))
        self.refused(MISMATCH, lambda: self.load(
            "gguf-llama-f32", "z", base_checkpoint="tiny-llama",
            head_counts=heads(num_attention_heads=4, num_key_value_heads=4)), field="head_counts")

    def test_counts_that_cannot_be_are_refused(self):
        for counts in ({"num_attention_heads": 4}, {"num_attention_heads": -1},
                       {"num_attention_heads": 4, "num_key_value_heads": 3}):
            self.refused(FIELD, lambda: self.load("gguf-llama-f32", head_counts=heads(**counts)))
        wrong = heads(num_attention_heads=8, num_key_value_heads=2)
        self.refused(MISMATCH, lambda: self.load("gguf-llama-f32", head_counts=wrong))

    def test_other_heads_are_another_content(self):
        self.load("gguf-llama-alpha0")
        other = heads(num_attention_heads=2, num_key_value_heads=2)
        self.refused("ALREADY_EXISTS/ADAPTER_EXISTS",
                     lambda: self.load("gguf-llama-alpha0", head_counts=other))
        self.assertTrue(self.client.load("x", "gguf-llama-alpha0/adapter.gguf",
                                         head_counts=heads()).already_loaded)
        q = next(m for m in self.client.get("x", view=FULL).modules if m.target == "q_proj")
        before = self.delta(q)
        self.load("gguf-llama-alpha0", head_counts=other, replace=True)
        self.assertFalse(np.array_equal(self.delta(q), before))

    def test_they_outlive_a_restart(self):
        data = self.folder() / "data"
        server = self.start(*self.flags, f"--data-dir={data}")
        loaded = server.client.load("x", "gguf-llama-f32/adapter.gguf", head_counts=heads(),
                                    view=FULL).adapter
        before = [self.delta(module, server.client) for module in loaded.modules]
        server.stop()
        server = self.start(*self.flags, f"--data-dir={data}")
        for module, delta in zip(loaded.modules, before):
            np.testing.assert_array_equal(self.delta(module, server.client), delta)
        self.assertTrue(server.client.load("x", "gguf-llama-f32/adapter.gguf",
                                           head_counts=heads()).already_loaded)

    def test_an_upload_takes_them(self):
        content = (fixtures("other") / "gguf-llama-f32/adapter.gguf").read_bytes()
        start = adapter_service_pb2.UploadStart(name="up", head_counts=heads())
        reply = self.client.adapters.UploadAdapter(iter([
            adapter_service_pb2.UploadAdapterRequest(start=start),
            adapter_service_pb2.UploadAdapterRequest(chunk=adapter_service_pb2.UploadChunk(
                file_name="adapter.gguf", data=content))]))
        self.assertEqual(reply.adapter.revision, self.load("gguf-llama-f32").revision)


class Broken(GgufTest):
    def test_every_broken_file_is_refused_by_name(self):
        folder = fixtures("other") / "gguf-broken"
        reasons = {"truncated-data.gguf": (FILE, "blk.1.attn_q.weight.lora_b"),
                   "huge-tensor-count.gguf": (FILE, "1152921504606846976"),
                   "wrong-general-type.gguf": ("INVALID_ARGUMENT/INVALID_ADAPTER", "general.type")}
        self.assertEqual(set(json.loads((folder / "expectations.json").read_text())), set(reasons))
        for name, (status, says) in reasons.items():
            with self.subTest(name):
                failure = self.refused(status, lambda: self.client.load(
                    "x", f"gguf-broken/{name}", head_counts=heads()))
                self.assertIn(says, failure.message)
        self.assertEqual(self.server.adapter_bytes(), 0)

    def test_a_folder_of_several_names_them(self):
        failure = self.refused("NOT_FOUND/SOURCE_NOT_FOUND",
                               lambda: self.client.load("x", "gguf-broken"))
        self.assertIn("truncated-data.gguf", failure.message)


class Exports(GgufTest):
    def export(self, name, folder, architecture):
        return self.client.export(name, self.exports / folder, architecture=architecture,
                                  format=adapter_pb2.ADAPTER_FORMAT_GGUF) / "adapter.gguf"

    def factors(self, name):
        return {module.path: [from_proto(getattr(self.client.tensors(
                    name, adapter_pb2.ModuleSelector(path=module.path)), which)).tobytes()
                    for which in ("lora_a", "lora_b")]
                for module in self.client.get(name, view=FULL).modules}

    def test_peft_to_gguf_and_back_keeps_every_bit(self):
        for folder, architecture in (("gguf-llama-f32", "llama"), ("gguf-qwen2-f32", "qwen2")):
            self.client.load(folder, folder, head_counts=heads())
            self.export(folder, folder, architecture)
            self.client.load(f"{folder}.again", f"exports:{folder}", head_counts=heads())
            self.assertEqual(self.factors(f"{folder}.again"), self.factors(folder))
            scales = [[m.scale for m in self.client.get(name, view=FULL).modules]
                      for name in (folder, f"{folder}.again")]
            self.assertEqual(*scales)

    def test_gguf_py_reads_the_tensors_of_the_converter(self):
        self.client.load("f32", "gguf-llama-f32", head_counts=heads())
        ours = self.gguf_py(self.export("f32", "f32", "llama"))
        theirs = self.gguf_py(fixtures("other") / "gguf-llama-f32/adapter.gguf")
        self.assertEqual(ours["tensors"], theirs["tensors"])
        for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
            self.assertEqual(ours["keys"][key], theirs["keys"][key])

    def gguf_py(self, file):
        """{"keys": ..., "tensors": {name: [shape, hex of its bytes]}} by the tool's own library."""
        python = TOOLS / "venv/bin/python"
        program = """
import json, sys, gguf
reader = gguf.GGUFReader(sys.argv[1])
print(json.dumps({
    "keys": {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")},
    "tensors": {t.name: [t.tensor_type.name, t.shape.tolist(), t.data.tobytes().hex()]
                for t in reader.tensors}}))
"""
        if not python.exists() or subprocess.run([python, "-c", "import gguf"],
                                                 capture_output=True).returncode != 0:
            if os.environ.get("ADAPTERD_REQUIRE_TOOLS") == "1":
                self.fail(f"gguf-py is not in {python.parent}")
            print(f"SKIP {self.id()}: gguf-py is not in {python.parent} (./dev tools puts it there)")
            self.skipTest("no gguf-py")
        done = subprocess.run([python, "-c", program, file], capture_output=True, text=True,
                              check=True)
        return json.loads(done.stdout)

    def test_what_gguf_cannot_say_is_refused(self):
        self.client.load("q", "gguf-llama-f32")  # without heads
        ask = lambda **fields: list(self.client.adapters.ExportAdapter(
            adapter_service_pb2.ExportAdapterRequest(name="q", **fields)))
        gguf = adapter_pb2.ADAPTER_FORMAT_GGUF
        self.refused(BASE_REQUIRED, lambda: ask(format=gguf, architecture="llama"), adapter=None)
        self.refused(UNSUPPORTED, lambda: ask(format=gguf, architecture="phi3"), module=None)
        self.refused(FIELD, lambda: ask(format=gguf), field="architecture")
        self.refused(FIELD, lambda: ask(format=gguf, architecture="mamba"), field="architecture")
        self.refused(FIELD, lambda: ask(architecture="llama"), field="architecture")
        self.refused(FIELD, lambda: ask(format=adapter_pb2.ADAPTER_FORMAT_MLX), field="format")


if __name__ == "__main__":
    unittest.main(argv=sys.argv)
