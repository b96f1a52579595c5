"""UpdateAdapterTensors through the real binary: what a training loop pushes while others serve."""
import signal
import sys
import threading
import unittest

import numpy as np

from adapters import Q0, Q1, SMALL, V0, delta_of, exact_adapter
from harness import PATIENCE, ServerTest, apply_request, until
from tensors import array, from_proto
from adapterd.v1 import adapter_creation_pb2 as creation
from adapterd.v1 import adapter_pb2, tensor_pb2

CREATED = adapter_pb2.ADAPTER_FORMAT_CREATED
BAD = "INVALID_ARGUMENT/INVALID_FIELD"
PUSHES = 500


def start(name="a", **fields):
    return creation.UpdateAdapterTensorsRequest(
        start=creation.UpdateTensorsStart(name=name, **fields))


def tensor(path, **factors):
    """lora_a, lora_b: Tensor messages."""
    return creation.UpdateAdapterTensorsRequest(
        tensor=creation.UpdatedTensors(path=path, **factors))


def whole(shape, seed):
    """Small whole numbers, whose arithmetic is exact in F32."""
    return array(np.random.default_rng(seed).integers(-4, 5, shape))


class TrainingTest(ServerTest):
    def setUp(self):
        self.root = self.folder()
        self.data = self.folder() / "data"
        self.truth = exact_adapter(self.root / "s", SMALL)
        self.serve(f"--data-dir={self.data}")
        self.loaded = self.client.load("a", "s", labels={"team": "x"}, pinned=True).adapter

    def serve(self, *flags):
        self.server = self.start(f"--adapter-root={self.root}", *flags)
        self.client = self.server.client

    def push(self, *messages, client=None):
        return (client or self.client).adapters.UpdateAdapterTensors(
            iter(messages), timeout=PATIENCE).adapter

    def output(self, path=Q0, name="a", client=None):
        x = array(np.arange(8.0).reshape(1, 8))
        reply = (client or self.client).apply(apply_request(name, path, x.proto()))
        return from_proto(reply.outputs[0].output).values()

    def factors(self, path, name="a"):
        reply = self.client.tensors(name, adapter_pb2.ModuleSelector(path=path))
        return from_proto(reply.lora_a), from_proto(reply.lora_b)

    def contents(self):
        return len(list((self.data / "store/content").iterdir()))


