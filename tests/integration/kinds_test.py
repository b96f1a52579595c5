"""Embeddings, convolutions, experts, biases, replaced weights: inputs of every form, and refusals."""
import sys
import unittest

import numpy as np

from cases_table import root_flags, source
from harness import ServerTest, apply_request, fixtures, merge_request
from peft_rules import PeftAdapter
from tensors import Array, array, from_proto
from tolerance import Projection, Term, projection_tolerance
from adapterd.v1 import adapter_pb2, merge_service_pb2, tensor_pb2

FIELD = "INVALID_ARGUMENT/INVALID_FIELD"
SHAPE = "INVALID_ARGUMENT/SHAPE_MISMATCH"
DTYPE = "INVALID_ARGUMENT/UNSUPPORTED_DTYPE"
UNSUPPORTED = "INVALID_ARGUMENT/UNSUPPORTED_ADAPTER"
NOT_TARGETED = "NOT_FOUND/MODULE_NOT_TARGETED"

EMBEDDING = "model.embed_tokens"
Q0 = "model.layers.0.self_attn.q_proj"
EXPERTS = "model.layers.0.mlp.experts.down_proj"


class KindsTest(ServerTest):
    def setUp(self):
        self.client = self.start(*root_flags()).client

    def load(self, name):
        self.client.load(name, source("peft/cases", name))
        return PeftAdapter(fixtures("peft/cases") / name)

    def output(self, request):
        return from_proto(self.client.apply(request).outputs[0].output)

    def near(self, y, term, base=0.0):
        """`y` [rows, out] is base + the term's delta."""
        p = Projection([term], base + np.zeros(y.shape), y.dtype)
        self.assertLessEqual((np.abs(y.values() - p.exact()) /
                              projection_tolerance(p, against_peft=False)).max(initial=0), 1)


class Embeddings(KindsTest):
    def setUp(self):
        super().setUp()
        self.name = "llama-embedding-head"
        self.pair = self.load(self.name).modules[EMBEDDING]
        _, self.vocabulary, self.wide = self.pair.sizes

    def request(self, ids, base=None):
        return apply_request(self.name, EMBEDDING, ids, base)

    def term(self, ids):
        return Term.of(self.pair, np.eye(self.vocabulary)[np.asarray(ids).ravel()])

    def test_ids_of_every_shape_and_integer_type_are_looked_up(self):
        last = self.vocabulary - 1
        for ids in ([0, last, 0, 5], [[1, 2, 3], [last, 0, 1]], [[[7]]], []):
            for dtype in ("I64", "I32"):
                tensor = array(np.array(ids), dtype)
                for message in (tensor.proto(), tensor.readable()):
                    with self.subTest(ids=ids, dtype=dtype):
                        y = self.output(self.request(message))
                        self.assertEqual((y.dtype, y.shape), ("F32", (*tensor.shape, self.wide)))
                        rows = Array(y.dtype, y.raw.reshape(-1, self.wide))
                        self.near(rows, self.term(np.array(ids, dtype=int)))

    def test_the_base_output_gives_the_dtype(self):
        ids = array([4, 4, 9], "I64")
        for dtype in ("F32", "F16", "BF16"):
            base = array(np.random.default_rng(2).standard_normal((3, self.wide)), dtype)
            y = self.output(self.request(ids.proto(), base.proto()))
            self.assertEqual(y.dtype, dtype)
            self.near(y, self.term(ids.values()), base.values())

    def test_a_weight_multiplies_the_delta(self):
        request = self.request(array([1, 2], "I64").proto())
        request.adapter.weight = -0.5
        self.near(self.output(request), Term.of(self.pair, np.eye(self.vocabulary)[[1, 2]], -0.5))

    def test_what_is_no_id_is_refused(self):
        refuse = lambda status, ids, base=None: self.refused(status, self.client.apply,
                                                             self.request(ids, base))
        for wrong in (-1, self.vocabulary, 1 << 40, -(1 << 63)):
            refuse(FIELD, array([0, wrong], "I64").proto())
        refuse(DTYPE, array([0.0, 1.0]).proto())
        refuse(SHAPE, tensor_pb2.Tensor(shape=[3], int64_values=[1, 2]))
        ids = array([0, 1], "I64").proto()
        refuse(SHAPE, ids, array(np.zeros((3, self.wide))).proto())
        refuse(SHAPE, ids, array(np.zeros((2, self.wide + 1))).proto())

    def test_ids_are_no_input_of_a_linear_layer(self):
        request = apply_request(self.name, Q0, array([0, 1], "I64").proto())
        self.refused(DTYPE, self.client.apply, request)


