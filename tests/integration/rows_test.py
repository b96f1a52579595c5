"""Rows of one request with adapters of their own, against PEFT's numbers and an oracle."""
import sys
import unittest

import numpy as np

from adapters import write_adapter
from harness import ServerTest, fixtures
from peft_rules import PeftAdapter
from tensors import array, from_proto, read_safetensors
from tolerance import Term
from adapterd.v1 import adapter_pb2, projection_service_pb2

# PEFT's own numbers are F32 sums, too: twice our own bound lies between the two.
BOTH = 2

PATH = "model.layers.0.self_attn.q_proj"
WIDE = {PATH: (48, 80, 4)}
SEGMENTS = 1024
ADAPTERS = 16


def ref(name, weight=1.0):
    return adapter_pb2.AdapterRef(name=name, weight=weight)


def request_of(path, x, segments, base=None):
    """segments: [(rows, [(name, weight)])]"""
    request = projection_service_pb2.ApplyProjectionRequest(input=array(x).proto())
    for rows, uses in segments:
        request.segments.add(rows=rows).adapters.extend(ref(*use) for use in uses)
    request.projections.add(module=adapter_pb2.ModuleSelector(path=path),
                            base_output=None if base is None else array(base).proto())
    return request


class SeveralActiveTest(ServerTest):
    def test_mixed_rows_of_one_request_are_those_of_peft(self):
        folder = fixtures("peft/compose")
        client = self.start(f"--adapter-root={folder}").client
        truths = {name: PeftAdapter(folder / name) for name in "abd"}
        for name in truths:
            client.load(name, name)
        expected = read_safetensors(folder / "several_active.safetensors")
        paths = sorted({name.split("|")[0] for name in expected})
        self.assertEqual(len(paths), 4)
        # [a], none, [b], [d] by row, then four rows of two adapters, then the same with weights.
        segments = [(1, [("a",)]), (1, []), (1, [("b",)]), (1, [("d",)]), (4, [("a",), ("d",)]),
                    (4, [("d",), ("a", 0.25)])]
        for path in paths:
            with self.subTest(path):
                numbers = {what: expected[f"{path}|{what}"].values()
                           for what in ("x", "y_base", "y_rows_a_base_b_d", "y_a_plus_d",
                                        "y_quarter_a_plus_d")}
                x, base = np.tile(numbers["x"], (3, 1)), np.tile(numbers["y_base"], (3, 1))
                reply = client.apply(request_of(path, x, segments, base))
                found = from_proto(reply.outputs[0].output).values()
                wanted = np.concatenate([numbers["y_rows_a_base_b_d"], numbers["y_a_plus_d"],
                                         numbers["y_quarter_a_plus_d"]])
                error = self.error(path, x, base, segments, truths)
                self.assertTrue(np.all(np.abs(found - wanted) <= BOTH * error),
                                np.max(np.abs(found - wanted) / error))
                np.testing.assert_array_equal(found[1], base[1])

    @staticmethod
    def error(path, x, base, segments, truths):
        """What sums in F32 may be off by."""
        error = np.zeros(base.shape)
        row = 0
        for rows, uses in segments:
            part = slice(row, row + rows)
            for name, *weight in uses:
                term = Term.of(truths[name].modules[path], x[part], *weight)
                error[part] += term.sums_error() + 2.0 ** -22 * np.abs(term.delta())
            row += rows
        return error + 2.0 ** -22 * np.abs(base)


class ManySegmentsTest(ServerTest):
    def setUp(self):
        root = self.folder()
        self.truths = {f"a{i}": write_adapter(root / f"s{i}", WIDE, seed=i)
                       for i in range(ADAPTERS)}
        self.client = self.start(f"--adapter-root={root}").client
        for i, name in enumerate(self.truths):
            self.client.load(name, f"s{i}")

    def check(self, segments):
        rows = sum(count for count, _ in segments)
        x = np.float32(np.random.default_rng(0).standard_normal((rows, 48)))
        found = from_proto(
            self.client.apply(request_of(PATH, x, segments)).outputs[0].output).values()
        row = 0
        for count, uses in segments:
            part = slice(row, row + count)
            expected, error = np.zeros((count, 80)), np.zeros((count, 80))
            for name, weight in uses:
                term = Term.of(self.truths[name].modules[PATH], np.float64(x[part]), weight)
                expected += term.delta()
                error += (1 + len(uses)) * term.sums_error()
            self.assertTrue(np.all(np.abs(found[part] - expected) <= error), (row, uses))
            row += count

    def test_each_of_1024_segments_has_its_own_weighted_adapters(self):
        random = np.random.default_rng(1)
        segments = []
        for i in range(SEGMENTS):
            names = random.permutation(ADAPTERS)[:i % (ADAPTERS + 1)]
            segments.append((1 + i % 3, [(f"a{name}", float(np.float32(random.normal())))
                                         for name in names]))
        self.check(segments)

    def test_neighbours_with_equal_lists_and_with_equal_adapters_alone(self):
        same, other = [("a1", 0.5), ("a2", -2.0)], [("a1", 0.25), ("a2", -2.0)]
        self.check([(1, same)] * 40 + [(2, other)] * 30 + [(0, same)] + [(1, [])] * 20 +
                   [(3, same)] * 25 + [(1, same[:1])] * 9)

    def test_one_more_than_the_limits_is_refused(self):
        x = np.ones((SEGMENTS + 1, 48))
        self.refused("INVALID_ARGUMENT/INVALID_FIELD", lambda: self.client.apply(
            request_of(PATH, x, [(1, [("a0",)])] * (SEGMENTS + 1))), field="segments")
        self.refused("INVALID_ARGUMENT/INVALID_FIELD", lambda: self.client.apply(
            request_of(PATH, x[:1], [(1, [("a0",)] * (ADAPTERS + 1))])),
            field="segments[0].adapters")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + ["-v"] + sys.argv[1:])
