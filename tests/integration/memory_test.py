"""What happens at the memory budget: who goes, who stays, how they come back, how it changes."""
import itertools
import shutil
import signal
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import grpc
import numpy as np

from adapters import Q0, delta_of, exact_adapter
from harness import FULL, Server, ServerTest, failure_of, merge_request, until
from record_model import CONFIG, WEIGHTS, upload
from tensors import array, from_proto
from adapterd.v1 import adapter_pb2, projection_service_pb2

READY = adapter_pb2.ADAPTER_STATE_READY
EVICTED = adapter_pb2.ADAPTER_STATE_EVICTED
FAILED = adapter_pb2.ADAPTER_STATE_FAILED
EXCEEDED = "RESOURCE_EXHAUSTED/MEMORY_BUDGET_EXCEEDED"

WIDE = {Q0: (64, 64, 16)}  # all contents here take as much memory as each other
X = np.arange(64.0).reshape(1, 64) % 7
PROMPT = 5  # seconds for a refusal, on a busy machine
ROUNDS = 60


def request_for(*names):
    """The sum of these adapters' deltas of X."""
    request = projection_service_pb2.ApplyProjectionRequest(input=array(X).proto())
    request.segments.add().adapters.extend(adapter_pb2.AdapterRef(name=name) for name in names)
    request.projections.add(module=adapter_pb2.ModuleSelector(path=Q0))
    return request


def numbers_of(reply):
    return from_proto(reply.outputs[0].output).values()


class MemoryTest(ServerTest):
    @classmethod
    def setUpClass(cls):
        """How many bytes an adapter takes."""
        with tempfile.TemporaryDirectory() as root:
            exact_adapter(Path(root) / "s0", WIDE)
            server = Server(f"--adapter-root={root}")
            server.client.load("a", "s0")
            server.client.apply(request_for("a"))
            cls.one = server.client.get("a").memory_bytes
            server.stop()

    def setUp(self):
        self.root = self.folder()
        self.truths = [exact_adapter(self.root / f"s{i}", WIDE, seed=i) for i in range(6)]
        self.answers = [delta_of(truth, Q0, X) for truth in self.truths]

    def room_for(self, adapters):
        """A budget for so many adapters, and a bit that is no use."""
        return adapters * self.one + self.one // 2

    def serve(self, adapters, *flags):
        self.server = self.start(f"--adapter-root={self.root}",
                                 f"--memory-budget={self.room_for(adapters)}", *flags)
        self.client = self.server.client

    def states(self):
        return {adapter.name: adapter.state for adapter in self.client.list().adapters}

    def serves(self, name, i):
        """Checks that `name` serves the content of s`i`."""
        reply = self.client.apply(request_for(name))
        np.testing.assert_array_equal(numbers_of(reply), self.answers[i])
        self.assertEqual(reply.adapters[0].revision, self.truths[i].revision())

    def in_memory(self, adapters):
        self.assertEqual(self.client.list().summary.memory_bytes, adapters * self.one)
        self.assertEqual(self.server.adapter_bytes(), adapters * self.one)


