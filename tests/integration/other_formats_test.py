"""Adapters of mlx-lm, sd-scripts and diffusers compute what those tools computed, through both RPCs."""
import json
import sys
import unittest
from collections import Counter

import numpy as np

from adapters import write_files
from harness import FULL, ServerTest, apply_request, fixtures, merge_request
from other_formats import adapters
from tensors import Array, array, from_proto, safetensors_bytes
from tolerance import Dora, Projection, merge_tolerance, projection_tolerance
from adapterd.v1 import adapter_pb2, tensor_pb2

UNSUPPORTED = "INVALID_ARGUMENT/UNSUPPORTED_ADAPTER"
MISMATCH = "INVALID_ARGUMENT/BASE_MODEL_MISMATCH"


class OtherFormatsTest(ServerTest):
    def setUp(self):
        self.models = self.folder()
        self.server = self.start(f"--adapter-root=other={fixtures('other')}",
                                 f"--adapter-root=real={fixtures('real')}",
                                 f"--model-root=bases={self.models}")
        self.client = self.server.client

    def base_of(self, name, modules, weights=None):
        """A checkpoint of the weights that the tool gave, or of zeros by `weights`' names."""
        tensors = {f"{m.path}.weight": m.base for m in modules.values() if m.base is not None}
        (self.models / name).mkdir()
        (self.models / name / "model.safetensors").write_bytes(
            safetensors_bytes(weights or tensors))
        return f"bases:{name}"

    def test_every_folder_of_these_formats_is_covered(self):
        folders = {path.name for path in fixtures("other").iterdir()
                   if path.name.split("-")[0] in ("mlx", "kohya", "diffusers")}
        self.assertEqual(folders, {a.folder.name for a in adapters().values() if a.kind == "other"})

    def test_the_server_tells_its_formats(self):
        self.assertLessEqual({"peft", "mlx", "kohya", "diffusers"}, set(self.client.info().formats))

    def test_every_adapter_computes_what_its_tool_computed(self):
        for name, truth in adapters().items():
            with self.subTest(name):
                base = self.base_of(name, truth.modules) if truth.method == "dora" else ""
                adapter = self.client.load(name, f"{truth.kind}:{truth.source}", view=FULL,
                                           base_checkpoint=base).adapter
                self.check_listing(adapter, truth)
                done = Counter()
                for module in truth.modules.values():
                    for pair in module.pairs:
                        done["beside the tool's"] += self.check_merge(name, module, pair)
                        done["applied"] += self.check_apply(name, module, pair)
                        done["merged"] += 1
                print(f"{name}: " + ", ".join(f"{n} {what}" for what, n in done.items() if n))

    def check_listing(self, adapter, truth):
        self.assertEqual(adapter_pb2.AdapterFormat.Name(adapter.format),
                         f"ADAPTER_FORMAT_{truth.format}")
        self.assertEqual(adapter.method, truth.method)
        self.assertEqual(adapter.file_bytes, truth.file.stat().st_size)
        self.assertEqual([m.path for m in adapter.modules], sorted(truth.modules))
        for m in adapter.modules:
            module = truth.modules[m.path]
            self.assertEqual(adapter_pb2.ModuleKind.Name(m.kind), f"MODULE_KIND_{module.kind}")
            self.assertEqual((m.rank, m.in_features, m.out_features), module.sizes, m.path)
            self.assertEqual(m.experts, module.pairs[0].experts, m.path)
            self.assertEqual(m.scale, module.pairs[0].scale, m.path)
            self.assertEqual(m.alpha, m.scale * m.rank, m.path)
            self.assertEqual(m.dtype, getattr(tensor_pb2, f"DATA_TYPE_{module.pairs[0].dtype}"))
            self.assertEqual(m.has_magnitude, module.magnitude is not None, m.path)

    def select(self, request, module, pair):
        request.CopyFrom(adapter_pb2.ModuleSelector(path=module.path, expert=pair.expert))

    def base_matrix(self, module, pair):
        """W [out, columns] in float64: the tool's, or zeros."""
        if module.base is None:
            return np.zeros((len(pair.b), pair.a.shape[1]))
        base = module.base.values()
        base = base if pair.expert is None else base[pair.expert]
        return base.T if module.kind == "EMBEDDING" else base

    def dora(self, module, pair, matrix):
        if module.magnitude is None:
            return None
        return Dora.of(matrix, module.magnitude, pair.term(None), 0.0)

    def check_merge(self, name, module, pair):
        """1 when the tool's delta was there to compare with."""
        matrix = self.base_matrix(module, pair)
        request = merge_request(name, "", array(module.in_layout(matrix)).proto())
        self.select(request.module, module, pair)
        merged = from_proto(self.client.merge(request).weight)
        term, dora = pair.term(None), self.dora(module, pair, matrix)
        exact = matrix + term.weight()
        exact = exact if dora is None else dora.gain[:, None] * exact
        limit = module.in_layout(merge_tolerance([term], matrix, exact, "F32", dora))
        off = np.abs(merged.values() - module.in_layout(exact))
        self.assertLessEqual((off / limit).max(), 1, module.path)
        if module.delta is None or pair.dtype != "F32":
            return 0
        delta = module.delta.values()
        delta = delta if pair.expert is None else delta[pair.expert]
        # The tool's own roundings are no larger than ours; of a fused weight it gave the difference.
        off = np.abs(merged.values() - module.in_layout(matrix) - delta)
        self.assertLessEqual((off / (2 * limit)).max(), 1, f"{module.path}: not what the tool has")
        return 1

    def inputs(self, module, pair):
        """(x or ids as an Array, its rows for the formula)."""
        if module.kind == "EMBEDDING":
            ids = np.array([0, 5, 5, pair.a.shape[1] - 1]) if module.x is None else (
                module.x.values().astype(np.int64))
            return array(ids, "I64"), np.eye(pair.a.shape[1])[ids.ravel()]
        if module.x is None:
            x = array(np.random.default_rng(len(module.path)).standard_normal(
                (5, pair.a.shape[1])), pair.dtype)
        elif pair.expert is not None:
            tokens = np.argwhere(module.ids.values() == pair.expert)
            x = Array(module.x.dtype, module.x.raw[tokens[:, 0]])
        else:
            x = module.x
        return x, x.values().reshape(-1, pair.a.shape[1])

    def check_apply(self, name, module, pair):
        x, rows = self.inputs(module, pair)
        matrix = self.base_matrix(module, pair)
        base = array(rows @ matrix.T)
        request = apply_request(name, "", x.proto(), Array("F32", base.raw.reshape(
            *x.shape[:(None if module.kind == "EMBEDDING" else -1)], len(pair.b))).proto())
        self.select(request.projections[0].module, module, pair)
        if module.kind == "CONV" and any(size > 1 for size in module.kernel):
            self.refused(UNSUPPORTED, self.client.apply, request, module=module.path)
            return 0
        y = from_proto(self.client.apply(request).outputs[0].output).values().reshape(base.shape)
        p = Projection([pair.term(rows)], base.values(), "F32", self.dora(module, pair, matrix))
        off = np.abs(y - p.exact())
        self.assertLessEqual((off / projection_tolerance(p, against_peft=False)).max(initial=0), 1)
        if module.y is not None:
            tool = module.y.values()
            if pair.expert is not None:
                tool = tool[module.ids.values() == pair.expert]
            # Its base product is a sum in F32, too, and not rounded from float64 as ours was.
            sums = (matrix.shape[1] + 4) * 2.0 ** -24 * (np.abs(rows) @ np.abs(matrix).T)
            gain = 1 if p.dora is None else np.abs(p.dora.gain)
            limit = projection_tolerance(p, against_peft=True) + 2 * gain * sums
            self.assertLessEqual((np.abs(y - tool.reshape(y.shape)) / limit).max(initial=0), 1,
                                 f"{module.path}: not what the tool computed")
        return 1

    def test_a_full_fine_tune_replaces_weights(self):
        root = self.folder()
        saved = {"model.layers.1.mlp.up_proj.weight": array(np.ones((6, 4)), "BF16"),
                 "model.layers.1.mlp.up_proj.bias": array(np.ones(6), "BF16"),
                 "model.norm.weight": array(np.full(4, 3.0))}
        write_files(root / "a", {"fine_tune_type": "full", "num_layers": 1, "model": "m"}, saved,
                    "adapters.safetensors")
        client = self.start(f"--adapter-root={root}").client
        adapter = client.load("a", "a", view=FULL).adapter
        self.assertEqual((adapter.method, len(adapter.modules)), ("full", 2))
        reply = client.merge(merge_request("a", "model.layers.1.mlp.up_proj",
                                           array(np.zeros((6, 4))).proto()))
        np.testing.assert_array_equal(from_proto(reply.weight).values(), np.ones((6, 4)))
        np.testing.assert_array_equal(from_proto(reply.bias).values(), np.ones(6))
        reply = client.merge(merge_request("a", "model.norm", array(np.zeros(4)).proto()))
        np.testing.assert_array_equal(from_proto(reply.weight).values(), np.full(4, 3.0))
        self.refused(UNSUPPORTED, client.export, "a", root / "out")

    def test_an_export_to_peft_has_the_same_factors(self):
        """What PEFT has no form for is refused."""
        exports = self.folder()
        client = self.start(f"--adapter-root=other={fixtures('other')}",
                            f"--adapter-root=exports={exports}").client
        for name, truth in adapters().items():
            if truth.kind != "other":
                continue
            with self.subTest(name):
                adapter = client.load(name, f"other:{truth.source}", view=FULL).adapter
                if any(m.kind == adapter_pb2.MODULE_KIND_EXPERTS for m in adapter.modules):
                    self.refused(UNSUPPORTED, client.export, name, exports / f"{name}.refused")
                    continue
                client.export(name, exports / name)
                again = client.load(f"{name}.again", f"exports:{name}", view=FULL).adapter
                self.assertEqual(again.format, adapter_pb2.ADAPTER_FORMAT_PEFT)
                self.assertEqual([(m.path, m.kind, m.rank, m.scale) for m in again.modules],
                                 [(m.path, m.kind, m.rank, m.scale) for m in adapter.modules])
                for m in adapter.modules:
                    selector = adapter_pb2.ModuleSelector(path=m.path)
                    ours, theirs = (client.tensors(n, selector) for n in (name, f"{name}.again"))
                    self.assertEqual(ours.lora_a, theirs.lora_a, m.path)
                    self.assertEqual(ours.lora_b, theirs.lora_b, m.path)
                    self.assertEqual(ours.magnitude.data, theirs.magnitude.data, m.path)

    def test_both_files_of_one_diffusers_adapter_are_one_content(self):
        """Prefix and spelling are no part of the revision."""
        for folder, files in (("diffusers-unet-metadata", ("pytorch_lora_weights",
                                                           "unet_lora_adapter")),
                              ("diffusers-unet-plain", ("pytorch_lora_weights",
                                                        "pytorch_lora_weights_peft_keys"))):
            one, other = (self.client.load(file, f"other:{folder}/{file}.safetensors",
                                           replace=True).adapter for file in files)
            self.assertEqual(one.revision, other.revision)

    def test_what_a_file_does_not_say_is_warned_of(self):
        for source, says in (("diffusers-unet-plain", "holds no alpha"),
                             ("kohya-unet/pytorch_lora_weights_kohya.safetensors", "underscores")):
            warnings = self.client.load("a", f"other:{source}", replace=True).adapter.warnings
            self.assertTrue(any(says in warning for warning in warnings), warnings)
        warnings = self.client.load("a", "other:diffusers-unet-metadata",
                                    replace=True).adapter.warnings
        self.assertFalse(any("alpha" in warning for warning in warnings), warnings)

    def kohya_modules(self, folder):
        """Path in the UNet -> shape of its weight."""
        modules = json.loads((fixtures("other") / folder / "modules.json").read_text())
        return {module["module"]: module["shape"] for module in modules.values()}

    def base_of_shapes(self, name, shapes):
        return self.base_of(name, {}, {f"{path}.weight": array(np.zeros(shape))
                                       for path, shape in shapes.items()})

    def test_flattened_names_are_resolved_against_the_base(self):
        for i, (folder, file) in enumerate((("kohya-unet", "pytorch_lora_weights_kohya"),
                                            ("kohya-native", "lora"),
                                            ("kohya-native-conv", "lora"))):
            source = f"other:{folder}/{file}.safetensors"
            flat = self.client.load("flat", source, view=FULL, replace=True).adapter
            for prefix in ("", "unet.", "model.diffusion_model."):
                shapes = {prefix + path: shape
                          for path, shape in self.kohya_modules(folder).items()}
                base = self.base_of_shapes(f"base{i}{prefix}", shapes)
                bound = self.client.load("bound", source, view=FULL, replace=True,
                                         base_checkpoint=base).adapter
                self.assertEqual({m.path for m in bound.modules}, set(shapes))
                self.assertEqual(bound.revision, flat.revision)
                by_name = {m.lora_a_tensor: m for m in flat.modules}
                for m in bound.modules:
                    self.assertEqual(m.scale, by_name[m.lora_a_tensor].scale)

    def test_a_name_that_may_mean_two_modules_is_refused_with_both(self):
        shapes = self.kohya_modules("kohya-native")
        path = next(iter(shapes))
        twin = path[::-1].replace(".", "_", 1)[::-1]
        base = self.base_of_shapes("twins", shapes | {twin: shapes[path]})
        failure = self.refused(MISMATCH, lambda: self.client.load(
            "a", "other:kohya-native/lora.safetensors", base_checkpoint=base))
        self.assertIn(path, failure.message)
        self.assertIn(twin, failure.message)
        self.assertEqual(self.client.list().total_size, 0)

    def test_a_base_of_another_model_is_refused(self):
        base = self.base_of_shapes("other", {"some.layer": (4, 4)})
        for source in ("kohya-native/lora.safetensors", "diffusers-unet-plain", "mlx-llama-lora"):
            self.refused(MISMATCH, lambda: self.client.load("a", f"other:{source}",
                                                            base_checkpoint=base))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
