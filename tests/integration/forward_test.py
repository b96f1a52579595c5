"""Forward through the real binary: a base model in memory and adapters give what PEFT's model gave."""
import sys
import unittest

import numpy as np

from case_files import Case
from cases_table import LOAD, entries, root_flags, source
from harness import PATIENCE, ServerTest, fixtures
from module_checks import worst
from tensors import array, from_proto, read_safetensors, safetensors_bytes, unit_roundoff
from tolerance import SECOND_ORDER, Projection, Term, projection_tolerance
from adapterd.v1 import (adapter_pb2, base_model_service_pb2, base_model_service_pb2_grpc,
                         projection_service_pb2)

INPUT = np.arange(90).reshape(9, 10)  # of PEFT's regression suite
# Weights in 4 bits that meet BF16 inputs are split into two BF16.
SPLIT = 2.0 ** -16


def ref(name, weight=None):
    return adapter_pb2.AdapterRef(name=name, weight=weight)


def forward_request(base, path, x, name=None, **fields):
    return projection_service_pb2.ForwardRequest(
        base_model=base, module=adapter_pb2.ModuleSelector(path=path), input=x,
        adapter=ref(name) if name else None, **fields)


def segments(*runs):
    """(rows, adapter references) each."""
    return [projection_service_pb2.Segment(rows=rows, adapters=adapters) for rows, adapters in runs]


class ForwardTest(ServerTest):
    def setUp(self):
        self.models = self.folder()
        self.client = self.start(*root_flags(), f"--model-root=bases={self.models}").client
        self.bases = base_model_service_pb2_grpc.BaseModelServiceStub(self.client.channel)
        self.loaded = set()

    def host(self, name, folder=None, **fields):
        """Loads a base model once."""
        if name not in self.loaded:
            self.bases.LoadBaseModel(base_model_service_pb2.LoadBaseModelRequest(
                name=name, source=f"bases:{folder or name}", **fields), timeout=PATIENCE)
        self.loaded.add(name)
        return name

    def forward(self, *arguments, **fields):
        return self.send(forward_request(*arguments, **fields))

    def send(self, request):
        return self.client.projections.Forward(request, timeout=PATIENCE)

    def values(self, *arguments, **fields):
        return from_proto(self.forward(*arguments, **fields).output).values()

    def base_of(self, case):
        folder = self.models / case.checkpoint
        if not folder.exists():
            case.base.write(folder)
        return self.host(case.checkpoint)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


class GoldenTest(ForwardTest):
    """The models of PEFT's regression suite, layer by layer through Forward."""

    def open(self, name):
        self.client.load(name, source("golden-peft", name))
        folder = fixtures("golden-peft") / name
        tensors = read_safetensors(folder / "base_model.safetensors")
        (self.models / name).mkdir()
        (self.models / name / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        self.host(name)
        return read_safetensors(folder / "expected_output.safetensors")["output"].values()

    def check(self, logits, expected):
        np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-5, atol=1e-5)

    def test_the_mlp_and_one_whose_last_layer_is_replaced(self):
        for name, last in (("lora_mlp", None),
                           ("lora_mlp_modules_to_save", "lora_mlp_modules_to_save")):
            expected = self.open(name)
            hidden = np.maximum(self.values(name, "lin0", array(INPUT).proto(), name), 0)
            self.check(self.values(name, "lin1", array(hidden).proto(), last), expected)

    def test_the_embedding_and_the_conv1d(self):
        name = "lora_emb_conv1d"
        expected = self.open(name)
        x = self.values(name, "emb", array(INPUT, "I64").proto(), name)
        hidden = np.maximum(self.values(name, "conv1d", array(x).proto(), name), 0)
        flat = array(hidden.reshape(len(INPUT), -1)).proto()
        self.check(self.values(name, "lin0", flat), expected)