class PushTest(TrainingTest):
    def test_new_factors_take_over_and_the_others_stay(self):
        before = {path: self.factors(path) for path in SMALL}
        a, b = whole((2, 8), 1), whole((4, 2), 2)
        updated = self.push(start(), tensor(Q0, lora_a=a.proto()), tensor(V0, lora_b=b.readable()))
        self.assertNotEqual(updated.revision, self.loaded.revision)
        self.assertEqual((updated.format, updated.source), (CREATED, ""))
        self.assertEqual((dict(updated.labels), updated.pinned), ({"team": "x"}, True))
        self.assertEqual(updated.base_model, self.loaded.base_model)
        expected = {**before, Q0: (a, before[Q0][1]), V0: (before[V0][0], b)}
        for path in SMALL:
            for found, wanted in zip(self.factors(path), expected[path]):
                np.testing.assert_array_equal(found.raw, wanted.raw)
        scale = self.truth.modules[Q0].scale
        x = np.arange(8.0)
        np.testing.assert_array_equal(
            self.output()[0], scale * (x @ a.values().T) @ before[Q0][1].values().T)

    def test_the_revision_is_that_of_a_file_with_the_same_content(self):
        other = exact_adapter(self.root / "t", SMALL, seed=9)
        updated = self.push(start(), *(
            tensor(path, lora_a=pair.tensors["lora_a"].proto(),
                   lora_b=pair.tensors["lora_b"].proto())
            for path, pair in other.modules.items()))
        self.assertEqual(updated.revision, self.client.load("b", "t").adapter.revision)
        again = self.push(start(), tensor(Q0, lora_a=other.modules[Q0].tensors["lora_a"].proto()))
        self.assertEqual((again.revision, again.etag), (updated.revision, updated.etag))

    def test_an_etag_must_be_the_adapters(self):
        a = whole((2, 8), 1).proto()
        self.refused("ABORTED/ETAG_MISMATCH",
                     lambda: self.push(start(etag="stale"), tensor(Q0, lora_a=a)), adapter="a")
        first = self.push(start(etag=self.loaded.etag), tensor(Q0, lora_a=a))
        self.refused("ABORTED/ETAG_MISMATCH",
                     lambda: self.push(start(etag=self.loaded.etag),
                                       tensor(Q0, lora_a=whole((2, 8), 2).proto())))
        self.assertEqual(self.client.get("a").revision, first.revision)

    def test_pushes_of_different_modules_at_once_all_count(self):
        new = {path: whole((2, 8), seed) for seed, path in enumerate(SMALL)}
        threads = [threading.Thread(target=self.push, args=(
            start(), tensor(path, lora_a=a.proto()))) for path, a in new.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for path, a in new.items():
            np.testing.assert_array_equal(self.factors(path)[0].raw, a.raw)

    def test_it_survives_a_kill_and_old_contents_go(self):
        for seed in range(5):
            updated = self.push(start(), tensor(Q0, lora_a=whole((2, 8), seed).proto()))
        until(lambda: self.contents() == 1, "what was replaced to go")
        expected = self.output()
        self.server.process.send_signal(signal.SIGKILL)
        self.server.expected_exit = -signal.SIGKILL
        self.server.wait()
        self.serve(f"--data-dir={self.data}")
        np.testing.assert_array_equal(self.output(), expected)
        self.assertEqual(self.client.get("a").revision, updated.revision)

    def test_a_kept_revision_can_be_rolled_back_to(self):
        self.server.terminate()
        self.server.wait()
        self.serve(f"--data-dir={self.data}", "--keep-revisions=1")
        before = self.output()
        self.push(start(), tensor(Q0, lora_a=whole((2, 8), 1).proto()))
        self.client.rollback("a", self.loaded.revision)
        np.testing.assert_array_equal(self.output(), before)

    def test_on_any_error_nothing_changes(self):
        a, nan = whole((2, 8), 1).proto(), array(np.full((2, 8), np.nan)).proto()
        wide, half = whole((2, 9), 1).proto(), whole((2, 8), 1)
        half = array(half.values(), "F16").proto()
        integers = tensor_pb2.Tensor(shape=[2, 8], int64_values=range(16))
        good = tensor(Q1, lora_a=a)
        cases = [
            (BAD, "start", [good]), (BAD, "start", []), (BAD, "start", [start(), start()]),
            (BAD, "start.name", [start("a/b")]), (BAD, "tensor", [start()]),
            (BAD, "content", [start(), creation.UpdateAdapterTensorsRequest()]),
            (BAD, "tensor", [start(), good, tensor(Q0)]),
            (BAD, "tensor.path", [start(), good, good]),
            ("NOT_FOUND/ADAPTER_NOT_FOUND", None, [start("nobody"), good]),
            ("NOT_FOUND/MODULE_NOT_TARGETED", None, [start(), good, tensor("x", lora_a=a)]),
            ("INVALID_ARGUMENT/SHAPE_MISMATCH", "tensor.lora_a",
             [start(), good, tensor(Q0, lora_a=wide)]),
            ("INVALID_ARGUMENT/SHAPE_MISMATCH", "tensor.lora_b",
             [start(), good, tensor(Q0, lora_b=a)]),
            ("INVALID_ARGUMENT/UNSUPPORTED_DTYPE", "tensor.lora_a",
             [start(), good, tensor(Q0, lora_a=half)]),
            ("INVALID_ARGUMENT/UNSUPPORTED_DTYPE", "tensor.lora_a",
             [start(), good, tensor(Q0, lora_a=integers)]),
            ("INVALID_ARGUMENT/NON_FINITE_WEIGHTS", "tensor.lora_a",
             [start(), good, tensor(Q0, lora_a=nan)])]
        for status, field, messages in cases:
            with self.subTest(status=status, field=field):
                metadata = {} if field is None else {"field": field}
                self.refused(status, lambda: self.push(*messages), **metadata)
        self.client.update("a", enabled=False)
        self.refused("FAILED_PRECONDITION/ADAPTER_DISABLED", lambda: self.push(start(), good))
        adapter = self.client.update("a", enabled=True)
        self.assertEqual((adapter.revision, adapter.source), (self.loaded.revision, "s"))
        self.assertEqual(adapter.memory_bytes, self.loaded.memory_bytes)
        self.assertEqual(self.contents(), 0)

    def test_a_stream_that_breaks_changes_nothing(self):
        def messages():
            yield start()
            yield tensor(Q0, lora_a=whole((2, 8), 1).proto())
            begun.set()
            broken.wait(PATIENCE)
        begun, broken = threading.Event(), threading.Event()
        call = self.client.adapters.UpdateAdapterTensors.future(messages(), timeout=PATIENCE)
        begun.wait(PATIENCE)
        call.cancel()
        broken.set()
        until(lambda: self.client.get("a").in_flight == 0, "the call to let go")
        self.assertEqual(self.client.get("a").revision, self.loaded.revision)

    def test_what_a_folder_owns_is_left_to_it(self):
        watched = self.folder()
        exact_adapter(watched / "w", SMALL)
        client = self.start(f"--watch-adapters={watched}").client
        self.refused("ALREADY_EXISTS/ADAPTER_EXISTS", lambda: self.push(
            start("w"), tensor(Q0, lora_a=whole((2, 8), 1).proto()), client=client))


class LoopTest(TrainingTest):
    def test_every_reply_is_of_exactly_one_revision_and_memory_returns(self):
        b = self.factors(Q0)[1]
        steps = [whole((2, 8), seed) for seed in range(PUSHES)]
        x = np.arange(8.0)
        scale = self.truth.modules[Q0].scale
        answers = {self.loaded.revision: delta_of(self.truth, Q0, x)}
        wrong, ended, counts = [], threading.Event(), [0] * 4

        replies = [[] for _ in counts]

        def serve(worker):
            client = self.server.connect()
            request = apply_request("a", Q0, array(x.reshape(1, 8)).proto())
            while not ended.is_set():
                reply = client.apply(request)
                replies[worker].append((reply.adapters[0].revision,
                                        from_proto(reply.outputs[0].output).values()[0]))

        threads = [threading.Thread(target=serve, args=(i,)) for i in range(len(counts))]
        for thread in threads:
            thread.start()
        try:
            for a in steps:
                revision = self.push(start(), tensor(Q0, lora_a=a.proto())).revision
                answers[revision] = scale * (x @ a.values().T) @ b.values().T
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        seen = set()
        for revision, output in (reply for one in replies for reply in one):
            seen.add(revision)
            if not np.array_equal(output, answers[revision]):
                wrong.append(revision)
        self.assertEqual(wrong, [])
        self.assertGreater(len(seen), 10)
        until(lambda: self.server.adapter_bytes() == self.loaded.memory_bytes,
              "old revisions to be gone")
        until(lambda: self.contents() == 1, "old contents to be gone")
        self.assertEqual(list(self.client.get("a").draining_revisions), [])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + ["-v"] + sys.argv[1:])
