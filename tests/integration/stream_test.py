"""StreamProjections of the real binary: the same answers as ApplyProjection, and good ends."""
import json
import queue
import signal
import subprocess
import sys
import unittest

import grpc
import numpy as np

from adapters import HEAVY, Q0, exact_adapter, heavy_request, write_adapter
from harness import PATIENCE, ServerTest, apply_request, failure_of, find_tool, until
from tensors import array
from adapterd.v1 import projection_service_pb2

METHOD = "adapterd.v1.ProjectionService/StreamProjections"


class Stream:
    """One call, whose requests are sent when a test says so."""

    def __init__(self, client):
        self._requests = queue.Queue()
        self.call = client.projections.StreamProjections(iter(self._requests.get, None),
                                                         timeout=4 * PATIENCE)

    def send(self, request_id, request=None):
        self._requests.put(projection_service_pb2.StreamProjectionsRequest(
            request_id=request_id, request=request))

    def half_close(self):
        self._requests.put(None)

    def next(self):
        return next(self.call)

    def end(self):
        """The failure that ends the stream, after replies that are thrown away; None: it ended well."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return failure_of(error)
        return None


class StreamTest(ServerTest):
    def serve(self, *flags):
        self.root = self.folder()
        write_adapter(self.root / "a")
        write_adapter(self.root / "b", seed=1)
        exact_adapter(self.root / "heavy", HEAVY)
        exact_adapter(self.root / "wide", {Q0: (16, 16384, 16)})
        self.server = self.start(f"--adapter-root={self.root}", "--load=a=a", "--load=b=b",
                                 "--load=heavy=heavy", "--load=wide=wide", *flags)
        self.client = self.server.client

    def open(self):
        stream = Stream(self.server.connect())
        self.addCleanup(stream.call.cancel)
        self.addCleanup(stream.half_close)  # ends the thread that sends
        return stream

    @staticmethod
    def request(name="a", rows=1, dtype="F32", first=0):
        x = np.arange(first, first + rows * 8).reshape(rows, 8) % 11 / 4
        return apply_request(name, Q0, array(x, dtype).proto())

    def answers(self, stream, request_id, expected):
        reply = stream.next()
        self.assertEqual(reply.request_id, request_id)
        self.assertEqual(reply.response, expected)


class AnswersTest(StreamTest):
    def setUp(self):
        self.serve()

    def test_replies_are_those_of_the_unary_rpc_in_the_order_of_the_requests(self):
        requests = [self.request("ab"[i % 2], rows, dtype, i) for i, (rows, dtype) in enumerate(
            [(1, "F32"), (20000, "F32"), (3, "BF16"), (7000, "F16"), (16, "F32"), (1, "F16")] * 10)]
        expected = [self.client.apply(request) for request in requests]
        stream = self.open()
        for i, request in enumerate(requests):
            stream.send(i, request)
        stream.half_close()
        for i, reply in enumerate(expected):
            self.answers(stream, i, reply)
        self.assertIsNone(stream.end())

    def test_one_after_the_other(self):
        expected = self.client.apply(self.request())
        stream = self.open()
        for i in range(100):
            stream.send(i, self.request())
            self.answers(stream, i, expected)

    def test_replies_come_while_more_requests_are_to_come(self):
        """The first ones of a new stream too, which bring the call's metadata: none waits for the next request."""
        expected = self.client.apply(self.request())
        for _ in range(300):
            stream = Stream(self.client)
            self.addCleanup(stream.half_close)
            for i in range(8):
                stream.send(i, self.request())
            for i in range(8):
                self.answers(stream, i, expected)
            stream.half_close()
            self.assertIsNone(stream.end())

    def test_more_than_are_read_at_once_wait_at_the_client(self):
        expected = self.client.apply(self.request(rows=100))
        stream = self.open()
        for i in range(1000):
            stream.send(i, self.request(rows=100))
        stream.half_close()
        for i in range(1000):
            self.answers(stream, i, expected)
        self.assertIsNone(stream.end())

    def test_a_bad_request_fails_alone_and_as_the_unary_rpc_does(self):
        bad_shape = self.request()
        bad_shape.input.shape[1] = 9
        no_module = self.request()
        no_module.projections[0].module.path = "nowhere"
        expected = self.client.apply(self.request())
        stream = self.open()
        for i, request in enumerate([self.request("nobody"), bad_shape, no_module,
                                     projection_service_pb2.ApplyProjectionRequest()]):
            with self.assertRaises(grpc.RpcError) as caught:
                self.client.apply(request)
            failure = failure_of(caught.exception)
            stream.send(2 * i, request)
            stream.send(2 * i + 1, self.request())
            reply = stream.next()
            self.assertEqual(reply.WhichOneof("result"), "error")
            self.assertEqual((reply.request_id, reply.error.reason, reply.error.message),
                             (2 * i, failure.reason, failure.message))
            self.assertEqual(reply.error.code, caught.exception.code().value[0])
            self.answers(stream, 2 * i + 1, expected)
        stream.send(9)
        self.assertEqual(stream.next().error.reason, "INVALID_FIELD")
        stream.half_close()
        self.assertIsNone(stream.end())

    def test_what_is_no_message_ends_the_stream_after_the_replies_before_it(self):
        message = projection_service_pb2.StreamProjectionsRequest(
            request_id=7, request=self.request(rows=20000)).SerializeToString()
        call = self.client.channel.stream_stream(f"/{METHOD}")(
            iter([message, b"\xff\xff", message]), timeout=PATIENCE)
        reply = projection_service_pb2.StreamProjectionsResponse.FromString(next(call))
        self.assertEqual((reply.request_id, reply.WhichOneof("result")), (7, "response"))
        failure = self.refused("INVALID_ARGUMENT/INVALID_FIELD", next, call)
        self.assertIn("StreamProjectionsRequest", failure.message)

    def test_a_stream_that_is_cancelled_leaves_nothing_behind(self):
        for count in (0, 1, 30, 200):
            stream = self.open()
            for i in range(count):
                stream.send(i, self.request(rows=2000))
            if count > 1:
                stream.next()
            stream.call.cancel()
        until(lambda: self.server.metric("adapterd_inflight_bytes") == 0 and self.server.metric(
            "adapterd_buffer_bytes", state="used") == 0, "the memory to come back")

    def test_grpcurl_streams_by_reflection(self):
        grpcurl = find_tool(self, "grpcurl")
        module = {"module": {"path": Q0}}
        request = {"adapter": {"name": "a"}, "projections": [module],
                   "input": {"shape": [1, 8], "f32Values": [1] * 8}}
        messages = [{"requestId": 1, "request": request},
                    {"requestId": 2, "request": {**request, "adapter": {"name": "nobody"}}},
                    {"requestId": 3, "request": request}]
        done = subprocess.run(
            [grpcurl, "-plaintext", "-d", "\n".join(map(json.dumps, messages)), self.server.grpc,
             METHOD], capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(done.returncode, 0, done.stderr)
        decoder, text, replies = json.JSONDecoder(), done.stdout.strip(), []
        while text:
            reply, end = decoder.raw_decode(text)
            replies.append(reply)
            text = text[end:].strip()
        self.assertEqual([reply["request_id"] for reply in replies], ["1", "2", "3"])
        self.assertEqual(replies[0]["response"], replies[2]["response"])
        self.assertEqual(len(replies[0]["response"]["outputs"][0]["output"]["f32_values"]), 6)
        self.assertEqual(replies[1]["error"]["reason"], "ADAPTER_NOT_FOUND")
        self.assertEqual(replies[1]["error"]["code"], 5)


class OverloadTest(StreamTest):
    def test_what_finds_no_room_is_told_when_to_come_back(self):
        self.serve("--max-inflight-bytes=100000", "--threads=1")
        x = array(np.arange(64 * 64).reshape(64, 64) % 7).proto()
        heavy, _ = heavy_request(self.client, "heavy", x, 0.1)
        stream = self.open()
        for i in range(3):
            stream.send(i, self.request())
            self.assertTrue(stream.next().HasField("response"))
        # One request of more than the whole limit is let in, and keeps the others out.
        large = self.client.apply_later(apply_request(
            "heavy", Q0, array(np.zeros((20000, 64))).proto()))
        until(lambda: self.server.metric("adapterd_inflight_bytes") > 100000 or large.done(),
              "the large request to arrive")
        self.assertFalse(large.done(), "it is still there")
        failure = self.refused("UNAVAILABLE/OVERLOADED", self.client.apply, heavy)
        self.assertGreater(failure.retry_seconds, 0)
        stream.send(4, heavy)
        error = stream.next().error
        self.assertFalse(large.done(), "it was there all the time")
        self.assertEqual((error.code, error.reason),
                         (grpc.StatusCode.UNAVAILABLE.value[0], "OVERLOADED"))
        large.result()
        stream.send(5, self.request())
        self.assertTrue(stream.next().HasField("response"))


class DrainTest(StreamTest):
    def test_sigterm_ends_idle_streams_and_the_exit_is_clean(self):
        self.serve()
        stream = self.open()
        stream.send(1, self.request())
        stream.next()
        fresh = self.open()
        until(lambda: self.server.metric(
            "grpc_server_started_total", grpc_method="StreamProjections",
            grpc_service="adapterd.v1.ProjectionService") == 2, "both to stand")
        self.server.terminate()
        for each in (stream, fresh):
            failure = each.end()
            self.assertEqual(failure.status, "UNAVAILABLE/DRAINING")
            self.assertGreater(failure.retry_seconds, 0)
        self.assertEqual(self.server.wait(), (0, ""))
        self.assertNotIn("drain_timeout", self.server.stderr())

    def test_sigterm_leaves_time_for_what_was_read(self):
        self.serve("--threads=1", "--drain-timeout=45s")
        x = array(np.arange(64 * 64).reshape(64, 64) % 7).proto()
        heavy, _ = heavy_request(self.client, "heavy", x, 0.05)
        expected = self.client.apply(heavy)
        stream = self.open()
        size = len(heavy.SerializeToString())
        for i in range(20):
            stream.send(i, heavy)
        until(lambda: self.server.metric("adapterd_inflight_bytes") > 15 * size, "most to arrive")
        self.server.terminate()
        replies = 0
        with self.assertRaises(grpc.RpcError) as caught:
            for reply in stream.call:
                self.assertEqual((reply.request_id, reply.response), (replies, expected))
                replies += 1
        self.assertEqual(failure_of(caught.exception).status, "UNAVAILABLE/DRAINING")
        self.assertGreater(replies, 0)
        self.assertEqual(self.server.wait()[0], 0)
        self.assertNotIn("drain_timeout", self.server.stderr())

    def test_clients_that_do_not_read_do_not_hold_a_drain_up(self):
        """One with a single reply of 4 MiB on its way, and one with many behind it."""
        self.serve()
        request = apply_request("wide", Q0, array(np.ones((64, 16))).proto())
        before = self.server.metric("adapterd_apply_rows_total")
        stuck = [self.open(), self.open()]
        for stream, count in zip(stuck, (1, 10)):
            for i in range(count):
                stream.send(i, request)
        until(lambda: self.server.metric("adapterd_apply_rows_total") == before + 11 * 64,
              "all to be computed")
        self.server.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.server.process.wait(timeout=PATIENCE), 0)
        self.assertNotIn("drain_timeout", self.server.stderr())
        for stream in stuck:
            self.assertIn(stream.end().code, ("CANCELLED", "UNAVAILABLE"))
        self.server.wait()


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