class CasesTest(ForwardTest):
    def test_every_case_gives_what_peft_gave(self):
        for kind, name, _ in entries(LOAD, "peft/cases"):
            with self.subTest(name):
                self.check_case(Case(name), kind)

    def check_case(self, case, kind):
        base = self.base_of(case)
        self.client.load(case.name, source(kind, case.name))
        counts = {"right": 0, "refused": 0}
        for pair in case.truth.modules.values():
            if pair.experts:  # the checkpoint has a module an expert instead
                continue
            counts[self.check_pair(case, pair, base)] += 1
        print(f"{case.name}: {counts['right']} modules, {counts['refused']} refused")

    def check_pair(self, case, pair, base):
        layer, values = case.layer(pair), case.expected[pair.path]
        x, y = layer.last(values["x"]), values["y"]
        request = forward_request(base, pair.path, x.proto(), case.name,
                                  output_dtype=y.proto().dtype)
        if not layer.is_pointwise:
            self.refused("INVALID_ARGUMENT/UNSUPPORTED_ADAPTER", self.send, request)
            return "refused"
        if case.truth.config.get("layer_replication"):
            self.check_replicated(case, pair, request)
            return "refused"
        reply = self.send(request)
        self.assertEqual([use.name for use in reply.adapters], [case.name])
        output = from_proto(reply.output)
        self.assertEqual((output.dtype, output.shape), (y.dtype, layer.last(y).shape))
        term = Term.of(pair, layer.rows(values["x"]))
        bias = case.bias(pair)
        bias = 0.0 if bias is None else bias.values()
        exact_base = term.x @ layer.matrix().T + bias
        p = Projection([term], exact_base, y.dtype, case.dora(pair, layer, term))
        products = np.abs(term.x) @ np.abs(layer.matrix()).T + np.abs(bias)
        length = np.count_nonzero(term.x, axis=1).max(initial=0) + 4
        sums = SECOND_ORDER * p.amplified(length * unit_roundoff("F32") * products)
        # What PEFT's base layer rounds, and its product in its own dtype.
        peft = SECOND_ORDER * p.amplified(2 * unit_roundoff(y.dtype) * np.abs(exact_base))
        off = output.values().reshape(exact_base.shape)
        self.assertLessEqual(worst(np.abs(off - p.exact()),
                                   projection_tolerance(p, against_peft=False) + sums), 1,
                             f"{pair.path}: farther from the exact value than roundings explain")
        self.assertLessEqual(worst(np.abs(off - layer.outputs(y)),
                                   projection_tolerance(p, against_peft=True) + 2 * sums + peft), 1,
                             f"{pair.path}: not what PEFT computed")
        return "right"

    def check_replicated(self, case, pair, request):
        """Layers of the adapter's stack are not those of the base, which has fewer."""
        layer = next(int(part) for part in pair.path.split(".") if part.isdigit())
        is_there = layer < max(end for _, end in case.truth.config["layer_replication"])
        self.refused("INVALID_ARGUMENT/UNSUPPORTED_ADAPTER" if is_there
                     else "NOT_FOUND/MODULE_NOT_TARGETED", self.send, request)

    def test_replaced_modules_are_used_when_their_adapter_is_chosen(self):
        checked = 0
        for kind, name, _ in entries(LOAD, "peft/cases"):
            case = Case(name)
            for path, replacement in case.truth.replacements.items():
                saved = replacement.weight
                if saved is None or saved.values().ndim != 2 or path in case.truth.modules:
                    continue
                base = self.base_of(case)
                original = case.base.tensor(path, "weight")
                if original is None or original.shape != saved.shape:
                    continue
                self.client.load(name, source(kind, name))
                x = array(np.random.default_rng(1).standard_normal((4, saved.shape[1])))
                runs = segments((2, [ref(name)]), (2, []))
                y = self.values(base, path, x.proto(), segments=runs)
                bias = case.base.tensor(path, "bias")
                bias = 0.0 if bias is None else bias.values()
                new_bias = bias if replacement.bias is None else replacement.bias.values()
                expected = np.concatenate([x.values()[:2] @ saved.values().T + new_bias,
                                           x.values()[2:] @ original.values().T + bias])
                np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
                self.refused("INVALID_ARGUMENT/INVALID_FIELD", self.send, forward_request(
                    base, path, x.proto(), segments=segments((4, [ref(name, 0.5)]))))
                checked += 1
        self.assertGreater(checked, 0)


