"""Attacks and faults from outside. After each of them an honest client is answered rightly, and what the
attack took is given back. docs/attacks.md lists these and the ones that other tests make."""
import json
import os
import re
import resource
import socket
import subprocess
import threading
import time
import unittest
from pathlib import Path

import grpc
import numpy as np

from adapters import Q0, SMALL, delta_of, exact_adapter
from harness import PATIENCE, ServerTest, apply_request, failure_of, until
from tensors import array, from_proto
from adapterd.v1 import adapter_service_pb2, tensor_pb2

TESTS = Path(__file__).resolve().parent.parent
TABLE = TESTS.parent / "docs/attacks.md"

IDLE_CONNECTIONS = 2000
RESETS = 2000
HANDSHAKE = 10  # seconds that a client has to begin
SPARE_ADDRESSES = 32 << 20  # bytes that may still be mapped
KEPT = 64 << 20  # bytes that the server's buffers and allocator may hold on to


class AttackTest(ServerTest):
    flags = ()
    environment = None

    def setUp(self):
        self.root = self.folder()
        self.truth = exact_adapter(self.root / "a", SMALL, seed=1)
        self.server = self.start(f"--adapter-root={self.root}", "--log-format=json", *self.flags,
                                 environment=self.environment)
        self.client = self.server.client
        self.client.load("a", "a")
        self.honest()
        self.before = self.descriptors()

    def descriptors(self):
        return len(list(Path(f"/proc/{self.server.process.pid}/fd").iterdir()))

    def anonymous(self):
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024

    def honest(self, client=None):
        x = np.arange(4 * SMALL[Q0][0], dtype=np.float32).reshape(4, -1) % 7
        reply = (client or self.client).apply(apply_request("a", Q0, array(x).proto()))
        found = from_proto(reply.outputs[0].output).values()
        np.testing.assert_array_equal(found, delta_of(self.truth, Q0, x))

    def survives(self):
        """Old and new connections are served, and nothing is left of the attack."""
        self.honest()
        fresh = self.server.connect()
        self.honest(fresh)
        fresh.close()
        self.assertEqual(self.server.http("/healthz")[0], 200)
        until(lambda: self.descriptors() <= self.before + 2, "its descriptors to be closed")

    def connect(self, address, data=b""):
        host, port = address.rsplit(":", 1)
        connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self.addCleanup(connection.close)
        if data:
            connection.sendall(data)
        return connection


