"""What changes adapters that are there: updates, aliases, rollbacks and desired state."""
import sys
import threading
import unittest

import grpc
import numpy as np

from adapters import Q0, SMALL, delta_of, exact_adapter, write_files
from harness import ServerTest, apply_request, failure_of, merge_request
from tensors import array, from_proto
from adapterd.v1 import adapter_service_pb2

DISABLED = "FAILED_PRECONDITION/ADAPTER_DISABLED"
INVALID = "INVALID_ARGUMENT/INVALID_FIELD"
MISMATCH = "ABORTED/REVISION_MISMATCH"
NOT_FOUND = "NOT_FOUND/ADAPTER_NOT_FOUND"

LOAD = adapter_service_pb2.RECONCILE_ACTION_LOAD
REPLACE = adapter_service_pb2.RECONCILE_ACTION_REPLACE
UNLOAD = adapter_service_pb2.RECONCILE_ACTION_UNLOAD
UNCHANGED = adapter_service_pb2.RECONCILE_ACTION_UNCHANGED
CONFLICT = adapter_service_pb2.RECONCILE_ACTION_CONFLICT

X = np.arange(8.0).reshape(1, 8)


def spec(name, source, **fields):
    return adapter_service_pb2.AdapterSpec(name=name, source=source, **fields)


class ChangesTest(ServerTest):
    def setUp(self):
        self.root = self.folder()
        self.truths = {f"s{i}": exact_adapter(self.root / f"s{i}", SMALL, seed=i)
                       for i in range(4)}
        self.server = self.start(f"--adapter-root={self.root}")
        self.client = self.server.client

    def revision(self, source):
        return self.truths[source].revision()

    def serves(self, name, source):
        """Checks that `name` (or name@alias) computes with the content of `source`."""
        reply = self.client.apply(apply_request(name, Q0, array(X).proto()))
        np.testing.assert_array_equal(from_proto(reply.outputs[0].output).values(),
                                      delta_of(self.truths[source], Q0, X))
        self.assertEqual([(use.name, use.revision) for use in reply.adapters],
                         [(name.split("@")[0], self.revision(source))])

    def names(self):
        return [adapter.name for adapter in self.client.list().adapters]


