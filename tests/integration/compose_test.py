"""ComposeAdapter through the real binary, against PEFT's numbers and an oracle."""
import json
import signal
import sys
import unittest

import numpy as np

from adapters import Q0, Q1, SMALL, V0, V1, config_of, tensors_of, write_adapter, write_files
from compose_oracle import composed, truncated
from harness import FULL, PATIENCE, ServerTest, fixtures, until
from peft_rules import PeftAdapter
from tensors import array, from_proto, read_safetensors
from adapterd.v1 import adapter_creation_pb2 as creation
from adapterd.v1 import adapter_pb2

BAD = "INVALID_ARGUMENT/INVALID_FIELD"
FIXTURES = fixtures("peft/compose")
CASES = json.loads((FIXTURES / "compose.json").read_text())
METHODS = ("linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties",
           "dare_linear_svd", "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd")

# Of the norm of the delta. PEFT sums in F32, and so do its SVD and ours.
PRECISE, SVD = 2e-6, 1e-4


def request_of(name, adapters, weights, combination_type, **options):
    """In the words of add_weighted_adapter."""
    request = creation.ComposeAdapterRequest(
        name=name, method=f"COMPOSE_METHOD_{combination_type.upper()}",
        adapters=[adapter_pb2.AdapterRef(name=n, weight=w) for n, w in zip(adapters, weights)],
        density=options.get("density", 0), rank=options.get("svd_rank", 0),
        svd_clamp=options.get("svd_clamp"), seed=options.get("seed", 0))
    if "majority_sign_method" in options:
        sign = options["majority_sign_method"].upper()
        request.majority_sign = creation.MajoritySign.Value(f"MAJORITY_SIGN_{sign}")
    return request


def distance(actual, expected):
    return np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)


class ComposeTest(ServerTest):
    def setUp(self):
        self.root = self.folder()
        self.data = self.folder() / "data"
        self.server = self.start(f"--adapter-root={self.root}", f"--data-dir={self.data}",
                                 f"--adapter-root=peft={FIXTURES}")
        self.client = self.server.client

    def compose(self, name, adapters, weights=None, combination_type="svd", **options):
        weights = weights or [1.0] * len(adapters)
        return self.client.adapters.ComposeAdapter(
            request_of(name, adapters, weights, combination_type, **options), timeout=PATIENCE)

    def write(self, name, modules=None, **config):
        truth = write_adapter(self.root / name, modules, seed=len(list(self.root.iterdir())),
                              **config)
        self.client.load(name, name)
        return truth

    def product(self, name, path):
        """scale * B A as it is served, in float64."""
        tensors = self.client.tensors(name, adapter_pb2.ModuleSelector(path=path))
        a, b = (from_proto(t).values() for t in (tensors.lora_a, tensors.lora_b))
        return tensors.scale * b @ a.reshape(len(a), -1)