class EvictionTest(MemoryTest):
    def test_the_longest_unused_goes_first_and_comes_back_on_use(self):
        self.serve(3)
        for i in range(3):
            self.client.load(f"a{i}", f"s{i}")
        self.serves("a0", 0)
        check = self.client.validate("a3", "s3")
        self.assertEqual((check.fits, list(check.would_evict)), (True, ["a1"]))
        self.assertEqual(self.states(), {"a0": READY, "a1": READY, "a2": READY})
        self.assertEqual(list(self.client.load("a3", "s3").evicted), ["a1"])
        self.assertEqual(self.states(), {"a0": READY, "a1": EVICTED, "a2": READY, "a3": READY})
        listed = self.client.list(state=EVICTED)
        self.assertEqual([(a.name, a.memory_bytes) for a in listed.adapters], [("a1", 0)])
        self.assertEqual((listed.summary.adapter_count, listed.summary.resident_count), (4, 3))
        self.in_memory(3)
        self.serves("a1", 1)
        self.assertEqual(self.states(), {"a0": READY, "a1": READY, "a2": EVICTED, "a3": READY})
        self.in_memory(3)
        self.assertEqual(self.server.metric("adapterd_evictions_total"), 2)

    def test_an_evicted_adapter_still_tells_its_modules(self):
        self.serve(1)
        self.client.load("a", "s0")
        ready = self.client.get("a", view=FULL)
        self.assertEqual([module.path for module in ready.modules], [Q0])
        self.client.load("b", "s1")
        found = self.client.get("a", view=FULL)
        self.assertEqual((found.state, found.memory_bytes), (EVICTED, 0))
        self.assertEqual(list(found.modules), list(ready.modules))
        self.assertEqual(list(found.warnings), list(ready.warnings))
        chosen = self.client.get("a", module=adapter_pb2.ModuleSelector(target="q_proj"))
        self.assertEqual(list(chosen.modules), list(ready.modules))
        self.refused("NOT_FOUND/MODULE_NOT_TARGETED", lambda: self.client.get(
            "a", module=adapter_pb2.ModuleSelector(target="up_proj")), adapter="a")
        self.assertEqual(list(self.client.get("a").modules), [])
        self.assertEqual(self.states(), {"a": EVICTED, "b": READY})  # told from the source alone
        self.in_memory(1)

    def test_a_pinned_adapter_is_never_evicted(self):
        self.serve(3)
        for i in range(3):
            self.client.load(f"a{i}", f"s{i}", pinned=True)
        check = self.client.validate("b", "s3")
        self.assertEqual((check.valid, check.fits, list(check.would_evict)), (True, False, []))
        for source in ("s3", "s4"):
            self.refused(EXCEEDED, self.client.load, "b", source, adapter="b",
                         needed_bytes=self.one, used_bytes=3 * self.one,
                         budget_bytes=self.room_for(3))
        self.assertEqual(self.states(), {f"a{i}": READY for i in range(3)})
        self.client.update("a1", pinned=False)
        self.assertEqual(list(self.client.load("b", "s3").evicted), ["a1"])
        self.client.update("b", pinned=True)
        failure = self.refused(EXCEEDED, self.client.apply, request_for("a1"))
        self.assertEqual(self.states()["a1"], EVICTED, failure)  # and not FAILED: it may pass
        self.client.unload("a0", force=True)
        self.serves("a1", 1)

    def test_an_upload_that_lives_in_memory_alone_is_never_evicted(self):
        self.serve(3)
        files = {name: (self.root / "s0" / name).read_bytes() for name in (CONFIG, WEIGHTS)}
        upload(self.client, "u", files)
        for i in range(1, 6):
            self.client.load(f"a{i}", f"s{i}")
        self.assertEqual(self.states(), {"u": READY, "a1": EVICTED, "a2": EVICTED, "a3": EVICTED,
                                         "a4": READY, "a5": READY})
        self.serves("u", 0)
        for i in (1, 2):
            upload(self.client, f"u{i}", {name: (self.root / f"s{i}" / name).read_bytes()
                                          for name in (CONFIG, WEIGHTS)})
        self.refused(EXCEEDED, self.client.apply, request_for("a3"))
        for i, name in enumerate(("u", "u1", "u2")):
            self.serves(name, i)

    def test_with_a_data_folder_an_upload_is_evicted_and_comes_back(self):
        self.serve(1, f"--data-dir={self.folder() / 'data'}")
        files = {name: (self.root / "s0" / name).read_bytes() for name in (CONFIG, WEIGHTS)}
        upload(self.client, "u", files)
        self.assertEqual(list(self.client.load("a", "s1").evicted), ["u"])
        self.serves("u", 0)
        self.assertEqual(self.states(), {"a": EVICTED, "u": READY})

    def test_a_kept_revision_goes_without_its_adapter(self):
        self.serve(2, "--keep-revisions=1")
        self.client.load("a", "s0")
        self.client.load("a", "s1", replace=True)
        check = self.client.validate("b", "s2")
        self.assertEqual((check.fits, list(check.would_evict)), (True, []))
        self.assertEqual(list(self.client.load("b", "s2").evicted), [])
        self.assertEqual(self.states(), {"a": READY, "b": READY})
        self.assertEqual(list(self.client.get("a").kept_revisions), [self.truths[0].revision()])
        self.in_memory(2)
        request = request_for("a")
        request.segments[0].adapters[0].revision = self.truths[0].revision()
        np.testing.assert_array_equal(numbers_of(self.client.apply(request)), self.answers[0])

    def test_of_equal_contents_memory_holds_one(self):
        self.serve(2)
        for name in ("a", "b", "c"):
            self.client.load(name, "s0")
        self.in_memory(1)
        self.client.load("d", "s1")
        evicted = self.client.load("e", "s2").evicted
        self.assertEqual(sorted(evicted), ["a", "b", "c"])
        self.serves("b", 0)
        self.in_memory(2)


