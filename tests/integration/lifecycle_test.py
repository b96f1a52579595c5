"""An adapter from load to unload, with many clients at once: one read for equal loads, atomic
replaces, memory that is really given back, and one revision for one content."""
import shutil
import sys
import threading
import unittest

import grpc
import numpy as np

from adapters import (HEAVY, Q0, SMALL, delta_of, exact_adapter, heavy_request, write_adapter,
                      write_files)
from harness import ServerTest, apply_request, failure_of, fixtures, until
from peft_rules import PeftAdapter
from tensors import Array, array, from_proto, read_safetensors
from adapterd.v1 import adapter_pb2, adapter_service_pb2

EXISTS = "ALREADY_EXISTS/ADAPTER_EXISTS"
NOT_FOUND = "NOT_FOUND/ADAPTER_NOT_FOUND"
DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED

SMALL_WORK = 0.01  # seconds of a worker; a hundred times that is what a held request waits for


class LifecycleTest(ServerTest):
    def setUp(self):
        self.root = self.folder()

    def serve(self, *flags):
        self.server = self.start(f"--adapter-root={self.root}", *flags)
        self.client = self.server.client

    def everybody(self, calls):
        """Runs each call on a connection of its own, all at the same time; results in order, an
        RPC's failure as a Failure."""
        results = [None] * len(calls)
        barrier = threading.Barrier(len(calls))

        def run(i, client):
            barrier.wait()
            try:
                results[i] = calls[i](client)
            except grpc.RpcError as error:
                results[i] = failure_of(error)

        threads = [threading.Thread(target=run, args=(i, self.server.connect()))
                   for i in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def loads(self, result):
        return self.server.metric("adapterd_loads_total", result=result)


class LoadTest(LifecycleTest):
    def test_64_clients_that_load_the_same_adapter_cause_one_load(self):
        truth = write_adapter(self.root / "a", HEAVY)
        self.serve()
        replies = self.everybody([lambda c: c.load("a", "a", labels={"k": "v"})] * 64)
        for reply in replies:
            self.assertEqual(reply.adapter.revision, truth.revision())
        self.assertEqual(self.loads("loaded"), 1)
        self.assertEqual(self.client.list().total_size, 1)
        self.assertEqual(self.server.adapter_bytes(), self.client.get("a").memory_bytes)

    def test_of_two_contents_for_one_name_at_once_exactly_one_wins(self):
        revisions = [write_adapter(self.root / name, seed=i).revision()
                     for i, name in enumerate("ab")]
        self.serve()
        calls = [lambda c: c.load("x", "a"), lambda c: c.load("x", "b")] * 16
        replies = self.everybody(calls)
        winner = revisions.index(self.client.get("x").revision)
        for i, reply in enumerate(replies):
            if i % 2 == winner:
                self.assertEqual(reply.adapter.revision, revisions[winner])
            else:
                self.assertEqual(reply.status, EXISTS)
        self.assertEqual(self.loads("loaded"), 1)

    def test_other_content_or_options_are_refused_and_equal_content_is_nothing_new(self):
        truth = write_adapter(self.root / "a")
        write_adapter(self.root / "other", seed=1)
        write_adapter(self.root / "scaled", lora_alpha=4)
        tensors = read_safetensors(self.root / "a/adapter_model.safetensors")
        respelled = {f"_orig_mod.{name}": tensors[name] for name in sorted(tensors, reverse=True)}
        write_files(self.root / "same", (self.root / "a/adapter_config.json").read_text(),
                    respelled)
        self.serve()
        first = self.client.load("a", "a", labels={"team": "x"}).adapter
        self.assertEqual(first.revision, truth.revision())
        for source, options in (("other", {"labels": {"team": "x"}}),
                                ("scaled", {"labels": {"team": "x"}}),
                                ("a", {}), ("a", {"labels": {"team": "x"}, "pinned": True})):
            with self.subTest(source=source, options=options):
                self.refused(EXISTS, lambda: self.client.load("a", source, **options), adapter="a")
        for source in ("a", "same"):
            reply = self.client.load("a", source, labels={"team": "x"})
            self.assertTrue(reply.already_loaded)
            self.assertEqual(reply.replaced_revision, "")
            self.assertEqual(reply.adapter, first)
        self.assertEqual((self.loads("loaded"), self.loads("unchanged")), (1, 2))
        self.assertEqual(self.loads("ADAPTER_EXISTS"), 4)

    def test_a_replace_swaps_content_and_memory_and_an_equal_one_nothing(self):
        old = exact_adapter(self.root / "old", SMALL, seed=1)
        new = exact_adapter(self.root / "new", {Q0: (8, 6, 4)}, seed=2)
        self.serve()
        self.client.load("a", "old")
        reply = self.client.load("a", "new", replace=True)
        self.assertEqual(reply.replaced_revision, old.revision())
        self.assertEqual(reply.adapter.revision, new.revision())
        self.assertEqual(reply.adapter.memory_bytes, self.server.adapter_bytes())
        x = np.arange(8.0).reshape(1, 8)
        y = self.client.apply(apply_request("a", Q0, array(x).proto()))
        self.assertEqual([u.revision for u in y.adapters], [new.revision()])
        np.testing.assert_array_equal(from_proto(y.outputs[0].output).values(),
                                      delta_of(new, Q0, x))
        reply = self.client.load("a", "new", replace=True)
        self.assertTrue(reply.already_loaded)
        self.assertEqual(reply.replaced_revision, "")

    def test_a_file_that_is_overwritten_is_new_content(self):
        write_adapter(self.root / "a", seed=1)
        self.serve()
        self.client.load("a", "a")
        truth = write_adapter(self.root / "a", seed=2)
        self.refused(EXISTS, self.client.load, "a", "a", expected=truth.revision())
        self.assertEqual(self.client.load("a", "a", replace=True).adapter.revision,
                         truth.revision())

    def test_a_load_that_nobody_waits_for_leaves_nothing_behind(self):
        write_adapter(self.root / "a", HEAVY)
        self.serve()
        request = adapter_service_pb2.LoadAdapterRequest(name="a", source="a")
        call = self.client.adapters.LoadAdapter.future(request)
        call.cancel()
        truth = self.client.load("a", "a").adapter
        self.assertEqual(self.client.get("a").revision, truth.revision)
        self.assertEqual(self.server.adapter_bytes(), truth.memory_bytes)
        self.client.unload("a")
        self.assertEqual(self.server.adapter_bytes(), 0)


class UnloadTest(LifecycleTest):
    """Uses a second adapter whose long requests occupy the only worker thread."""

    def setUp(self):
        super().setUp()
        self.truth = exact_adapter(self.root / "a", SMALL)
        exact_adapter(self.root / "busy", HEAVY)
        self.serve("--threads=1")
        self.client.load("busy", "busy")
        self.busy_bytes = self.server.adapter_bytes()
        self.client.load("a", "a")
        self.x = np.arange(8.0).reshape(1, 8)
        self.request = apply_request("a", Q0, array(self.x).proto())
        self.right = delta_of(self.truth, Q0, self.x)

    def check(self, reply, revision=None):
        values = from_proto(reply.outputs[0].output).values()
        np.testing.assert_array_equal(values, np.broadcast_to(self.right, values.shape))
        self.assertEqual([u.revision for u in reply.adapters],
                         [revision or self.truth.revision()])

    def hold(self):
        """A request for "a" that waits behind long ones: its reply's future."""
        x = array(np.ones((64, 64))).proto()
        request, _ = heavy_request(self.client, "busy", x, SMALL_WORK)
        self.queue = [self.client.apply_later(request) for _ in range(100)]
        # Arrives last on this connection, and is too long to be computed where it arrives.
        long = apply_request("a", Q0, array(np.repeat(self.x, 2048, axis=0)).proto())
        long.projections.extend([long.projections[0]] * 199)
        held = self.client.apply_later(long)
        until(lambda: self.client.get("a").in_flight == 1, "a request in flight")
        self.assertFalse(held.done(), "there is work left")
        return held

    def finish(self):
        for call in self.queue:
            call.result()

    def test_unload_during_1000_applies_gives_only_right_answers_and_frees_everything(self):
        clients = [self.server.connect() for _ in range(8)]
        started, done = threading.Event(), []

        def finished(_):
            done.append(1)
            if len(done) == 100:
                started.set()

        calls = []
        for i in range(1000):
            calls.append(clients[i % len(clients)].apply_later(self.request))
            calls[-1].add_done_callback(finished)
            if i == 500:
                started.wait()
                unload = self.client.adapters.UnloadAdapter.future(
                    adapter_service_pb2.UnloadAdapterRequest(name="a"))
        reply = unload.result()
        self.assertEqual(self.server.adapter_bytes(), self.busy_bytes, "when the reply is here")
        self.assertTrue(reply.freed)
        self.assertGreater(reply.freed_bytes, 0)
        served = 0
        for call in calls:
            try:
                self.check(call.result())
                served += 1
            except grpc.RpcError as error:
                self.assertEqual(failure_of(error).status, NOT_FOUND)
        self.assertGreaterEqual(served, 100)
        self.refused(NOT_FOUND, self.client.apply, self.request, adapter="a")

    def test_unload_without_wait_answers_at_once_and_frees_later(self):
        held = self.hold()
        reply = self.client.unload("a", wait=False)
        self.assertEqual((reply.freed, reply.freed_bytes), (False, 0))
        self.assertGreater(self.server.adapter_bytes(), self.busy_bytes)
        self.refused(NOT_FOUND, self.client.apply, self.request)
        self.refused(NOT_FOUND, self.client.unload, "a")
        self.assertFalse(held.done())
        self.check(held.result())
        until(lambda: self.server.adapter_bytes() == self.busy_bytes, "the memory to be free")
        self.finish()

    def test_unload_with_wait_answers_when_the_memory_is_free(self):
        a_bytes = self.client.get("a").memory_bytes
        held = self.hold()
        unload = self.server.connect().adapters.UnloadAdapter.future(
            adapter_service_pb2.UnloadAdapterRequest(name="a"))
        until(lambda: "a" not in [a.name for a in self.client.list().adapters], "the name to go")
        self.assertFalse(unload.done())
        self.assertEqual(self.server.adapter_bytes(), self.busy_bytes + a_bytes)
        self.assertFalse(held.done())
        reply = unload.result()
        self.assertEqual(self.server.adapter_bytes(), self.busy_bytes)
        self.assertEqual((reply.freed, reply.freed_bytes), (True, a_bytes))
        self.check(held.result())
        self.finish()

    def test_a_deadline_ends_the_wait_but_not_the_unload(self):
        held = self.hold()
        with self.assertRaises(grpc.RpcError) as caught:
            self.client.adapters.UnloadAdapter(
                adapter_service_pb2.UnloadAdapterRequest(name="a"), timeout=0.05)
        self.assertEqual(caught.exception.code(), DEADLINE)
        self.refused(NOT_FOUND, self.client.get, "a")
        self.check(held.result())
        until(lambda: self.server.adapter_bytes() == self.busy_bytes, "the memory to be free")
        self.finish()

    def test_cancelled_requests_give_everything_back(self):
        held = self.hold()
        for call in [*self.queue, held]:
            call.cancel()
        until(lambda: self.server.metric("adapterd_inflight_bytes") == 0, "the bytes to be free")
        for name in ("a", "busy"):
            until(lambda: self.client.get(name).in_flight == 0, "the handles to be let go")
            expected = self.client.get(name).memory_bytes
            self.assertEqual(self.client.unload(name).freed_bytes, expected)
        self.assertEqual(self.server.adapter_bytes(), 0)

    def test_a_replaced_revision_drains_beside_the_new_one(self):
        new = exact_adapter(self.root / "new", SMALL, seed=9)
        old_bytes = self.client.get("a").memory_bytes
        held = self.hold()
        reply = self.client.load("a", "new", replace=True)
        self.assertEqual(list(reply.adapter.draining_revisions), [self.truth.revision()])
        self.assertEqual(self.server.adapter_bytes(),
                         self.busy_bytes + old_bytes + reply.adapter.memory_bytes)
        self.assertFalse(held.done())
        self.check(held.result())  # as it was accepted: with the old content
        self.finish()
        until(lambda: not self.client.get("a").draining_revisions, "the old revision to go")
        self.assertEqual(self.server.adapter_bytes(), self.busy_bytes + reply.adapter.memory_bytes)
        self.right = delta_of(new, Q0, self.x)
        self.check(self.client.apply(self.request), new.revision())


class ListTest(LifecycleTest):
    def setUp(self):
        super().setUp()
        write_adapter(self.root / "x", base_model_name_or_path="base/x")
        write_adapter(self.root / "y", base_model_name_or_path="base/y")
        self.serve()
        for i in range(10):
            self.client.load(f"a{i}", "xy"[i % 2], labels={"third": str(i % 3), "all": "1"})
        self.names = [f"a{i}" for i in range(10)]

    def listed(self, page_size, **filters):
        """The names on all pages."""
        names, token = [], ""
        while True:
            page = self.client.list(page_size=page_size, page_token=token, **filters)
            names += [adapter.name for adapter in page.adapters]
            if page_size:
                self.assertLessEqual(len(page.adapters), page_size)
            token = page.next_page_token
            if not token:
                self.assertEqual(page.total_size, len(names))
                return names

    def test_the_pages_hold_every_adapter_once(self):
        for page_size in (0, 1, 3, 10, 5000):
            self.assertEqual(self.listed(page_size), self.names)

    def test_all_filters_have_to_match(self):
        ready = adapter_pb2.ADAPTER_STATE_READY
        for filters, expected in (
                ({"name_prefix": "a"}, self.names), ({"name_prefix": "a3"}, ["a3"]),
                ({"name_prefix": "b"}, []), ({"base_model": "base/y"}, self.names[1::2]),
                ({"labels": {"third": "1"}}, self.names[1::3]),
                ({"labels": {"third": "1", "all": "2"}}, []),
                ({"labels": {"third": "1", "all": "1"}, "base_model": "base/x"}, ["a4"]),
                ({"state": ready}, self.names),
                ({"state": adapter_pb2.ADAPTER_STATE_FAILED}, [])):
            with self.subTest(filters):
                for page_size in (0, 2):
                    self.assertEqual(self.listed(page_size, **filters), expected)

    def test_the_summary_is_of_all_adapters(self):
        summary = self.client.list(name_prefix="none").summary
        one = self.client.get("a0")
        self.assertEqual((summary.adapter_count, summary.resident_count), (10, 10))
        self.assertEqual(summary.memory_bytes, self.server.adapter_bytes())
        self.assertEqual(summary.parameter_count, 10 * one.parameter_count)
        self.assertEqual(summary.memory_budget_bytes, self.client.info().memory_budget_bytes)


class RevisionTest(LifecycleTest):
    def test_one_content_has_one_revision_however_it_is_spelled(self):
        cases = fixtures("peft/cases")
        truth = PeftAdapter(cases / "llama-qv").revision()
        spellings = ["llama-qv"] + [p.name for p in cases.glob("ok-*")]
        self.assertGreater(len(spellings), 3)
        shutil.copytree(cases / "llama-qv", self.root / "copy/of/it")
        self.serve(f"--adapter-root=cases={cases}")
        sources = [f"cases:{name}" for name in spellings] + ["copy/of/it"]
        for i, source in enumerate(sources):
            with self.subTest(source):
                self.assertEqual(self.client.load(f"a{i}", source).adapter.revision, truth)

    def test_the_digest_that_the_program_prints_is_the_revision(self):
        cases = fixtures("peft/cases")
        for name in ("llama-qv", "llama-bf16", "llama-f16", "llama-rslora-patterns",
                     "llama-float-alpha", "gpt2-conv1d", "ok-compiled-prefix"):
            with self.subTest(name):
                expected = PeftAdapter(cases / name).revision()
                for path in (str(cases / name), str(cases / name) + "/"):
                    self.assertEqual(self.run_to_end("--digest", path), (0, expected + "\n", ""))

    def test_every_part_of_the_content_changes_the_revision(self):
        base = write_adapter(self.root / "base")
        tensors = read_safetensors(self.root / "base/adapter_model.safetensors")
        first = next(iter(tensors))
        raw = tensors[first].raw.copy()
        raw.flat[0] = np.nextafter(raw.flat[0], np.float32(9))
        config = (self.root / "base/adapter_config.json").read_text()
        changes = {
            "one bit": {**tensors, first: Array("F32", raw)},
            "a dtype": {name: array(t.values(), "BF16") for name, t in tensors.items()},
            "a path": {name.replace("layers.1.", "layers.2."): t for name, t in tensors.items()},
        }
        revisions = {"base": base.revision()}
        for i, (what, changed) in enumerate(changes.items()):
            write_files(self.root / str(i), config, changed)
            revisions[what] = PeftAdapter(self.root / str(i)).revision()
        revisions["the scale"] = write_adapter(self.root / "3", use_rslora=True).revision()
        self.assertEqual(len(set(revisions.values())), len(revisions))
        self.serve()
        for i, revision in enumerate(list(revisions.values())[1:]):
            self.assertEqual(self.client.load(f"a{i}", str(i)).adapter.revision, revision)

    def test_either_digest_is_accepted_as_the_expected_one(self):
        write_adapter(self.root / "a")
        self.serve()
        loaded = self.client.load("a", "a").adapter
        for i, digest in enumerate((loaded.revision, loaded.weights_sha256)):
            self.client.load(f"b{i}", "a", expected_digest=digest)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