class PeftNumbersTest(ComposeTest):
    def setUp(self):
        super().setUp()
        self.truths = {name: PeftAdapter(FIXTURES / name) for name in "abcd"}
        for name in self.truths:
            self.client.load(name, f"peft:{name}")

    def parts(self, path, case):
        return [(i, self.truths[name].modules[path], weight)
                for i, (name, weight) in enumerate(zip(case["adapters"], case["weights"]))]

    def test_every_case_of_peft_is_what_peft_computed(self):
        self.assertEqual(len(CASES), 12)
        for name, case in CASES.items():
            expected = read_safetensors(FIXTURES / f"{name}.safetensors")
            paths = sorted({key.split("|")[0] for key in expected})
            reply = self.compose(name, **case)
            self.assertEqual(reply.adapter.module_count, len(paths))
            self.assertEqual(reply.adapter.format, adapter_pb2.ADAPTER_FORMAT_CREATED)
            is_svd = case["combination_type"].endswith("svd")
            for path in paths:
                with self.subTest(name, path=path):
                    a, b = (expected[f"{path}|lora_{x}"].values() for x in "AB")
                    actual = self.product(name, path)
                    self.assertLess(distance(actual, b @ a), SVD if is_svd else PRECISE)
                    delta = expected.get(f"{path}|delta_weight")
                    if delta is not None:
                        self.assertLess(distance(actual, delta.values()),
                                        SVD if is_svd else PRECISE)
            self.assertEqual(len(reply.singular_values), len(paths) if is_svd else 0)

    def test_the_oracle_agrees_with_peft(self):
        for name, case in CASES.items():
            if "svd_clamp" in case:
                continue
            expected = read_safetensors(FIXTURES / f"{name}.safetensors")
            options = {k: v for k, v in case.items() if k not in ("adapters", "weights")}
            for path in sorted({key.split("|")[0] for key in expected}):
                a, b = (expected[f"{path}|lora_{x}"].values() for x in "AB")
                self.assertLess(distance(composed(path, self.parts(path, case), **options), b @ a),
                                SVD)

    def test_dare_drops_what_the_seed_says(self):
        for method in ("dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"):
            case = dict(adapters=["a", "b", "c"], weights=[0.7, -0.2, 0.4], density=0.6,
                        combination_type=method, seed=2**64 - 1)
            self.compose(method, **case)
            options = {k: v for k, v in case.items() if k not in ("adapters", "weights")}
            path = "model.layers.0.self_attn.q_proj"
            expected = composed(path, self.parts(path, case), **options)
            with self.subTest(method):
                self.assertLess(distance(self.product(method, path), expected), SVD)
                case["seed"] = 5
                self.compose(f"{method}.5", **case)
                self.assertGreater(distance(self.product(f"{method}.5", path), expected), 0.1)

    def test_rows_are_those_of_the_mixture(self):
        """Cat and full SVD are the weighted sum of the adapters, applied one by one."""
        case = dict(adapters=["a", "b", "d"], weights=[0.7, -0.2, 0.4])
        self.compose("cat", combination_type="cat", **case)
        self.compose("svd", combination_type="svd", svd_rank=20, **case)
        for path in self.truths["a"].modules:
            expected = sum(w * p.scale * p.factors()[1] @ p.factors()[0]
                           for _, p, w in self.parts(path, case))
            self.assertLess(distance(self.product("cat", path), expected), PRECISE)
            self.assertLess(distance(self.product("svd", path), expected), SVD)

    def test_clamps_of_large_deltas_have_signs_of_their_own(self):
        modules = {Q0: (300, 280, 6)}
        truths = {name: self.write(name, modules, r=6) for name in ("x", "y")}
        case = dict(adapters=["x", "y"], weights=[0.7, -0.2], svd_rank=3, svd_clamp=0.9)
        self.compose("clamped", combination_type="svd", **case)
        parts = [(i, truths[name].modules[Q0], weight)
                 for i, (name, weight) in enumerate(zip(case["adapters"], case["weights"]))]
        expected = composed(Q0, parts, "svd", svd_rank=3, svd_clamp=0.9)
        self.assertLess(distance(self.product("clamped", Q0), expected), SVD)

    def test_singular_values_are_those_of_the_delta(self):
        case = dict(adapters=["a", "b", "d"], weights=[0.7, -0.2, 0.4])
        reply = self.compose("mixed", combination_type="svd", svd_rank=6, **case)
        for entry in reply.singular_values:
            delta = sum(w * p.scale * p.factors()[1] @ p.factors()[0]
                        for _, p, w in self.parts(entry.path, case))
            expected = np.linalg.svd(delta, compute_uv=False)[:6]
            np.testing.assert_allclose(entry.values, expected, atol=1e-5 * expected[0])


