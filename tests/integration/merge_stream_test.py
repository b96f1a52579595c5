"""MergeStream: the bytes of Merge, for a weight that is sent in runs of rows."""
import queue
import unittest

import numpy as np

from adapters import write_adapter, write_files
from harness import PATIENCE, ServerTest, merge_request
from tensors import array
from adapterd.v1 import adapter_pb2, merge_service_pb2, tensor_pb2

Q0 = "model.layers.0.self_attn.q_proj"
OUT, IN = 301, 96


def start_message(weight, adapters=("a",), module=Q0, scale=1.0, **fields):
    return merge_service_pb2.MergeStreamRequest(start=merge_service_pb2.MergeStreamStart(
        module=adapter_pb2.ModuleSelector(path=module), shape=weight.shape,
        dtype=getattr(tensor_pb2, "DATA_TYPE_" + weight.dtype),
        adapters=[adapter_pb2.AdapterRef(name=name, weight=scale) for name in adapters], **fields))


def rows_message(weight, first, count):
    raw = np.ascontiguousarray(weight.raw[first:first + count])
    return merge_service_pb2.MergeStreamRequest(
        rows=merge_service_pb2.WeightRows(first_row=first, data=raw.tobytes()))


class MergeStreamTest(ServerTest):
    def setUp(self):
        self.root = self.folder()
        write_adapter(self.root / "a", {Q0: (IN, OUT, 5)})
        self.server = self.start(f"--adapter-root={self.root}")
        self.client = self.server.client
        self.client.load("a", "a")

    def stream(self, messages):
        return list(self.client.merges.MergeStream(iter(messages), timeout=PATIENCE))

    def merged(self, weight, runs, **fields):
        """The merged bytes, and the last message."""
        messages, first = [start_message(weight, **fields)], 0
        for count in runs:
            messages.append(rows_message(weight, first, count))
            first += count
        replies = self.stream(messages)
        self.assertEqual(len(replies), len(runs) + 1)
        self.assertEqual([r.rows.first_row for r in replies[:-1]],
                         [m.rows.first_row for m in messages[1:]])
        self.assertEqual([len(r.rows.data) for r in replies[:-1]],
                         [len(m.rows.data) for m in messages[1:]])
        self.assertFalse(replies[-1].HasField("rows"))
        return b"".join(r.rows.data for r in replies[:-1]), replies[-1]

    def test_it_gives_the_bytes_and_stats_of_merge(self):
        random = np.random.default_rng(3)
        for dtype in ("F32", "F16", "BF16"):
            for layout, shape in ((1, (OUT, IN)), (2, (IN, OUT))):
                weight = array(random.standard_normal(shape), dtype)
                whole = self.client.merge(merge_request("a", Q0, weight.proto(),
                                                        weight_layout=layout))
                cuts = np.sort(random.choice(np.arange(1, shape[0]), 7, replace=False))
                for runs in ([shape[0]], list(np.diff([0, *cuts, shape[0]])), [1] * shape[0]):
                    with self.subTest(dtype=dtype, layout=layout, runs=len(runs)):
                        data, last = self.merged(weight, [int(r) for r in runs],
                                                 weight_layout=layout)
                        self.assertEqual(data, whole.weight.data)
                        self.assertEqual(last.stats.zeroed_elements, whole.stats.zeroed_elements)
                        self.assertAlmostEqual(last.stats.relative_rounding_error,
                                               whole.stats.relative_rounding_error, places=6)
                        self.assertEqual(last.stats.max_abs_delta, whole.stats.max_abs_delta)
                        self.assertEqual(list(last.adapters), list(whole.adapters))

    def test_the_next_rows_wait_for_the_reply(self):
        weight = array(np.zeros((OUT, IN)))
        sent = queue.Queue()
        stream = self.client.merges.MergeStream(iter(sent.get, None), timeout=PATIENCE)
        sent.put(start_message(weight))
        for first in range(0, OUT, 100):  # one by one: each is answered before the next is sent
            sent.put(rows_message(weight, first, min(100, OUT - first)))
            self.assertEqual(next(stream).rows.first_row, first)
        sent.put(None)
        self.assertTrue(next(stream).HasField("stats"))
        self.assertRaises(StopIteration, next, stream)

    def dora(self, **load):
        random = np.random.default_rng(4)
        prefix = f"base_model.model.{Q0}"
        write_files(self.root / "d", {"peft_type": "LORA", "base_model_name_or_path": "tiny", "r": 2,
                                      "lora_alpha": 3, "use_dora": True,
                                      "target_modules": ["q_proj"]},
                    {f"{prefix}.lora_A.weight": array(random.standard_normal((2, IN))),
                     f"{prefix}.lora_B.weight": array(random.standard_normal((OUT, 2))),
                     f"{prefix}.lora_magnitude_vector": array(random.uniform(1, 2, OUT))})
        self.client.load("d", "d", **load)

    def test_dora_by_rows_is_that_of_merge(self):
        self.dora()
        weight = array(np.random.default_rng(5).standard_normal((OUT, IN)))
        whole = self.client.merge(merge_request("d", Q0, weight.proto()))
        data, _ = self.merged(weight, [100, 1, 200], adapters=["d"])
        self.assertEqual(data, whole.weight.data)

    def test_dora_by_columns_needs_the_base(self):
        self.dora()
        weight = array(np.zeros((IN, OUT)))
        self.refused("FAILED_PRECONDITION/BASE_REQUIRED", self.stream,
                     [start_message(weight, ["d"], weight_layout=2)], adapter="d", module=Q0)

    def test_what_nobody_targets_comes_back(self):
        weight = array(np.random.default_rng(6).standard_normal((3, 4, 5)), "BF16")
        data, last = self.merged(weight, [2, 1], module="other", skip_untargeted=True)
        self.assertEqual(data, weight.tobytes())
        self.assertEqual(list(last.adapters), [])

    def test_messages_out_of_order_are_refused(self):
        weight = array(np.zeros((OUT, IN)))
        start, rows = start_message(weight), rows_message(weight, 0, 7)
        short = merge_service_pb2.MergeStreamRequest(
            rows=merge_service_pb2.WeightRows(first_row=0, data=b"12345"))
        empty = merge_service_pb2.MergeStreamRequest(
            rows=merge_service_pb2.WeightRows(first_row=0))
        for messages, field in (([], "content"), ([rows], "content"),
                                ([merge_service_pb2.MergeStreamRequest()], "content"),
                                ([start, start], "start"), ([start, rows, rows], "rows.first_row"),
                                ([start, rows_message(weight, 1, 1)], "rows.first_row"),
                                ([start, rows], "rows"), ([start], "rows"),
                                ([start, short], "rows.data"), ([start, empty], "rows.data")):
            self.refused("INVALID_ARGUMENT/INVALID_FIELD", self.stream, messages, field=field)

    def test_a_start_that_does_not_fit_is_refused(self):
        weight = array(np.zeros((OUT, IN)))
        for status, message in (
                ("INVALID_ARGUMENT/SHAPE_MISMATCH", start_message(array(np.zeros((IN, OUT))))),
                ("INVALID_ARGUMENT/SHAPE_MISMATCH", start_message(array(np.zeros(())))),
                ("NOT_FOUND/MODULE_NOT_TARGETED", start_message(weight, module="other")),
                ("NOT_FOUND/ADAPTER_NOT_FOUND", start_message(weight, adapters=["nobody"])),
                ("INVALID_ARGUMENT/INVALID_FIELD", start_message(weight, adapters=[])),
                ("INVALID_ARGUMENT/UNSUPPORTED_DTYPE", start_message(array([[1]], "I32")))):
            self.refused(status, self.stream, [message])
        self.assertEqual(self.client.get("a").in_flight, 0)

    def test_an_overflow_is_refused_unless_allowed(self):
        weight = array(np.full((OUT, IN), 65504.0), "F16")
        messages = [start_message(weight, scale=100), rows_message(weight, 0, OUT)]
        self.refused("INVALID_ARGUMENT/NON_FINITE_RESULT", self.stream, messages,
                     adapter="a", module=Q0)
        _, last = self.merged(weight, [OUT], scale=100, allow_non_finite=True)
        self.assertGreater(last.stats.non_finite_elements, 0)


if __name__ == "__main__":
    unittest.main()
