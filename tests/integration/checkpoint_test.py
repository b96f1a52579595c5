"""MergeCheckpoint: what it makes of checkpoints, compared with PEFT's own merges and with numpy."""
import json
import unittest

import numpy as np

from adapters import write_adapter, write_files
from checkpoints import (CERTIFICATE, CONFIG, INDEX, WEIGHTS, checkpoint_digest, digests,
                         llama_tensors, odd_tensors, projection_paths, read_checkpoint,
                         write_checkpoint)
from harness import ServerTest, fixtures
from tensors import array, read_safetensors, ulp
from adapterd.v1 import adapter_pb2, tensor_pb2

Q0 = "model.layers.0.self_attn.q_proj"


def delta_of(pair):
    a, b = pair.factors()
    return pair.scale * (b @ a)


def modules(layers=2, rank=4):
    return {path: (shape[1], shape[0], rank) for path, shape in projection_paths(layers).items()}


class CheckpointTest(ServerTest):
    def setUp(self):
        self.root = self.folder()
        self.server = self.start(f"--adapter-root={self.root}", f"--model-root={self.root}")
        self.client = self.server.client

    def merge(self, *arguments, **fields):
        return self.client.merged_checkpoint(*arguments, **fields)

    def expected(self, tensors, adapter, weight=1.0):
        """W + weight * scale * B A, in float64; of all tensors but scalars."""
        merged = {name: t.values().copy() for name, t in tensors.items() if t.shape}
        for path, pair in adapter.modules.items():
            merged[f"{path}.weight"] += weight * delta_of(pair)
        return merged

    def assert_near(self, tensor, expected, dtype):
        error = np.abs(tensor.values() - expected)
        self.assertLessEqual(float((error / (ulp(expected, dtype) + 1e-6)).max()), 1.0)

    def test_it_merges_as_peft_does_and_tells_how_far_it_is(self):
        cases = sorted(folder.name for folder in fixtures("peft/merge").iterdir())
        self.assertGreaterEqual(len(cases), 7)
        server = self.start(f"--adapter-root={fixtures('peft/merge')}",
                            f"--model-root={fixtures('peft')}", f"--output-root={self.root}")
        for name in cases:
            with self.subTest(name):
                folder = fixtures("peft/merge") / name
                source = json.loads((folder / "case.json").read_text())["base"]
                server.client.load(name, f"{name}/adapter")
                messages = list(server.client.merge_checkpoint(source, name, [name]))
                self.check_messages(messages, read_checkpoint(self.root / name))
                self.check_like_peft(self.root / name, folder / "merged",
                                     fixtures("peft") / source)

    def check_messages(self, messages, tensors):
        phases = [message.phase for message in messages]
        self.assertEqual(phases[0], "planning")
        self.assertEqual(phases[-1], "done")
        self.assertEqual(phases, sorted(phases, key=["planning", "merging", "syncing",
                                                     "done"].index))
        last = messages[-1]
        self.assertEqual(last.tensors_done, last.tensors_total)
        self.assertEqual(last.tensors_total, len(tensors))
        self.assertEqual(last.bytes_done, last.bytes_total)
        self.assertEqual(last.bytes_total, sum(len(t.tobytes()) for t in tensors.values()))
        self.assertEqual(last.result.digest, checkpoint_digest(tensors))
        for message in messages[:-1]:
            self.assertFalse(message.HasField("result"))

    def check_like_peft(self, output, merged, base):
        tensors, expected = read_checkpoint(output), read_checkpoint(merged)
        original = read_checkpoint(base)
        self.assertEqual(set(tensors), set(expected))
        self.assertEqual(json.loads((output / "config.json").read_text()),
                         json.loads((merged / "config.json").read_text()))
        self.assertEqual({f.name for f in output.iterdir()} - {CERTIFICATE},
                         {f.name for f in base.iterdir()})
        for name, tensor in tensors.items():
            self.assertEqual((tensor.dtype, tensor.shape), (expected[name].dtype,
                                                            expected[name].shape))
            if tensor.dtype == "F32":
                np.testing.assert_allclose(tensor.values(), expected[name].values(), rtol=1e-5,
                                           atol=1e-6, err_msg=name)
                continue
            off = np.abs(tensor.values() - expected[name].values())
            self.assertTrue(np.all(off <= ulp(expected[name].values(), tensor.dtype)), name)
            self.assertLessEqual(np.count_nonzero(off), 0.002 * off.size, name)
        changed = {n for n in tensors if tensors[n].tobytes() != original[n].tobytes()}
        certificate = json.loads((output / CERTIFICATE).read_text())
        self.assertLessEqual(changed, set(certificate["tensors"]))

    def test_what_no_adapter_touches_keeps_every_bit(self):
        tensors = llama_tensors(more=odd_tensors(200))
        write_checkpoint(self.root / "base", tensors, shards=3)
        adapter = write_adapter(self.root / "a", modules())
        self.client.load("a", "a")
        result = self.merge("base", "out", ["a"])
        merged = read_checkpoint(self.root / "out")
        touched = {f"{path}.weight" for path in adapter.modules}
        self.assertEqual(result.merged_tensors, len(touched))
        self.assertEqual(result.copied_tensors, len(tensors) - len(touched))
        self.assertGreaterEqual(result.copied_tensors, 200)
        before, after = digests(tensors), digests(merged)
        for name in tensors:
            if name not in touched:
                self.assertEqual(after[name], before[name], name)
        expected = self.expected(tensors, adapter)
        for name in touched:
            self.assert_near(merged[name], expected[name], "F32")
        self.assertEqual(result.files, sorted(f.name for f in (self.root / "out").iterdir()))
        self.assertEqual(sorted(f.name for f in (self.root / "base").iterdir()),
                         sorted(set(result.files) - {CERTIFICATE}))

    def test_several_adapters_are_added_with_their_weights_and_rounded_once(self):
        tensors = llama_tensors(dtype="BF16")
        write_checkpoint(self.root / "base", tensors)
        adapters = {name: write_adapter(self.root / name, modules(rank=rank), seed=rank)
                    for name, rank in (("a", 2), ("b", 3))}
        for name in adapters:
            self.client.load(name, name)
        refs = [adapter_pb2.AdapterRef(name="a", weight=0.5),
                adapter_pb2.AdapterRef(name="b", weight=-2)]
        result = self.merge("base", "out", refs)
        merged = read_checkpoint(self.root / "out")
        for path in adapters["a"].modules:
            weight = tensors[f"{path}.weight"].values()
            exact = (weight + 0.5 * delta_of(adapters["a"].modules[path]) -
                     2 * delta_of(adapters["b"].modules[path]))
            error = np.abs(merged[f"{path}.weight"].values() - exact)
            self.assertLessEqual(float((error / (ulp(exact, "BF16") / 2 * 1.01 + 1e-5)).max()), 1)
        certificate = json.loads((self.root / "out" / CERTIFICATE).read_text())
        self.assertEqual([(a["name"], a["weight"]) for a in certificate["adapters"]],
                         [("a", 0.5), ("b", -2.0)])
        self.assertEqual([a["revision"] for a in certificate["adapters"]],
                         [self.client.get(name).revision for name in ("a", "b")])
        self.assertEqual(certificate["digest"], result.digest)
        self.check_certificate(certificate, tensors, merged, adapters)

    def check_certificate(self, certificate, tensors, merged, adapters):
        """Rounding errors against numpy, in float64."""
        errors = deltas = 0.0
        for path in adapters["a"].modules:
            name = f"{path}.weight"
            delta = (0.5 * delta_of(adapters["a"].modules[path]) -
                     2 * delta_of(adapters["b"].modules[path]))
            error = tensors[name].values() + delta - merged[name].values()
            stats = certificate["tensors"][name]
            self.assertAlmostEqual(stats["max_abs_delta"], np.abs(delta).max(), delta=1e-4)
            self.assertAlmostEqual(stats["max_abs_rounding_error"], np.abs(error).max(), delta=1e-4)
            relative = np.linalg.norm(error) / np.linalg.norm(delta)
            self.assertAlmostEqual(stats["relative_rounding_error"], relative, delta=1e-4)
            errors += np.sum(error ** 2)
            deltas += np.sum(delta ** 2)
        self.assertAlmostEqual(certificate["stats"]["relative_rounding_error"],
                               np.sqrt(errors / deltas), delta=1e-4)

    def test_shards_and_types_can_be_others(self):
        tensors = llama_tensors(more={"ids": array([1, 2], "I64")})
        write_checkpoint(self.root / "base", tensors, {**CONFIG, "torch_dtype": "float32"})
        adapter = write_adapter(self.root / "a", modules())
        self.client.load("a", "a")
        result = self.merge("base", "out", ["a"], max_shard_bytes=8192,
                            dtype=tensor_pb2.DATA_TYPE_BF16)
        shards = [name for name in result.files if name.endswith(".safetensors")]
        self.assertGreater(len(shards), 2)
        for i, name in enumerate(shards):
            self.assertEqual(name, f"model-{i + 1:05}-of-{len(shards):05}.safetensors")
            self.assertLessEqual((self.root / "out" / name).stat().st_size, 8192)
        merged = read_checkpoint(self.root / "out")
        self.assertEqual({t.dtype for t in merged.values()}, {"BF16", "I64"})
        expected = self.expected(tensors, adapter)
        for name, tensor in merged.items():
            if tensor.dtype == "BF16":
                self.assert_near(tensor, expected[name], "BF16")
        config = json.loads((self.root / "out/config.json").read_text())
        self.assertEqual(config, {**CONFIG, "torch_dtype": "bfloat16"})
        index = json.loads((self.root / "out" / INDEX).read_text())
        self.assertEqual(index["metadata"]["total_size"],
                         sum(len(t.tobytes()) for t in merged.values()))

    def test_an_overflow_is_refused_unless_allowed(self):
        write_checkpoint(self.root / "base",
                         llama_tensors(more={"big": array([[1e30]], "F32")}))
        write_adapter(self.root / "a", modules())
        self.client.load("a", "a")
        fields = {"dtype": tensor_pb2.DATA_TYPE_F16}
        self.refused("INVALID_ARGUMENT/NON_FINITE_RESULT",
                     lambda: self.merge("base", "out", ["a"], **fields), tensor="big")
        self.assertEqual(sorted(p.name for p in self.root.iterdir()), ["a", "base"])
        self.merge("base", "out", ["a"], allow_non_finite=True, **fields)
        self.assertTrue(np.isinf(read_checkpoint(self.root / "out")["big"].values()).all())

    def test_modules_that_the_checkpoint_lacks_are_an_error_or_listed(self):
        write_checkpoint(self.root / "base", llama_tensors(layers=1))
        write_adapter(self.root / "a", modules(layers=2))
        self.client.load("a", "a")
        lacking = sorted(path for path in modules(2) if ".layers.1." in path)
        self.refused("NOT_FOUND/MODULE_NOT_TARGETED", lambda: self.merge("base", "out", ["a"]),
                     adapter="a", module=lacking[0])
        result = self.merge("base", "out", ["a"], allow_unmatched=True)
        self.assertEqual(list(result.unmatched_modules), lacking)
        self.assertEqual(result.merged_tensors, 7)

    def test_a_tied_head_gets_a_weight_of_its_own(self):
        tensors = llama_tensors()
        del tensors["lm_head.weight"]
        write_checkpoint(self.root / "base", tensors, {**CONFIG, "tie_word_embeddings": True})
        adapter = write_adapter(self.root / "a", {"lm_head": (16, 32, 3)})
        self.client.load("a", "a")
        self.merge("base", "out", ["a"])
        merged = read_checkpoint(self.root / "out")
        embedding = tensors["model.embed_tokens.weight"]
        self.assertEqual(merged["model.embed_tokens.weight"].tobytes(), embedding.tobytes())
        self.assert_near(merged["lm_head.weight"],
                         embedding.values() + delta_of(adapter.modules["lm_head"]), "F32")
        config = json.loads((self.root / "out/config.json").read_text())
        self.assertEqual(config, CONFIG)

    def resized(self, names):
        """An adapter that brings a vocabulary of 40 tokens for these modules."""
        random = np.random.default_rng(3)
        weights = {f"base_model.model.{name}.weight": array(random.standard_normal((40, 16)))
                   for name in names}
        config = {"peft_type": "LORA", "base_model_name_or_path": "tiny", "r": 2, "lora_alpha": 3,
                  "target_modules": ["q_proj"], "modules_to_save": [n.split(".")[-1] for n in names]}
        pair = {f"base_model.model.{Q0}.lora_A.weight": array(random.standard_normal((2, 16))),
                f"base_model.model.{Q0}.lora_B.weight": array(random.standard_normal((24, 2)))}
        write_files(self.root / "a", config, {**weights, **pair})
        self.client.load("a", "a")
        return {name.removeprefix("base_model.model."): w for name, w in weights.items()}

    def test_a_larger_vocabulary_changes_shape_and_config(self):
        write_checkpoint(self.root / "base", llama_tensors(dtype="BF16"))
        weights = self.resized(["model.embed_tokens", "lm_head"])
        self.merge("base", "out", ["a"])
        merged = read_checkpoint(self.root / "out")
        for name, weight in weights.items():
            self.assertEqual(merged[name].tobytes(), array(weight.values(), "BF16").tobytes())
        config = json.loads((self.root / "out/config.json").read_text())
        self.assertEqual(config, {**CONFIG, "vocab_size": 40})

    def test_a_vocabulary_of_two_sizes_is_refused(self):
        write_checkpoint(self.root / "base", llama_tensors())
        self.resized(["model.embed_tokens"])
        self.refused("INVALID_ARGUMENT/BASE_MODEL_MISMATCH",
                     lambda: self.merge("base", "out", ["a"]), tensor="lm_head.weight")

    def test_a_bias_of_the_adapter_is_added_or_refused(self):
        bias = {f"{Q0}.bias": array(np.arange(24))}
        write_checkpoint(self.root / "with", llama_tensors(more=bias))
        write_checkpoint(self.root / "without", llama_tensors())
        weights = {f"base_model.model.{Q0}.lora_A.weight": array(np.ones((2, 16))),
                   f"base_model.model.{Q0}.lora_B.weight": array(np.ones((24, 2))),
                   f"base_model.model.{Q0}.lora_B.bias": array(np.full(24, 2.0))}
        write_files(self.root / "a", {"peft_type": "LORA", "base_model_name_or_path": "tiny",
                                      "r": 2, "lora_alpha": 3, "lora_bias": True,
                                      "target_modules": ["q_proj"]}, weights)
        self.client.load("a", "a")
        self.refused("INVALID_ARGUMENT/BASE_MODEL_MISMATCH",
                     lambda: self.merge("without", "out", ["a"]), module=Q0, adapter="a")
        self.merge("with", "out", ["a"])
        merged = read_checkpoint(self.root / "out")[f"{Q0}.bias"].values()
        np.testing.assert_array_equal(merged, np.arange(24) + 3.0)

    def test_an_output_below_folders_that_are_missing_comes_with_them(self):
        write_checkpoint(self.root / "base", llama_tensors())
        write_adapter(self.root / "a", modules())
        self.client.load("a", "a")
        (self.root / "base/tokenizer.json").write_text("{}")
        (self.root / "base/pytorch_model.bin").write_text("pickled")
        self.assertEqual(self.merge("base", "x/y/z", ["a"]).output, "x/y/z")
        self.assertEqual(self.merge("base", "x/y/w", ["a"]).output, "x/y/w")
        for name in ("z", "w"):
            self.assertEqual(sorted(f.name for f in (self.root / "x/y" / name).iterdir()),
                             sorted([CERTIFICATE, "config.json", WEIGHTS, "tokenizer.json"]))
        self.assertEqual((self.root / "x/y/z" / CERTIFICATE).read_bytes(),
                         (self.root / "x/y/w" / CERTIFICATE).read_bytes())
        self.assertGreater(self.server.metric("adapterd_merge_bytes_total"), 0)


if __name__ == "__main__":
    unittest.main()