class MixtureTest(ComposeTest):
    def expect_composed(self, name, truths, weights, combination_type, **options):
        for path in {path for truth in truths for path in truth.modules}:
            parts = [(i, truth.modules[path], weight)
                     for i, (truth, weight) in enumerate(zip(truths, weights))
                     if path in truth.modules]
            expected = composed(path, parts, combination_type, **options)
            self.assertLess(distance(self.product(name, path), expected), SVD, (name, path))

    def test_modules_of_some_adapters_are_mixed_from_those(self):
        truths = [self.write("one"), self.write("two", {Q0: SMALL[Q0], V1: SMALL[V1]}),
                  self.write("three", {Q0: SMALL[Q0]}, lora_alpha=1)]
        weights = [1.0, -0.5, 2.0]
        for method in METHODS:
            with self.subTest(method):
                reply = self.compose(method, ["one", "two", "three"], weights, method, density=0.5)
                self.assertEqual(reply.adapter.module_count, len(SMALL))
                self.expect_composed(method, truths, weights, method, density=0.5)

    def test_rsloras_and_rank_patterns_have_their_own_scales(self):
        mixed = {**SMALL, Q1: (8, 6, 3)}
        patterns = dict(rank_pattern={"layers.1.self_attn.q_proj": 3}, r=2,
                        alpha_pattern={"v_proj": 7})
        truths = [self.write("one", mixed, use_rslora=True, **patterns),
                  self.write("two", mixed, **patterns)]
        for method in METHODS:
            with self.subTest(method):
                options = dict(density=0.5, svd_rank=3 if method.endswith("svd") else 0)
                reply = self.compose(method, ["one", "two"], [0.5, 0.25], method, **options)
                self.assertEqual(reply.adapter.method, "lora")
                full = self.client.get(method, view=FULL)
                self.assertEqual({m.scale for m in full.modules}, {1})
                self.expect_composed(method, truths, [0.5, 0.25], method, **options)

    def test_half_precision_is_computed_and_kept_in_f32(self):
        truths = [write_adapter(self.root / name, seed=i, dtype=dtype)
                  for i, (name, dtype) in enumerate((("one", "BF16"), ("two", "F16")))]
        for name in ("one", "two"):
            self.client.load(name, name)
        for method in ("linear", "cat", "svd", "ties", "magnitude_prune"):
            reply = self.compose(method, ["one", "two"], [0.3, 0.6], method, density=0.7)
            self.assertEqual(reply.adapter.parameter_count, sum(
                r * (2 if method == "cat" else 1) * (i + o) for i, o, r in SMALL.values()))
            self.expect_composed(method, truths, [0.3, 0.6], method, density=0.7)

    def test_one_adapter_alone_is_only_scaled_and_cut_to_the_rank(self):
        truth = self.write("one", {Q0: (8, 6, 4)}, r=4)
        expected = truth.modules[Q0].scale * np.matmul(*truth.modules[Q0].factors()[::-1])
        for method in METHODS:
            self.compose(method, ["one"], [-2.0], method, density=0.5)
            self.assertLess(distance(self.product(method, Q0), -2 * expected), SVD, method)
        self.compose("cut", ["one"], [1.0], "svd", svd_rank=2)
        self.assertLess(distance(self.product("cut", Q0),
                                 np.matmul(*truncated(expected, 2))), SVD)

    def test_an_adapter_may_be_named_twice_and_weigh_nothing(self):
        truth = self.write("one")
        self.compose("none", ["one", "one"], [0.0, 0.0], "svd")
        self.assertFalse(self.product("none", Q0).any())
        self.compose("three", ["one", "one"], [1.0, 2.0], "svd")
        self.expect_composed("three", [truth, truth], [1.0, 2.0], "svd", svd_rank=2)

    def test_embeddings_and_convolutions_are_mixed_like_their_matrices(self):
        client = self.start(f"--adapter-root={fixtures('peft/cases')}").client
        for folder in ("llama-embedding-head", "conv2d"):
            truth = PeftAdapter(fixtures("peft/cases") / folder)
            client.load("one", folder, replace=True), client.load("two", folder, replace=True)
            self.client = client
            for method in METHODS:
                name = f"{folder}.{method}"
                rank = min(min(pair.factors()[0].shape[0] for pair in truth.modules.values()), 4)
                options = dict(density=0.5, svd_rank=rank if method.endswith("svd") else 0)
                self.compose(name, ["one", "two"], [1.0, -0.5], method, **options)
                self.expect_composed(name, [truth, truth], [1.0, -0.5], method, **options)

    def test_the_result_survives_a_restart_and_is_a_no_op_the_second_time(self):
        self.write("one"), self.write("two")
        first = self.compose("mixed", ["one", "two"], [0.5, 0.5], "ties", density=0.5)
        self.assertFalse(first.already_loaded)
        again = self.compose("mixed", ["one", "two"], [0.5, 0.5], "ties", density=0.5)
        self.assertTrue(again.already_loaded)
        self.assertEqual(again.adapter.etag, first.adapter.etag)
        before = self.product("mixed", Q0)
        self.refused("ALREADY_EXISTS/ADAPTER_EXISTS", lambda: self.compose(
            "mixed", ["one", "two"], [0.5, 0.6], "ties", density=0.5))
        self.server.process.send_signal(signal.SIGKILL)
        self.server.expected_exit = -signal.SIGKILL
        self.server.wait()
        self.client = self.start(f"--adapter-root={self.root}", f"--data-dir={self.data}").client
        self.client.unload("one"), self.client.unload("two")
        np.testing.assert_array_equal(self.product("mixed", Q0), before)
        self.assertEqual(self.client.get("mixed").revision, first.adapter.revision)


