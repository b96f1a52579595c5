"""More work than the server can do: what is let in is answered rightly and soon, the rest is told so at once."""
import threading
import time
import unittest
from pathlib import Path

import grpc
import numpy as np

from adapters import HEAVY, Q0, delta_of, exact_adapter, heavy_request
from harness import PATIENCE, ServerTest, failure_of, until
from tensors import array, from_proto
import health_pb2

PATIENT_JOBS = 128  # of the one thread; so many are let in however long they take
OFFERED = 400
SECONDS = 0.01  # of each request
GROWTH = 64 << 20


class OverloadTest(ServerTest):
    def test_what_would_wait_too_long_is_refused_and_the_rest_is_served(self):
        root = self.folder()
        truth = exact_adapter(root / "a", HEAVY, seed=1)
        self.server = self.start(f"--adapter-root={root}", "--threads=1")
        client = self.server.client
        client.load("a", "a")
        x = np.arange(64.0).reshape(1, 64) % 5
        request, factor = heavy_request(client, "a", array(x).proto(), SECONDS)
        expected = factor * delta_of(truth, Q0, x)
        for _ in range(64):  # until it knows how long they take
            client.apply(request)
        before = self.anonymous()
        slowest = self.slowest_health_check()
        calls = [client.apply_later(request) for _ in range(OFFERED)]
        refused = 0
        for call in calls:
            try:
                reply = call.result()
            except grpc.RpcError as error:
                failure = failure_of(error)
                self.assertEqual(failure.status, "UNAVAILABLE/OVERLOADED", failure.message)
                self.assertGreater(failure.retry_seconds, 0)
                refused += 1
                continue
            for output in reply.outputs:
                np.testing.assert_array_equal(from_proto(output.output).values(), expected)
        print(f"{refused} of {OFFERED} refused, slowest health check {slowest() * 1000:.0f} ms")
        self.assertGreater(refused, 0)
        self.assertGreaterEqual(OFFERED - refused, PATIENT_JOBS)
        self.assertEqual(self.server.metric("adapterd_rejected_total", reason="OVERLOADED"), refused)
        self.assertLess(slowest(), PATIENCE / 10)
        self.assertLess(self.anonymous(), before + GROWTH)
        until(lambda: self.server.metric("adapterd_inflight_bytes") == 0, "requests to end")
        client.apply(request)

    def slowest_health_check(self):
        """Asks again and again beside what follows; the result is called for the longest seconds so far."""
        channel = self.server.connect().channel
        check = channel.unary_unary("/grpc.health.v1.Health/Check",
                                    health_pb2.HealthCheckRequest.SerializeToString,
                                    health_pb2.HealthCheckResponse.FromString)
        stop, seconds = threading.Event(), [0.0]

        def ask():
            while not stop.wait(0.005):
                begin = time.monotonic()
                check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
                seconds.append(time.monotonic() - begin)

        thread = threading.Thread(target=ask)
        self.addCleanup(thread.join)
        self.addCleanup(stop.set)
        thread.start()
        return lambda: max(seconds)

    def anonymous(self):
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024


if __name__ == "__main__":
    unittest.main()