class ContentionTest(MemoryTest):
    def run_all(self, calls):
        """Runs each call on its own connection and thread, ROUNDS times; failures fail the test."""
        errors = []

        def run(call):
            try:
                client = self.server.connect()
                for _ in range(ROUNDS):
                    call(client)
            except Exception as error:  # must not be lost with its thread
                errors.append(error)

        threads = [threading.Thread(target=run, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def test_requests_that_each_need_most_of_the_budget_do_not_block_each_other(self):
        self.serve(3)
        for i in range(5):
            self.client.load(f"a{i}", f"s{i}")
        answered = []

        def use(*numbers):
            request = request_for(*(f"a{i}" for i in numbers))
            expected = sum(self.answers[i] for i in numbers)

            def call(client):
                begin = time.monotonic()
                try:
                    reply = client.apply(request)
                except grpc.RpcError as error:
                    failure = failure_of(error)
                    self.assertEqual(failure.status, EXCEEDED)
                    self.assertLess(time.monotonic() - begin, PROMPT)
                    self.assertLessEqual({"needed_bytes", "used_bytes", "budget_bytes"},
                                         set(failure.metadata))
                    return
                np.testing.assert_array_equal(numbers_of(reply), expected)
                answered.append(numbers)
            return call

        pairs = [(0, 1), (2, 3), (3, 4), (1, 4)]
        self.run_all([use(*pair) for pair in pairs])
        self.assertEqual(set(answered), set(pairs))
        self.assertGreater(self.server.metric("adapterd_evictions_total"), ROUNDS)
        self.assertLessEqual(self.client.list().summary.memory_bytes, self.room_for(3))
        print(f"{len(answered)} of {len(pairs) * ROUNDS} requests answered, the others refused")

    def test_what_cannot_fit_together_is_refused_at_once(self):
        self.serve(3)
        for i in range(4):
            self.client.load(f"a{i}", f"s{i}")
        self.refused(EXCEEDED, self.client.apply, request_for("a0", "a1", "a2", "a3"),
                     needed_bytes=4 * self.one, budget_bytes=self.room_for(3), used_bytes=None)
        for i in range(4):
            self.serves(f"a{i}", i)

    def test_a_replace_under_use_serves_one_revision_or_the_other(self):
        self.serve(6)
        self.client.load("a", "s0")
        right = {truth.revision(): answer for truth, answer in zip(self.truths, self.answers)}
        stop, seen = threading.Event(), set()

        def use(client):
            for _ in itertools.takewhile(lambda _: not stop.is_set(), itertools.count()):
                reply = client.apply(request_for("a"))
                revision = reply.adapters[0].revision
                np.testing.assert_array_equal(numbers_of(reply), right[revision])
                seen.add(revision)

        replaced = itertools.count(1)

        def swap(client):
            i = next(replaced)
            before = self.truths[(i - 1) % 3].revision()
            reply = client.load("a", f"s{i % 3}", replace=True)
            self.assertEqual(reply.replaced_revision, before)
            if i == ROUNDS:
                stop.set()

        try:
            self.run_all([swap] + [use] * 4)
        finally:
            stop.set()
        self.assertEqual(len(seen), 3)
        until(lambda: not self.client.get("a").draining_revisions, "replaced revisions to go")
        self.in_memory(1)


class ChangedSourceTest(MemoryTest):
    def remove(self):
        shutil.rmtree(self.root / "s0")

    def truncate(self):
        weights = self.root / "s0" / WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-4])

    def rescale(self):
        exact_adapter(self.root / "s0", WIDE, seed=0, use_rslora=True)

    def retrain(self):
        exact_adapter(self.root / "s0", WIDE, seed=5)

    def check_modules_are_not_told(self):
        """Of other content: whoever looks at the adapter is told why."""
        found = self.client.get("a", view=FULL)
        self.assertEqual((found.state, list(found.modules)), (EVICTED, []))
        self.assertRegex(found.warnings[-1], "its modules are not known now: .+")
        self.refused("FAILED_PRECONDITION/ADAPTER_FAILED", lambda: self.client.get(
            "a", module=adapter_pb2.ModuleSelector(path=Q0)), adapter="a")

    def test_other_content_than_before_never_serves(self):
        weight = array(np.ones((64, 64))).proto()
        for change, reason in ((self.remove, "SOURCE_NOT_FOUND"),
                               (self.truncate, "MALFORMED_TENSOR_FILE"),
                               (self.rescale, "SOURCE_CHANGED"), (self.retrain, "SOURCE_CHANGED")):
            with self.subTest(change.__name__):
                self.serve(1)
                first = self.client.load("a", "s0").adapter
                self.client.load("b", "s1")
                change()
                self.assertEqual(self.states(), {"a": EVICTED, "b": READY})
                self.check_modules_are_not_told()
                for call, request in ((self.client.apply, request_for("a")),
                                      (self.client.merge, merge_request("a", Q0, weight)),
                                      (self.client.apply, request_for("b", "a"))):
                    self.refused("FAILED_PRECONDITION/ADAPTER_FAILED", call, request, adapter="a")
                found = self.client.get("a")
                self.assertEqual((found.state, found.error.reason, found.revision),
                                 (FAILED, reason, first.revision))
                self.serves("b", 1)
                exact_adapter(self.root / "s0", WIDE, seed=2)
                self.refused("FAILED_PRECONDITION/ADAPTER_FAILED", self.client.apply,
                             request_for("a"))
                reply = self.client.load("a", "s0", replace=True)
                self.assertEqual((reply.adapter.state, reply.replaced_revision),
                                 (READY, first.revision))
                self.serves("a", 2)
                exact_adapter(self.root / "s0", WIDE, seed=0)


