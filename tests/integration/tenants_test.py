"""Tenants' quotas, by the real binary."""
import sys
import unittest

import grpc
import numpy as np

from adapters import Q0, SMALL, exact_adapter
from harness import ServerTest, apply_request, failure_of, merge_request
from tensors import array
from adapterd.v1 import adapter_pb2, merge_service_pb2, projection_service_pb2, tensor_pb2

EXCEEDED = "RESOURCE_EXHAUSTED/QUOTA_EXCEEDED"
X = array(np.arange(8.0).reshape(1, 8)).proto()
BLUE = {"tenant": "blue"}


class TenantsTest(ServerTest):
    def serve(self, quota):
        root = self.folder()
        for i in range(3):
            exact_adapter(root / f"s{i}", SMALL, seed=i)
        self.server = self.start(f"--adapter-root={root}", f"--tenant-quota=blue={quota}")
        self.client = self.server.client

    def test_adapters_are_counted(self):
        self.serve("2,1GiB")
        for i in range(2):
            self.client.load(f"a{i}", f"s{i}", labels=BLUE)
        self.refused(EXCEEDED, lambda: self.client.load("a2", "s2", labels=BLUE), tenant="blue", quota="adapters")
        self.client.load("a2", "s2")
        self.refused(EXCEEDED, lambda: self.client.update("a2", mask=["labels"], labels=BLUE), tenant="blue")

    def test_bytes_are_counted(self):
        self.serve("10,1B")
        self.refused(EXCEEDED, lambda: self.client.load("a", "s0", labels=BLUE), tenant="blue", quota="bytes")
        self.assertEqual(len(self.client.list().adapters), 0)

    def stream(self, request):
        messages = [projection_service_pb2.StreamProjectionsRequest(request=request)]
        return next(self.client.projections.StreamProjections(iter(messages)))

    def merge_stream(self, name):
        start = merge_service_pb2.MergeStreamStart(
            module=adapter_pb2.ModuleSelector(path=Q0), shape=[SMALL[Q0][1], SMALL[Q0][0]],
            dtype=tensor_pb2.DATA_TYPE_F32, adapters=[adapter_pb2.AdapterRef(name=name)])
        data = bytes(4 * SMALL[Q0][1] * SMALL[Q0][0])
        list(self.client.merges.MergeStream(iter([
            merge_service_pb2.MergeStreamRequest(start=start),
            merge_service_pb2.MergeStreamRequest(rows=merge_service_pb2.WeightRows(data=data))])))

    def test_calls_are_counted_whatever_they_are(self):
        self.serve("10,1GiB,1")
        self.client.load("a", "s0", labels=BLUE)
        self.client.load("other", "s1")
        weight = array(np.zeros((SMALL[Q0][1], SMALL[Q0][0]))).proto()
        apply = lambda name: self.client.apply(apply_request(name, Q0, X))
        merge = lambda name: self.client.merge(merge_request(name, Q0, weight))
        for call in (apply, merge, self.merge_stream):
            with self.assertRaises(grpc.RpcError) as caught:
                for _ in range(10000):  # more than one a second
                    call("a")
            failure = failure_of(caught.exception)
            self.assertEqual((failure.status, failure.metadata["tenant"]), (EXCEEDED, "blue"))
        for _ in range(50):
            apply("other")
            merge("other")
            self.merge_stream("other")
        replies = [self.stream(apply_request("a", Q0, X)) for _ in range(200)]
        self.assertTrue(any(reply.WhichOneof("result") == "error" for reply in replies))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + ["-v"] + sys.argv[1:])