class Experts(KindsTest):
    def setUp(self):
        super().setUp()
        self.name = "mixtral-experts"
        self.pair = self.load(self.name).modules[EXPERTS]
        _, self.wide_in, self.wide_out = self.pair.sizes
        self.x = array(np.random.default_rng(3).standard_normal((4, self.wide_in)))

    def request(self, **selector):
        request = apply_request(self.name, "", self.x.proto())
        request.projections[0].module.CopyFrom(adapter_pb2.ModuleSelector(**selector))
        return request

    def test_an_expert_is_found_by_path_and_by_target(self):
        for expert in range(self.pair.experts):
            by_path = self.output(self.request(path=EXPERTS, expert=expert))
            self.near(by_path, Term.of(self.pair, self.x.values(), expert=expert))
            by_target = self.output(self.request(target="experts.down_proj", layer=0,
                                                 expert=expert))
            np.testing.assert_array_equal(by_target.raw, by_path.raw)

    def test_an_expert_must_be_named_and_be_there(self):
        for selector in ({"path": EXPERTS}, {"path": EXPERTS, "expert": -1},
                         {"path": EXPERTS, "expert": self.pair.experts},
                         {"path": EXPERTS, "expert": (1 << 31) - 1}):
            with self.subTest(selector):
                self.refused(FIELD, self.client.apply, self.request(**selector))

    def test_a_weight_of_another_shape_is_refused(self):
        for shape in ((self.wide_out, self.wide_in + 1), (self.wide_in, self.wide_out),
                      (self.pair.experts, self.wide_out, self.wide_in), (self.wide_out,)):
            request = merge_request(self.name, "", array(np.zeros(shape)).proto())
            request.module.CopyFrom(adapter_pb2.ModuleSelector(path=EXPERTS, expert=0))
            with self.subTest(shape):
                self.refused(SHAPE, self.client.merge, request)


class Convolutions(KindsTest):
    def setUp(self):
        super().setUp()
        self.modules = self.load("conv2d").modules

    def test_pixels_are_rows_of_a_pointwise_convolution(self):
        _, wide_in, wide_out = self.modules["point"].sizes
        for lead in ((), (1,), (2, 3, 5), (0,)):
            x = array(np.random.default_rng(4).standard_normal((*lead, wide_in)))
            y = self.output(apply_request("conv2d", "point", x.proto()))
            self.assertEqual(y.shape, (*lead, wide_out))
            self.near(Array("F32", y.raw.reshape(-1, wide_out)),
                      Term.of(self.modules["point"], x.values().reshape(-1, wide_in)))

    def test_a_kernel_that_looks_at_neighbours_cannot_be_applied_to_rows(self):
        x = array(np.zeros((2, self.modules["conv"].sizes[1])))
        failure = self.refused(UNSUPPORTED, self.client.apply,
                               apply_request("conv2d", "conv", x.proto()), module="conv")
        self.assertIn("convolution", failure.message)

    def test_a_weight_of_another_shape_is_refused(self):
        a, b = (self.modules["conv"].tensors[role].shape for role in ("lora_a", "lora_b"))
        right = (b[0], *a[1:])
        self.client.merge(merge_request("conv2d", "conv", array(np.zeros(right)).proto()))
        for shape in (right[:2], (*right[:2], right[2] * right[3]), (*right[:3], right[3] + 1),
                      (right[1], right[0], *right[2:]), (*right, 1)):
            with self.subTest(shape):
                self.refused(SHAPE, self.client.merge, merge_request(
                    "conv2d", "conv", array(np.zeros(shape)).proto()))