class HostedTest(ForwardTest):
    """One layer of tiny-llama, in F32 and in 4 bits."""
    PATH = "model.layers.1.self_attn.q_proj"

    def setUp(self):
        super().setUp()
        self.case = Case("llama-qv")
        self.base = self.base_of(self.case)
        self.pair = self.case.truth.modules[self.PATH]
        self.weight = self.case.layer(self.pair).matrix()
        self.client.load("a", source("peft/cases", "llama-qv"))
        self.client.load("b", source("peft/cases", "llama-qv"))
        self.x = array(np.random.default_rng(7).standard_normal((40, self.weight.shape[1])))

    def expect(self, y, weight, factors, lost=0.0):
        """`factors`: of the pair's delta, a row."""
        term = Term.of(self.pair, self.x.values())
        delta = np.asarray(factors)[:, None] * term.delta()
        exact = self.x.values() @ weight.T + delta
        size = np.abs(self.x.values()) @ np.abs(weight).T
        limit = (lost + 2e-7 * weight.shape[1]) * size + 16 * term.sums_error() + 1e-6
        self.assertLessEqual(worst(np.abs(y - exact), limit), 1)

    def merge(self, **fields):
        return self.bases.MergeAdapter(base_model_service_pb2.MergeAdapterRequest(
            base_model=self.base, **fields), timeout=PATIENCE)

    def test_segments_mix_up_to_sixteen_adapters(self):
        names = ["a", "b"] + [f"n{i}" for i in range(14)]
        for name in names[2:]:
            self.client.load(name, source("peft/cases", "llama-qv"))
        runs = segments((3, []), (10, [ref("a")]), (7, [ref("a", 0.5), ref("b", -2)]),
                        (20, [ref(name, 0.25) for name in names]))
        reply = self.forward(self.base, self.PATH, self.x.proto(), segments=runs)
        self.assertEqual(sorted(use.name for use in reply.adapters), sorted(names))
        self.expect(from_proto(reply.output).values(), self.weight,
                    [0] * 3 + [1] * 10 + [-1.5] * 7 + [4] * 20)

    def test_without_adapters_it_is_the_base_model(self):
        reply = self.forward(self.base, self.PATH, self.x.proto())
        self.assertEqual(len(reply.adapters), 0)
        self.expect(from_proto(reply.output).values(), self.weight, [0] * 40)

    def test_what_is_merged_is_not_applied_again(self):
        apart = self.values(self.base, self.PATH, self.x.proto(), "a")
        self.merge(adapters=[ref("a")], modules=[self.PATH])
        with_it = self.forward(self.base, self.PATH, self.x.proto(), "a")
        self.assertEqual([use.name for use in with_it.adapters], ["a"])
        merged = from_proto(with_it.output).values()
        np.testing.assert_array_equal(merged, self.values(self.base, self.PATH, self.x.proto()))
        np.testing.assert_allclose(merged, apart, rtol=1e-5, atol=1e-5)
        self.expect(self.values(self.base, self.PATH, self.x.proto(), "b"), self.weight, [2] * 40)
        # Elsewhere in the model it still is.
        other = "model.layers.0.self_attn.q_proj"
        plain = self.values(self.base, other, self.x.proto())
        self.assertGreater(np.abs(plain - self.values(self.base, other, self.x.proto(), "a")).max(),
                           1e-4)
        self.refused("FAILED_PRECONDITION/MERGED_REVISION", self.send,
                     forward_request(self.base, self.PATH, self.x.proto(),
                                     segments=segments((40, [ref("a", 0.5)]))),
                     adapter="a", module=self.PATH)
        self.bases.UnmergeAdapter(base_model_service_pb2.UnmergeAdapterRequest(
            base_model=self.base), timeout=PATIENCE)
        np.testing.assert_array_equal(self.values(self.base, self.PATH, self.x.proto(), "a"), apart)

    def dequantised(self, name):
        stream = self.bases.GetBaseWeight(base_model_service_pb2.GetBaseWeightRequest(
            base_model=name, module=adapter_pb2.ModuleSelector(path=self.PATH)), timeout=PATIENCE)
        raw = b"".join(reply.data for reply in stream)
        return np.frombuffer(raw, "<f4").reshape(self.weight.shape).astype(np.float64)

    def test_weights_in_four_bits(self):
        for block in (64, 7):
            name = self.host(f"nf4.{block}", self.case.checkpoint, block_size=block,
                             quantization=base_model_service_pb2.QUANTIZATION_NF4)
            weight = self.dequantised(name)
            self.assertGreater(np.abs(weight - self.weight).max(), 0)
            for rows in (1, 3, 40):
                for dtype, lost in (("F32", 0.0), ("BF16", SPLIT)):
                    x = array(self.x.values()[:rows], dtype)
                    y = self.values(name, self.PATH, x.proto(),
                                    output_dtype=array(np.zeros(1)).proto().dtype)
                    size = np.abs(x.values()) @ np.abs(weight).T
                    limit = (lost + 2e-7 * weight.shape[1]) * size + 1e-30
                    self.assertLessEqual(worst(np.abs(y - x.values() @ weight.T), limit), 1)
            self.expect(self.values(name, self.PATH, self.x.proto(), "a"), weight, [1] * 40)

    def test_bad_requests_are_refused(self):
        good = dict(base=self.base, path=self.PATH, x=self.x.proto())
        flat = array(np.zeros((2, 5))).proto()
        ids = array(np.zeros(3), "I64").proto()
        table = [
            ("INVALID_ARGUMENT/INVALID_FIELD", dict(base=""), {}),
            ("NOT_FOUND/BASE_MODEL_NOT_FOUND", dict(base="nobody"), {}),
            ("NOT_FOUND/MODULE_NOT_TARGETED", dict(path="model.layers.9.self_attn.q_proj"), {}),
            ("INVALID_ARGUMENT/INVALID_FIELD", dict(path=""), {}),
            ("INVALID_ARGUMENT/INVALID_FIELD", dict(path="model.norm"), {}),
            ("INVALID_ARGUMENT/SHAPE_MISMATCH", dict(x=flat), {"field": "input"}),
            ("NOT_FOUND/ADAPTER_NOT_FOUND", dict(name="nobody"), {"adapter": "nobody"}),
            ("NOT_FOUND/MODULE_NOT_TARGETED",
             dict(path="model.layers.1.mlp.down_proj", name="a",
                  x=array(np.zeros((1, 128))).proto()), {"adapter": "a"}),
            ("INVALID_ARGUMENT/UNSUPPORTED_DTYPE", dict(x=ids, name="a"), {"field": "input"}),
            ("INVALID_ARGUMENT/INVALID_FIELD",
             dict(x=array(np.full(3, 10 ** 6), "I64").proto(), path="model.embed_tokens"),
             {"field": "input"}),
            ("INVALID_ARGUMENT/INVALID_FIELD", dict(segments=segments((39, []))),
             {"field": "segments"}),
            ("INVALID_ARGUMENT/INVALID_FIELD", dict(name="a", segments=segments((40, []))), {}),
        ]
        for status, changes, metadata in table:
            with self.subTest(changes=list(changes)):
                self.refused(status, self.send, forward_request(**{**good, **changes}), **metadata)
        nowhere = self.refused("NOT_FOUND/MODULE_NOT_TARGETED", self.send,
                               forward_request(**{**good, "path": "nowhere"}), module="nowhere")
        self.assertEqual(nowhere.message, "the base model has no module nowhere")
        expert = forward_request(**good)
        expert.module.expert = 0
        self.refused("INVALID_ARGUMENT/INVALID_FIELD", self.send, expert)
        integers = forward_request(**good, output_dtype=4)
        self.refused("INVALID_ARGUMENT/UNSUPPORTED_DTYPE", self.send, integers)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