class ConnectionTest(AttackTest):
    def test_garbage_on_both_ports(self):
        for address in (self.server.grpc, self.server.admin):
            for data in (b"\0" * 100_000, b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01",
                         b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 10_000):
                connection = self.connect(address)
                try:
                    connection.sendall(data)
                except OSError:
                    pass  # it was hung up on
                connection.close()
        self.survives()

    def test_slow_clients_of_grpc_are_hung_up_on(self):
        slow = [self.connect(self.server.grpc, b"PRI * HT") for _ in range(100)]
        self.honest()
        began = time.monotonic()
        for connection in slow:
            connection.settimeout(3 * HANDSHAKE)
            while connection.recv(4096):  # settings come first
                pass
        self.assertLess(time.monotonic() - began, 2 * HANDSHAKE)
        self.survives()

    def test_slow_clients_of_the_admin_port_do_not_stop_probes(self):
        for _ in range(10):
            self.connect(self.server.admin, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        self.assertEqual(self.server.http("/healthz")[0], 200)

    def test_thousands_of_idle_connections(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = 2 * IDLE_CONNECTIONS
        if soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
        idle = [self.connect(self.server.grpc) for _ in range(IDLE_CONNECTIONS)]
        self.honest()
        for connection in idle:
            connection.close()
        self.survives()


class HeaderTest(AttackTest):
    def test_never_ending_headers_of_the_admin_port(self):
        for line in (b"X-%d: a\r\n", b"X: " + b"a" * 1000 + b"%d\r\n"):
            connection = self.connect(self.server.admin, b"GET / HTTP/1.1\r\n")
            try:
                for i in range(100_000):
                    connection.sendall(line % i)
            except OSError:
                pass
            connection.close()
        self.survives()
        self.assertLess(self.anonymous(), 4 * KEPT)

    def test_oversized_metadata(self):
        request = adapter_service_pb2.GetServerInfoRequest()
        for metadata in ([("x-long", "a" * 1_000_000)],
                         [(f"x-{i}", "a") for i in range(100_000)]):
            client = self.server.connect()
            with self.assertRaises(grpc.RpcError) as caught:
                client.adapters.GetServerInfo(request, metadata=metadata, timeout=PATIENCE)
            self.assertIn(caught.exception.code(), (grpc.StatusCode.RESOURCE_EXHAUSTED,
                                                    grpc.StatusCode.UNAVAILABLE,
                                                    grpc.StatusCode.INTERNAL))
            client.close()
        self.survives()


class CallTest(AttackTest):
    flags = ("--max-message-size=1MiB",)

    def test_messages_that_decompress_to_more_than_the_limit(self):
        bomb = apply_request("a", Q0, tensor_pb2.Tensor(
            dtype=tensor_pb2.DATA_TYPE_F32, shape=[1, 1 << 22], data=bytes(1 << 24)))
        channel = grpc.insecure_channel(self.server.grpc, compression=grpc.Compression.Gzip,
                                        options=[("grpc.max_send_message_length", -1)])
        self.addCleanup(channel.close)
        from adapterd.v1 import projection_service_pb2_grpc
        stub = projection_service_pb2_grpc.ProjectionServiceStub(channel)
        for _ in range(3):
            with self.assertRaises(grpc.RpcError) as caught:
                stub.ApplyProjection(bomb, timeout=PATIENCE)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        channel.close()
        self.survives()
        self.assertLess(self.anonymous(), 4 * KEPT)

    def test_calls_that_are_reset_at_once(self):
        x = array(np.ones((4, SMALL[Q0][0]), np.float32)).proto()
        client = self.server.connect()
        for _ in range(RESETS):
            client.projections.ApplyProjection.future(apply_request("a", Q0, x)).cancel()
        client.close()
        self.survives()
        until(lambda: self.server.metric("adapterd_inflight_bytes") == 0, "nothing in flight")

    def test_names_cannot_forge_log_lines(self):
        evil = 'a"}\n{"level":"error","event":"forged'
        for call in (lambda: self.client.load(evil, "a"), lambda: self.client.load("b", evil),
                     lambda: self.client.apply(apply_request(evil, Q0, tensor_pb2.Tensor()))):
            with self.assertRaises(grpc.RpcError):
                call()
        events = [json.loads(line)["event"] for line in self.server.stderr().splitlines()]
        self.assertNotIn("forged", events)
        self.survives()

    def test_names_and_methods_make_no_series(self):
        series = len(self.server.metrics())
        channel = grpc.insecure_channel(self.server.grpc)
        self.addCleanup(channel.close)
        for i in range(500):
            with self.assertRaises(grpc.RpcError):
                channel.unary_unary(f"/adapterd.v1.AdapterService/M{i}")(b"", timeout=PATIENCE)
            with self.assertRaises(grpc.RpcError):
                self.client.apply(apply_request(f"n{i}", Q0, tensor_pb2.Tensor()))
        self.assertLess(len(self.server.metrics()), series + 20)
        channel.close()
        self.survives()


class ResourceTest(AttackTest):
    def limit(self, what, value):
        subprocess.run(["prlimit", f"--pid={self.server.process.pid}", f"--{what}={value}:"],
                       check=True)

    def test_it_takes_all_descriptors_that_it_may(self):
        soft, hard = resource.prlimit(self.server.process.pid, resource.RLIMIT_NOFILE)
        self.assertEqual(soft, hard)

    def test_without_descriptors_connected_clients_are_served(self):
        self.limit("nofile", self.before + 20)
        flood = []
        for _ in range(200):
            try:
                flood.append(self.connect(self.server.grpc))
            except OSError:
                break
        for _ in range(10):
            self.honest()

    def test_a_full_file_system_refuses_and_changes_nothing(self):
        server = self.start(f"--adapter-root={self.root}", f"--data-dir={self.folder()}")
        subprocess.run(["prlimit", f"--pid={server.process.pid}", "--fsize=4096"], check=True)
        big = exact_adapter(self.folder() / "b", {Q0: (512, 512, 64)}, seed=2)
        self.assertIsNotNone(big)
        start = adapter_service_pb2.UploadAdapterRequest(
            start=adapter_service_pb2.UploadStart(name="b"))
        chunk = adapter_service_pb2.UploadAdapterRequest(chunk=adapter_service_pb2.UploadChunk(
            file_name="adapter_model.safetensors", data=bytes(1 << 16)))
        with self.assertRaises(grpc.RpcError) as caught:
            server.client.adapters.UploadAdapter(iter([start, chunk, chunk]), timeout=PATIENCE)
        self.assertEqual(failure_of(caught.exception).status, "RESOURCE_EXHAUSTED/STORAGE_FULL")
        self.assertEqual(list(server.client.list().adapters), [])


    def test_without_memory_requests_and_loads_are_refused(self):
        if not self.server.is_plain():
            self.skipTest("a sanitizer takes all addresses for itself")
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        mapped = int(re.search(r"VmSize:\s+(\d+)", status)[1]) * 1024
        exact_adapter(self.root / "big", {Q0: (1 << 15, 1 << 15, 256)}, seed=2)
        self.limit("as", mapped + SPARE_ADDRESSES)
        x = array(np.zeros((2 * SPARE_ADDRESSES // 32, SMALL[Q0][0]))).proto()
        for call in (lambda: self.client.load("big", "big"),
                     lambda: self.client.apply(apply_request("a", Q0, x))):
            self.refused("RESOURCE_EXHAUSTED/MEMORY_BUDGET_EXCEEDED", call)
        self.client.load("b", "a")
        self.honest()


class ClockTest(AttackTest):
    """The time of day jumps, forth and back, by hours and by years."""

    def setUp(self):
        library = os.environ.get("ADAPTERD_JUMPING_CLOCK")
        if library is None:
            self.skipTest("no library to preload is given, as in a sanitizer's build")
        self.clock = self.folder() / "clock"
        self.jump(0)
        self.environment = {"LD_PRELOAD": library, "JUMPING_CLOCK": str(self.clock)}
        super().setUp()

    def jump(self, seconds):
        fresh = self.clock.with_suffix(".new")
        fresh.write_text(str(seconds))
        os.replace(fresh, self.clock)

    def test_calls_are_served_after_each_jump(self):
        watch = self.client.watch()
        for i, seconds in enumerate((3600, -3600, 365 * 86400, -20 * 365 * 86400, 0)):
            self.jump(seconds)
            for _ in range(20):
                self.honest()
            self.client.load(f"b{i}", "a")
            self.assertEqual(next(watch).event.adapter.name, f"b{i}")
            self.client.unload(f"b{i}")
            next(watch)
            self.assertEqual(self.server.http("/readyz")[0], 200)
        watch.cancel()
        self.survives()
        self.jump(-3600)
        self.server.terminate()
        self.assertEqual(self.server.wait()[0], 0)


class StopTest(AttackTest):
    def test_sigterm_while_clients_are_at_it(self):
        stop = threading.Event()

        def hammer():
            client = self.server.connect()
            x = array(np.ones((4, SMALL[Q0][0]), np.float32)).proto()
            while not stop.is_set():
                try:
                    client.apply(apply_request("a", Q0, x))
                    client.load("a", "a", replace=True)
                except grpc.RpcError:
                    return

        threads = [threading.Thread(target=hammer) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: self.server.metric("adapterd_apply_rows_total") > 100, "some traffic")
        self.server.terminate()
        self.assertEqual(self.server.process.wait(PATIENCE), 0)
        stop.set()
        for thread in threads:
            thread.join()


class TableTest(unittest.TestCase):
    def test_every_row_names_a_test_that_is_there(self):
        rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")][1:]
        self.assertGreaterEqual(len(rows), 40)
        for row in rows:
            named = re.findall(r"`([\w/]+\.(?:py|cc))(?: ([\w.]+))?`", row)
            self.assertTrue(named, row)
            for file, test in named:
                text = (TESTS / file).read_text()
                for part in test.split(".") if test else []:
                    self.assertIn(part, text, row)


if __name__ == "__main__":
    unittest.main()