class Biases(KindsTest):
    def setUp(self):
        super().setUp()
        self.name = "qwen2-lora-bias"
        self.pair = self.load(self.name).modules[Q0]
        _, self.wide_in, self.wide_out = self.pair.sizes

    def merge(self, bias=None, **fields):
        request = merge_request(self.name, Q0, array(
            np.zeros((self.wide_out, self.wide_in))).proto(), **fields)
        if bias is not None:
            request.bias.CopyFrom(bias.proto())
        return request

    def test_the_bias_is_a_part_of_the_delta(self):
        x = array(np.zeros((2, self.wide_in)))
        request = apply_request(self.name, Q0, x.proto())
        request.adapter.weight = 3
        self.near(self.output(request), Term.of(self.pair, x.values(), 3))

    def test_without_a_bias_to_merge_into_it_starts_from_zero(self):
        reply = self.client.merge(self.merge())
        self.near(Array("F32", from_proto(reply.bias).raw[None]),
                  Term.of(self.pair, np.zeros((1, self.wide_in))))

    def test_a_bias_of_another_shape_or_type_is_refused(self):
        for status, bias in ((SHAPE, array(np.zeros(self.wide_out + 1))),
                             (SHAPE, array(np.zeros((1, self.wide_out)))),
                             (DTYPE, array(np.zeros(self.wide_out), "I32"))):
            self.refused(status, self.client.merge, self.merge(bias))


class Replacements(KindsTest):
    def test_a_weight_of_another_shape_is_refused(self):
        for name, path in (("llama-modules-to-save", "lm_head"),
                           ("llama-modules-to-save", "model.norm"),
                           ("llama-trainable-tokens", EMBEDDING)):
            saved = self.load(name).replacements[path].weight
            wrong = array(np.zeros([size + 1 for size in saved.shape]))
            with self.subTest(path):
                self.refused(SHAPE, self.client.merge, merge_request(name, path, wrong.proto()))

    def test_the_dtype_is_that_of_the_weight(self):
        saved = self.load("llama-modules-to-save").replacements["lm_head"].weight
        for dtype in ("F16", "BF16"):
            weight = array(np.ones(saved.shape), dtype)
            merged = from_proto(self.client.merge(merge_request(
                "llama-modules-to-save", "lm_head", weight.proto())).weight)
            self.assertEqual(merged.dtype, dtype)
            np.testing.assert_array_equal(merged.raw, array(saved.values(), dtype).raw)

    def test_a_table_with_more_tokens_keeps_its_other_rows(self):
        rows = self.load("llama-trainable-tokens").replacements[EMBEDDING]
        table = array(np.ones((max(rows.token_ids) + 1, rows.weight.shape[1])))
        exact = table.raw.copy()
        exact[rows.token_ids] = rows.weight.raw
        merged = self.client.merge(merge_request("llama-trainable-tokens", EMBEDDING,
                                                 table.proto()))
        np.testing.assert_array_equal(from_proto(merged.weight).raw, exact)
        short = array(table.raw[:-1])
        self.refused(SHAPE, self.client.merge,
                     merge_request("llama-trainable-tokens", EMBEDDING, short.proto()))

    def test_two_replacements_of_one_weight_contradict_each_other(self):
        saved = self.load("llama-modules-to-save").replacements["lm_head"].weight
        request = merge_request("llama-modules-to-save", "lm_head", saved.proto())
        request.adapters.add(name="llama-modules-to-save")
        self.refused(FIELD, self.client.merge, request)

    def test_another_module_is_not_targeted(self):
        self.load("llama-modules-to-save")
        request = merge_request("llama-modules-to-save", "model.embed_tokens",
                                array(np.zeros((2, 2))).proto(),
                                weight_layout=merge_service_pb2.WEIGHT_LAYOUT_OUT_IN)
        self.refused(NOT_TARGETED, self.client.merge, request)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
