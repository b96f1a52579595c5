"""WatchAdapters: a client that lists and then watches knows all that happens, whatever else goes on."""
import random
import sys
import threading
import time
import unittest

import grpc

from adapters import write_adapter
from harness import PATIENCE, ServerTest, failure_of, until
from adapterd.v1 import adapter_service_pb2

EXPIRED = "OUT_OF_RANGE/SEQUENCE_EXPIRED"
WATCHERS = 256  # that a server takes
REMEMBERED = 4096  # events

EVENT = adapter_service_pb2
GONE = EVENT.ADAPTER_EVENT_TYPE_UNLOADED


def state_of(adapter):
    """What a client mirrors of an adapter: all that changes by events."""
    return (adapter.revision, adapter.etag, adapter.enabled, dict(adapter.labels),
            dict(adapter.aliases))


class WatchTest(ServerTest):
    def setUp(self):
        self.root = self.folder()
        for i in range(3):
            write_adapter(self.root / f"s{i}", seed=i)
        self.server = self.start(f"--adapter-root={self.root}")
        self.client = self.server.client

    def list(self, page_size=0):
        """All adapters by name, and where a watch may start."""
        adapters, token = {}, ""
        while True:
            page = self.client.list(page_size=page_size, page_token=token)
            adapters.update({adapter.name: state_of(adapter) for adapter in page.adapters})
            token = page.next_page_token
            if not token:
                return adapters, page.sequence

    def flood(self, events):
        """So many events of 8 KB: thousands are far more than a connection holds on the way."""
        request = adapter_service_pb2.UpdateAdapterRequest(
            name="a", labels={f"{'k' * 57}{j}": "v" * 63 for j in range(10, 70)})
        request.update_mask.paths.append("labels")
        calls = []
        for i in range(events):
            request.labels["number"] = str(i)
            calls.append(self.client.adapters.UpdateAdapter.future(request, timeout=PATIENCE))
            if len(calls) == 64:
                calls.pop(0).result()
        for call in calls:
            call.result()

    def ended(self, stream):
        """How a stream ends."""
        with self.assertRaises(grpc.RpcError) as caught:
            for _ in stream:
                pass
        return failure_of(caught.exception)

    def ends(self, stream, status):
        failure = self.ended(stream)
        self.assertEqual(failure.status, status, failure.message)
        return failure


class MirrorTest(WatchTest):
    def change(self, worker, stop):
        """Loads, replaces, changes and unloads adapters of its own until it is told to stop."""
        choose = random.Random(worker)
        client = self.server.connect()
        names = [f"{worker}-{i}" for i in range(4)]
        while not stop.is_set():
            name = choose.choice(names)
            try:
                action = choose.randrange(6)
                if action < 3:
                    client.load(name, f"s{action}", replace=True)
                elif action == 3:
                    client.update(name, enabled=choose.random() < 0.5)
                elif action == 4:
                    client.set_alias(name, "prod", client.get(name).revision)
                else:
                    client.unload(name)
            except grpc.RpcError as error:
                # It is gone, or was replaced between two calls; nothing else may go wrong.
                self.assertIn(failure_of(error).status, ("NOT_FOUND/ADAPTER_NOT_FOUND",))

    def test_list_then_watch_has_no_gap_while_everything_changes(self):
        stop = threading.Event()
        workers = [threading.Thread(target=self.change, args=(i, stop)) for i in range(3)]
        for worker in workers:
            worker.start()
        mirrors = []
        for page_size in (1, 2, 1000):
            mirror, sequence = self.list(page_size)
            mirrors.append((mirror, sequence, self.client.watch(from_sequence=sequence)))
        first = mirrors[0][1]
        until(lambda: self.client.list(page_size=1).sequence > first + 150, "many changes")
        stop.set()
        for worker in workers:
            worker.join()
        truth, last = self.list()
        for mirror, sequence, stream in mirrors:
            self.assertLess(sequence, last)
            for reply in stream:
                event = reply.event
                self.assertEqual(event.sequence, sequence + 1)
                sequence = event.sequence
                if event.type == GONE:
                    mirror.pop(event.adapter.name, None)
                else:
                    mirror[event.adapter.name] = state_of(event.adapter)
                if sequence == last:
                    break
            self.assertEqual(mirror, truth)

    def test_events_say_what_happened(self):
        watch = self.client.watch()
        begin = time.time()
        one = self.client.load("a", "s0", labels={"team": "x"}).adapter
        two = self.client.load("a", "s1", replace=True).adapter
        self.client.update("a", enabled=False)
        self.client.set_alias("a", "prod", two.revision)
        self.client.load("a", "s1", replace=True)  # without labels, as before: nothing new
        self.client.unload("a")
        told = [next(watch).event for _ in range(5)]
        self.assertEqual([event.type for event in told],
                         [EVENT.ADAPTER_EVENT_TYPE_LOADED, EVENT.ADAPTER_EVENT_TYPE_REPLACED,
                          EVENT.ADAPTER_EVENT_TYPE_UPDATED, EVENT.ADAPTER_EVENT_TYPE_UPDATED, GONE])
        self.assertEqual([event.adapter.revision for event in told],
                         [one.revision] + [two.revision] * 4)
        self.assertEqual([event.adapter.enabled for event in told], [True, True] + [False] * 3)
        self.assertEqual(dict(told[4].adapter.aliases), {"prod": two.revision})
        for event in told:
            self.assertFalse(event.adapter.modules)
            self.assertEqual(event.adapter.module_count, 4)
            self.assertGreaterEqual(event.time.ToNanoseconds() / 1e9, begin - 1)