class ReloadTest(MemoryTest):
    """SIGHUP: the budget of --config takes effect, and nothing that is wrong does."""

    def setUp(self):
        super().setUp()
        self.config = self.folder() / "adapterd.conf"
        self.write(f"memory-budget = {self.room_for(3)}\n")
        self.server = self.start(f"--adapter-root={self.root}", f"--config={self.config}")
        self.client = self.server.client
        for i in range(3):
            self.client.load(f"a{i}", f"s{i}")

    def write(self, text):
        self.config.write_text(text)

    def reload(self, outcome):
        """The log line that says how it went."""
        before = self.server.stderr().count("reload")
        self.server.process.send_signal(signal.SIGHUP)
        until(lambda: self.server.stderr().count("reload") > before, "the reload")
        line = next(l for l in reversed(self.server.stderr().splitlines()) if "reload" in l)
        self.assertIn(outcome, line)
        return line

    def budget(self):
        metric = self.server.metrics()["adapterd_memory_budget_bytes", frozenset()]
        self.assertEqual(self.client.list().summary.memory_budget_bytes, metric)
        self.assertEqual(self.client.info().memory_budget_bytes, metric)
        return metric

    def test_a_lower_budget_evicts_and_a_higher_one_lets_more_in(self):
        self.write(f"memory-budget = {self.room_for(2)}\n")
        self.reload(f"reloaded memory_budget_bytes={self.room_for(2)}")
        self.assertEqual(self.budget(), self.room_for(2))
        self.assertEqual(self.states(), {"a0": EVICTED, "a1": READY, "a2": READY})
        self.in_memory(2)
        self.write(f"memory-budget = {self.room_for(5)}\n")
        self.reload("reloaded")
        self.serves("a0", 0)
        for i in (3, 4):
            self.assertEqual(list(self.client.load(f"a{i}", f"s{i}").evicted), [])
        self.in_memory(5)

    def test_pinned_adapters_stay_also_above_a_lower_budget(self):
        for i in range(3):
            self.client.update(f"a{i}", pinned=True)
        self.write(f"memory-budget = {self.room_for(1)}\n")
        self.reload("reloaded")
        self.in_memory(3)
        self.refused(EXCEEDED, self.client.load, "b", "s3", used_bytes=3 * self.one,
                     budget_bytes=self.room_for(1))
        for i in range(3):
            self.serves(f"a{i}", i)

    def test_a_file_that_is_wrong_changes_nothing(self):
        for text, told in (("memory-budget = banana\n", "banana"),
                           ("memory-budget = 0\n", "memory-budget"),
                           ("memory = 1\n", "memory"),
                           (f"memory-budget = {self.one}\nthreads = many\n", "many"),
                           (None, "adapterd.conf")):
            with self.subTest(text):
                if text is None:
                    self.config.unlink()
                else:
                    self.write(text)
                self.assertIn(told, self.reload("reload_failed"))
                self.assertEqual(self.budget(), self.room_for(3))
                self.assertEqual(set(self.states().values()), {READY})


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
