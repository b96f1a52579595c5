"""Random requests, small and odd, beside plain float64 arithmetic: mixtures of adapters, segments,
weights, dtypes, layouts, and readable or raw tensors. What the fixtures do not mix, this does."""
import sys
import unittest
from math import prod

import numpy as np

from adapters import write_adapter
from harness import ServerTest
from tensors import Array, array, from_proto
from tolerance import Projection, Term, merge_tolerance, projection_tolerance
from adapterd.v1 import (adapter_pb2, merge_service_pb2, projection_service_pb2, tensor_pb2)

Q0, Q1, V0 = (f"model.layers.{m}_proj" for m in ("0.q", "1.q", "0.v"))
IN, OUT = 48, {Q0: 40, Q1: 40, V0: 17}
# Name -> (dtype, {path: rank}); ranks around those that kernels pad or split at.
ADAPTERS = {
    "a-f32": ("F32", {Q0: 8, Q1: 1, V0: 33}),
    "b-bf16": ("BF16", {Q0: 16, Q1: 3, V0: 32}),
    "c-f16": ("F16", {Q0: 5}),
    "d-bf16": ("BF16", {Q0: 64, V0: 1}),
}
FLOATS = ("F32", "F16", "BF16")
ROUNDS = 150


def shape_of(random, rows):
    """Some way to write so many rows as leading dimensions."""
    if rows == 1 and random.random() < 0.5:
        return ()
    if rows % 2 == 0 and random.random() < 0.5:
        return (2, rows // 2)
    return (rows,)


class ArithmeticTest(ServerTest):
    def setUp(self):
        root = self.folder()
        self.truths = {}
        for seed, (name, (dtype, ranks)) in enumerate(ADAPTERS.items()):
            modules = {path: (IN, OUT[path], rank) for path, rank in ranks.items()}
            self.truths[name] = write_adapter(
                root / name, modules, seed, dtype, lora_alpha=7 + seed,
                rank_pattern={path: rank for path, rank in ranks.items()})
        self.server = self.start(f"--adapter-root={root}",
                                 *(f"--load={name}={name}" for name in ADAPTERS))
        self.client = self.server.client

    def refs(self, random):
        """Up to three adapters with weights, also one of them twice."""
        names = random.choice(list(ADAPTERS), size=random.integers(0, 4))
        return [adapter_pb2.AdapterRef(name=name, weight=weight) for name, weight in
                zip(names, random.choice([1.0, -0.5, 0.0, 2.25], size=len(names)))]

    def term(self, ref, path, x):
        """The adapter's term, or None when it does not target the module."""
        truth = self.truths[ref.name]
        if path not in truth.modules:
            return None
        return Term.of(truth.modules[path], x, ref.weight)

    def message(self, tensor, readable):
        return tensor.readable() if readable else tensor.proto()

    def random_request(self, random):
        rows = int(random.choice([0, 1, 2, 3, 7, 16, 31, 64, 65, 130]))
        lead = shape_of(random, rows)
        assert prod(lead) == rows
        readable = random.random() < 0.5
        x = array(random.standard_normal((*lead, IN)), random.choice(FLOATS))
        request = projection_service_pb2.ApplyProjectionRequest(
            input=self.message(x, readable), skip_untargeted=True)
        cuts = np.sort(random.integers(0, rows + 1, size=random.integers(0, 4)))
        bounds = [0, *cuts.tolist(), rows]
        for begin, end in zip(bounds, bounds[1:]):
            request.segments.add(rows=end - begin, adapters=self.refs(random))
        bases = []
        for path in random.choice([Q0, Q1, V0], size=random.integers(1, 4)):
            projection = request.projections.add(module=adapter_pb2.ModuleSelector(path=path))
            bases.append(None)
            if random.random() < 0.6:
                bases[-1] = array(random.standard_normal((*lead, OUT[path])),
                                  random.choice(FLOATS))
                projection.base_output.CopyFrom(self.message(bases[-1], readable))
        if random.random() < 0.3:
            request.output_dtype = tensor_pb2.DataType.Value(
                "DATA_TYPE_" + random.choice(FLOATS))
        return request, x, bases, bounds, readable

    def output_dtype(self, request, x, base):
        if request.output_dtype:
            return tensor_pb2.DataType.Name(request.output_dtype).removeprefix("DATA_TYPE_")
        return x.dtype if base is None else base.dtype

    def test_random_mixtures_are_what_the_formula_gives(self):
        random = np.random.default_rng(20)
        for i in range(ROUNDS):
            request, x, bases, bounds, readable = self.random_request(random)
            with self.subTest(i):
                reply = self.client.apply(request)
                self.assertEqual(len(reply.outputs), len(bases))
                used = set()
                for projection, base, output in zip(request.projections, bases, reply.outputs):
                    used |= self.check(request, x, base, bounds, projection.module.path, output)
                    self.assertEqual(bool(output.output.data), False if readable else
                                     bool(prod(output.output.shape)))
                self.assertEqual({u.name: u.revision for u in reply.adapters},
                                 {name: self.truths[name].revision() for name in used})

    def check(self, request, x, base, bounds, path, output):
        """One output beside the formula; the names of the adapters that took part."""
        applied, used = 0, set()
        rows_x = x.values().reshape(-1, IN)
        dtype = self.output_dtype(request, x, base)
        known = base is not None or any(path in self.truths[ref.name].modules
                                        for s in request.segments for ref in s.adapters)
        y = from_proto(output.output)
        self.assertEqual(y.dtype, dtype)
        self.assertEqual(y.shape, (*x.shape[:-1], OUT[path] if known else 0))
        y = y.values().reshape(len(rows_x), y.shape[-1])
        for segment, begin, end in zip(request.segments, bounds, bounds[1:]):
            terms = [(ref, self.term(ref, path, rows_x[begin:end])) for ref in segment.adapters]
            terms = [(ref, term) for ref, term in terms if term is not None]
            applied += len(terms)
            used |= {ref.name for ref, _ in terms}
            if not known or begin == end:
                continue
            rows_base = np.zeros((end - begin, OUT[path]))
            if base is not None:
                rows_base = base.values().reshape(len(rows_x), OUT[path])[begin:end]
            p = Projection([term for _, term in terms], rows_base, dtype)
            off = np.abs(y[begin:end] - p.exact()) / projection_tolerance(p, against_peft=False)
            self.assertLessEqual(off.max(), 1, f"{path}, rows {begin} to {end}")
        self.assertEqual(output.applied, applied)
        return used

    def test_random_merges_are_one_rounding_of_the_formula(self):
        random = np.random.default_rng(21)
        for i in range(60):
            path = random.choice([Q0, Q1, V0])
            refs = [r for r in self.refs(random) if path in self.truths[r.name].modules]
            if not refs:
                continue
            weight = array(random.standard_normal((OUT[path], IN)), random.choice(FLOATS))
            in_out, readable = random.random(2) < 0.5
            sent = Array(weight.dtype, weight.raw.T) if in_out else weight
            with self.subTest(i):
                reply = self.client.merge(merge_service_pb2.MergeRequest(
                    weight=self.message(sent, readable), adapters=refs,
                    module=adapter_pb2.ModuleSelector(path=path),
                    weight_layout=(merge_service_pb2.WEIGHT_LAYOUT_IN_OUT if in_out
                                   else merge_service_pb2.WEIGHT_LAYOUT_OUT_IN)))
                merged = from_proto(reply.weight)
                self.assertEqual((merged.dtype, merged.shape), (sent.dtype, sent.shape))
                values = merged.values().T if in_out else merged.values()
                self.check_merge(refs, path, weight, values, reply.stats)

    def check_merge(self, refs, path, weight, merged, stats):
        terms = [self.term(ref, path, None) for ref in refs]
        delta = sum(term.factor * term.b @ term.a for term in terms)
        exact = weight.values() + delta
        limit = merge_tolerance(terms, weight.values(), exact, weight.dtype)
        self.assertLessEqual((np.abs(merged - exact) / limit).max(), 1)
        self.assertAlmostEqual(stats.max_abs_delta, np.abs(delta).max(),
                               delta=limit.max() + 1e-5 * np.abs(delta).max())
        self.assertLessEqual(stats.max_abs_rounding_error, limit.max())
        self.assertEqual(stats.non_finite_elements, 0)

    def test_a_delta_of_zero_changes_no_bit(self):
        for dtype in FLOATS:
            values = np.zeros((OUT[Q0], IN))
            values[0, :4] = [-0.0, 1e-40, 6e-8, -1e-45]
            weight = array(values, dtype)
            with self.subTest(dtype):
                reply = self.client.merge(merge_service_pb2.MergeRequest(
                    weight=weight.proto(), module=adapter_pb2.ModuleSelector(path=Q0),
                    adapters=[adapter_pb2.AdapterRef(name="a-f32", weight=0)]))
                self.assertEqual(reply.weight.data, weight.tobytes())
                self.assertEqual(reply.stats.zeroed_elements, 0)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