class ResumeTest(WatchTest):
    def test_a_watch_goes_on_where_another_one_ended(self):
        start = self.client.list().sequence
        for i in range(6):
            self.client.load(f"a{i}", "s0")
        watch, seen = self.client.watch(from_sequence=start), start
        while seen < start + 6:
            reply = next(watch)
            self.assertEqual(reply.event.sequence, seen + 1)
            self.assertEqual(reply.event.adapter.name, f"a{seen - start}")
            seen = reply.event.sequence
            watch.cancel()
            watch = self.client.watch(from_sequence=seen)

    def test_a_sequence_of_another_run_is_out_of_range(self):
        for i in range(3):
            self.client.load(f"a{i}", "s0")
        sequence = self.client.list().sequence
        other = self.start(f"--adapter-root={self.root}")
        for i in range(5):
            other.client.load(f"a{i}", "s0")
        failure = self.ends(other.client.watch(from_sequence=sequence), EXPIRED)
        self.assertIn("expected", failure.metadata)
        self.ends(other.client.watch(from_sequence=0), EXPIRED)
        self.ends(self.client.watch(from_sequence=sequence + 1), EXPIRED)
        failure = self.ends(self.client.watch(from_sequence=-1), "INVALID_ARGUMENT/INVALID_FIELD")
        self.assertEqual(failure.metadata["field"], "from_sequence")

    def test_a_reader_that_falls_behind_is_told_so(self):
        self.client.load("a", "s0")
        start = self.client.list().sequence
        slow = self.client.watch(from_sequence=start)
        self.flood(REMEMBERED + 2000)
        last, sequence = self.client.list().sequence, start
        with self.assertRaises(grpc.RpcError) as caught:
            for reply in slow:
                self.assertEqual(reply.event.sequence, sequence + 1, "what is told has no gap")
                sequence = reply.event.sequence
        self.assertEqual(failure_of(caught.exception).status, EXPIRED)
        self.assertLess(sequence, last)
        # From a new listing it goes on.
        again = self.client.watch(from_sequence=self.client.list().sequence)
        self.client.update("a", enabled=False)
        self.assertFalse(next(again).event.adapter.enabled)


class LimitTest(WatchTest):
    def test_there_are_at_most_so_many_watches(self):
        watches = [self.client.watch() for _ in range(WATCHERS)]
        failure = self.ends(self.client.watch(), "UNAVAILABLE/OVERLOADED")
        self.assertGreater(failure.retry_seconds, 0)
        self.client.load("a", "s0")
        for watch in watches:
            self.assertEqual(next(watch).event.adapter.name, "a")
            watch.cancel()

        def one_more():
            watch = self.client.watch()
            self.client.update("a", enabled=not self.client.get("a").enabled)
            try:
                return next(watch).event.adapter.name == "a"
            except grpc.RpcError:
                return False
            finally:
                watch.cancel()

        until(one_more, "room for a watch")

    def test_clients_that_leave_leave_nothing_behind(self):
        for _ in range(300):
            self.client.watch().cancel()
        until(lambda: self.server.metric(
            "grpc_server_handled_total", grpc_service="adapterd.v1.AdapterService",
            grpc_method="WatchAdapters", grpc_code="Canceled") == 300, "all of them to end")
        self.client.load("a", "s0")


class DrainTest(WatchTest):
    def test_sigterm_ends_a_watch_and_the_exit_is_clean(self):
        watch = self.client.watch()
        self.client.load("a", "s0")
        begin = time.monotonic()
        self.server.terminate()
        failure = self.ends(watch, "UNAVAILABLE/DRAINING")
        self.assertGreater(failure.retry_seconds, 0)
        self.assertEqual(self.server.wait(), (0, ""))
        self.assertLess(time.monotonic() - begin, 10)
        self.assertNotIn("drain_timeout", self.server.stderr())

    def test_a_client_that_does_not_read_does_not_hold_a_drain_up(self):
        self.client.load("a", "s0")
        stuck = self.server.connect().watch()
        self.flood(1000)
        self.server.terminate()
        # Its connection stays; the server must not wait for it.
        self.assertEqual(self.server.process.wait(timeout=PATIENCE), 0)
        self.assertNotIn("drain_timeout", self.server.stderr())
        self.assertIn(self.ended(stuck).code, ("CANCELLED", "UNAVAILABLE"))
        self.server.wait()


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