class RefusalTest(ComposeTest):
    def setUp(self):
        super().setUp()
        self.write("one"), self.write("two"), self.write("big", {Q0: (8, 6, 4)}, r=4)

    def refuse(self, status, name="mixed", adapters=("one", "two"), weights=None, method="svd",
               **options):
        self.refused(status,
                     lambda: self.compose(name, list(adapters), weights, method, **options))
        self.assertNotIn("mixed", {adapter.name for adapter in self.client.list().adapters})

    def test_requests_that_mean_nothing_are_refused(self):
        for density in (0, -0.5, 1.5, float("nan"), float("inf")):
            for method in ("ties", "dare_linear_svd", "magnitude_prune"):
                self.refuse(BAD, method=method, density=density)
        for weight in (float("nan"), float("inf"), -float("inf")):
            self.refuse(BAD, weights=[1.0, weight])
        self.refuse(BAD, method="unspecified")
        self.refuse(BAD, adapters=[])
        self.refuse(BAD, adapters=["one"] * 65)
        self.refuse(BAD, name="one")
        self.refuse(BAD, name="no/name")
        self.refuse(BAD, svd_rank=5)
        self.refuse(BAD, svd_rank=-1)
        for clamp in (0, -1, 1.5, float("nan")):
            self.refuse(BAD, svd_clamp=clamp)

    def test_adapters_that_do_not_go_together_are_refused(self):
        for method in ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"):
            self.refuse(BAD, adapters=["one", "big"], method=method, density=0.5)
        self.write("other", {"model.layers.7.mlp.up_proj": (8, 6, 2)})
        self.refuse(BAD, adapters=["one", "other"])
        self.write("wide", {Q0: (10, 6, 2)})
        self.refuse("INVALID_ARGUMENT/SHAPE_MISMATCH", adapters=["one", "wide"])
        self.refuse("NOT_FOUND/ADAPTER_NOT_FOUND", adapters=["one", "none"])
        self.client.update("two", enabled=False)
        self.refuse("FAILED_PRECONDITION/ADAPTER_DISABLED")

    def test_what_a_mixture_would_lose_is_refused(self):
        self.client = self.start(f"--adapter-root={fixtures('peft/cases')}").client
        for folder in ("llama-dora", "qwen2-lora-bias", "qwen2-bias-all", "llama-modules-to-save",
                       "llama-trainable-tokens", "mixtral-experts"):
            with self.subTest(folder):
                self.client.load("one", folder, replace=True)
                self.client.load("two", folder, replace=True)
                for method in ("svd", "linear"):
                    self.refuse("INVALID_ARGUMENT/UNSUPPORTED_ADAPTER", method=method)

    def test_what_does_not_fit_is_refused_before_the_work(self):
        wide = {f"model.layers.{i}.self_attn.q_proj": (512, 512, 8) for i in range(16)}
        for seed, name in enumerate(("x", "y")):
            write_adapter(self.root / name, wide, seed=seed, r=8)
        server = self.start(f"--adapter-root={self.root}", "--memory-budget=1792KiB")
        server.client.load("x", "x", pinned=True)
        server.client.load("y", "y", pinned=True)
        self.client = server.client
        self.refuse("RESOURCE_EXHAUSTED/MEMORY_BUDGET_EXCEEDED", adapters=["x", "y"], method="cat")
        self.assertEqual(server.client.list().total_size, 2)

    def test_overflow_is_an_error_and_leaves_nothing(self):
        for name in ("huge", "huge2"):
            modules = {Q0: SMALL[Q0]}
            tensors = {n: array(np.full(t.shape, 1e20)) for n, t in tensors_of(modules).items()}
            write_files(self.root / name, config_of(modules), tensors)
            self.client.load(name, name)
        self.refuse("INVALID_ARGUMENT/NON_FINITE_RESULT", adapters=["huge", "huge2"],
                    weights=[1e38, 1e38], method="svd")
        for part in ("incoming", "content"):
            self.assertEqual(list((self.data / "store" / part).iterdir()), [])

    def test_a_client_that_leaves_ends_the_work(self):
        wide = {f"model.layers.{i}.self_attn.q_proj": (768, 768, 8) for i in range(24)}
        for seed, name in enumerate(("x", "y")):
            write_adapter(self.root / name, wide, seed=seed, r=8)
            self.client.load(name, name)
        call = self.client.adapters.ComposeAdapter.future(
            request_of("mixed", ["x", "y"], [1, 1], "ties_svd", density=0.5))
        incoming = self.data / "store" / "incoming"
        until(lambda: list(incoming.iterdir()), "the composition writes")
        call.cancel()
        until(lambda: not list(incoming.iterdir()), "nothing of it is left")
        self.assertNotIn("mixed", {a.name for a in self.client.list().adapters})


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