class UpdateTest(ChangesTest):
    def test_a_disabled_adapter_serves_again_once_it_is_enabled(self):
        self.client.load("a", "s0")
        self.serves("a", "s0")
        self.assertFalse(self.client.update("a", enabled=False).enabled)
        weight = array(np.ones((6, 8))).proto()
        request = apply_request("a", Q0, array(X).proto())
        self.refused(DISABLED, self.client.apply, request, adapter="a")
        self.refused(DISABLED, self.client.merge, merge_request("a", Q0, weight), adapter="a")
        base = array(np.ones((1, 6)))
        reply = self.client.apply(apply_request("a", Q0, array(X).proto(), base.proto(),
                                                skip_disabled=True))
        np.testing.assert_array_equal(from_proto(reply.outputs[0].output).values(), base.values())
        self.assertEqual((reply.outputs[0].applied, len(reply.adapters)), (0, 0))
        self.assertTrue(self.client.update("a", mask=["enabled"]).enabled)
        self.serves("a", "s0")

    def test_of_two_clients_with_one_etag_one_wins(self):
        etag = self.client.load("a", "s0").adapter.etag
        barrier, results = threading.Barrier(8), []

        def change(i):
            client = self.server.connect()
            barrier.wait()
            try:
                results.append(client.update("a", mask=["labels"], labels={"by": str(i)},
                                             etag=etag))
            except grpc.RpcError as error:
                self.assertEqual(failure_of(error).status, "ABORTED/ETAG_MISMATCH")

        threads = [threading.Thread(target=change, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(results), 1)
        now = self.client.get("a")
        self.assertEqual((now.etag, now.labels), (results[0].etag, results[0].labels))
        self.assertNotEqual(results[0].etag, etag)

    def test_only_what_the_mask_names_changes(self):
        self.client.load("a", "s0", labels={"team": "x"})
        adapter = self.client.update("a", mask=["pinned"], pinned=True, enabled=False)
        self.assertEqual((adapter.pinned, adapter.enabled), (True, True))
        self.assertEqual(dict(adapter.labels), {"team": "x"})
        adapter = self.client.update("a", mask=["labels", "pinned"])
        self.assertEqual((adapter.pinned, dict(adapter.labels)), (False, {}))
        same = self.client.update("a")
        self.assertEqual(same.etag, adapter.etag)
        for fields in ({"mask": ["revision"]}, {"mask": ["*"]}, {"labels": {"a": "b"}},
                       {"mask": ["labels"], "labels": {"a/b/c": ""}}):
            with self.subTest(fields):
                self.refused(INVALID, lambda: self.client.update("a", **fields), field=None)
        self.refused(NOT_FOUND, self.client.update, "other", adapter="other")
        self.assertEqual(self.client.get("a").etag, adapter.etag)


class RevisionTest(ChangesTest):
    def test_an_alias_serves_its_revision_until_it_is_moved(self):
        self.client.load("a", "s0")
        self.client.set_alias("a", "prod", self.revision("s0"))
        adapter = self.client.load("a", "s1", replace=True).adapter
        self.assertEqual(list(adapter.kept_revisions), [self.revision("s0")])
        self.serves("a", "s1")
        self.serves("a@prod", "s0")
        self.client.set_alias("a", "prod", self.revision("s1"))
        self.serves("a@prod", "s1")
        self.assertEqual(list(self.client.get("a").kept_revisions), [])
        self.refused(MISMATCH, self.client.set_alias, "a", "prod", self.revision("s0"))
        self.client.set_alias("a", "prod", "")
        self.refused(NOT_FOUND, self.client.apply, apply_request("a@prod", Q0, array(X).proto()))
        for name in ("a@", "@prod", "a@b@c", "a@b/c"):
            self.refused(INVALID, self.client.apply, apply_request(name, Q0, array(X).proto()),
                         field="adapter.name")

    def test_an_alias_that_moves_never_serves_anything_else(self):
        """Requests see the one revision or the other, whole, while an alias moves to and fro."""
        self.client.load("a", "s0")
        self.client.set_alias("a", "old", self.revision("s0"))
        self.client.load("a", "s1", replace=True)
        right = {self.revision(s): delta_of(self.truths[s], Q0, X) for s in ("s0", "s1")}
        stop = threading.Event()
        self.client.set_alias("a", "live", self.revision("s0"))

        def move():
            client = self.server.connect()
            for i in range(200):
                client.set_alias("a", "live", self.revision(f"s{i % 2}"))
            stop.set()

        mover = threading.Thread(target=move)
        mover.start()
        seen = set()
        while not stop.is_set():
            reply = self.client.apply(apply_request("a@live", Q0, array(X).proto()))
            revision = reply.adapters[0].revision
            np.testing.assert_array_equal(from_proto(reply.outputs[0].output).values(),
                                          right[revision])
            seen.add(revision)
        mover.join()
        self.assertTrue(seen)
        self.serves("a@live", "s1")

    def test_a_rollback_goes_back_to_what_is_kept(self):
        self.client.load("a", "s0")
        self.client.set_alias("a", "good", self.revision("s0"))
        self.client.load("a", "s1", replace=True)
        self.assertEqual(self.client.rollback("a", self.revision("s0")).revision,
                         self.revision("s0"))
        self.serves("a", "s0")
        self.assertEqual(self.client.rollback("a", self.revision("s0")).revision,
                         self.revision("s0"))
        self.refused(MISMATCH, self.client.rollback, "a", self.revision("s3"), adapter="a")
        for revision in ("", "x", self.revision("s0").upper()):
            self.refused(INVALID, self.client.rollback, "a", revision, field="revision")
        self.refused(NOT_FOUND, self.client.rollback, "b", self.revision("s0"))


class ReconcileTest(ChangesTest):
    def actions(self, changes):
        return {name: change.action for name, change in changes.items()}

    def setUp(self):
        super().setUp()
        self.client.load("kept", "s0")
        self.client.load("changed", "s1")
        self.client.load("gone", "s2")
        self.desired = [spec("new", "s3", pinned=True), spec("changed", "s3", labels={"v": "2"}),
                        spec("kept", "s0", expected_digest=self.revision("s0"))]
        self.plan = {"kept": UNCHANGED, "changed": REPLACE, "gone": UNLOAD, "new": LOAD}

    def test_a_plan_changes_nothing_and_carrying_it_out_twice_does_nothing_more(self):
        before = self.client.list()
        planned = self.client.reconcile(self.desired, prune=True, dry_run=True)
        self.assertEqual(self.actions(planned), self.plan)
        self.assertEqual(self.client.list().sequence, before.sequence)
        self.assertEqual(self.names(), ["changed", "gone", "kept"])
        done = self.client.reconcile(self.desired, prune=True)
        self.assertEqual(done, planned)
        self.assertEqual(self.names(), ["changed", "kept", "new"])
        self.serves("changed", "s3")
        self.assertTrue(self.client.get("new").pinned)
        self.assertEqual(dict(self.client.get("changed").labels), {"v": "2"})
        after = self.client.list()
        again = self.client.reconcile(self.desired, prune=True)
        self.assertEqual(set(self.actions(again).values()), {UNCHANGED})
        self.assertEqual(self.client.list().sequence, after.sequence)

    def test_without_prune_others_stay_and_pinned_ones_always(self):
        changes = self.client.reconcile(self.desired)
        self.assertEqual(self.actions(changes), {k: v for k, v in self.plan.items() if k != "gone"})
        self.assertIn("gone", self.names())
        changes = self.client.reconcile([], prune=True)
        self.assertEqual(self.actions(changes), {"kept": UNLOAD, "changed": UNLOAD,
                                                 "gone": UNLOAD, "new": CONFLICT})
        self.assertIn("pinned", changes["new"].reason)
        self.assertEqual(self.names(), ["new"])
        self.assertEqual(self.server.adapter_bytes(), self.client.get("new").memory_bytes)

    def test_what_fails_is_told_in_its_change(self):
        write_files(self.root / "broken", "{", None)
        desired = [spec("bad", "broken"), spec("missing", "nowhere"), spec("out", "../x"),
                   spec("kept", "s0", expected_digest=self.revision("s1")), spec("ok", "s1")]
        changes = self.client.reconcile(desired)
        for name, reason in (("bad", ""), ("missing", "SOURCE_NOT_FOUND: "),
                             ("out", "PATH_OUTSIDE_ROOT: "), ("kept", "DIGEST_MISMATCH: ")):
            self.assertTrue(changes[name].error, name)
            self.assertTrue(changes[name].error.startswith(reason), changes[name])
        self.assertEqual(changes["ok"].error, "")
        self.serves("ok", "s1")
        self.serves("kept", "s0")

    def test_wrong_specs_change_nothing(self):
        for wrong, field in (([spec("a", "s0"), spec("a", "s1")], "desired[1].name"),
                             ([spec("a@b", "s0")], "desired[0].name"),
                             ([spec("a", "")], "desired[0].source"),
                             ([spec("a", "s0", expected_digest="f")], "desired[0].expected_digest"),
                             ([spec(f"a{i}", "s0") for i in range(10001)], "desired")):
            with self.subTest(field):
                self.refused(INVALID, lambda: self.client.reconcile(wrong, prune=True), field=field)
        self.assertEqual(self.names(), ["changed", "gone", "kept"])

    def test_clients_that_reconcile_to_the_same_end_agree(self):
        results = []

        def run(client):
            results.append(client.reconcile(self.desired, prune=True))

        threads = [threading.Thread(target=run, args=(self.server.connect(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(results), 4)
        self.assertEqual(self.names(), ["changed", "kept", "new"])
        self.serves("changed", "s3")
        self.serves("new", "s3")
        for changes in results:
            # Another one may have unloaded it first; nothing else may have failed.
            self.assertEqual({n for n, c in changes.items() if c.error and n != "gone"}, set())


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
