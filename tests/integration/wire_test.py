"""Requests of the data plane as bytes that no generated code writes, against those that it writes.

The server reads tensors off the wire by itself: whatever means the same is answered the same, to the
byte, and what is no message is refused as one.
"""
import itertools
import sys
import unittest

import numpy as np

from adapters import Q0, write_adapter
from harness import PATIENCE, ServerTest, apply_request, merge_request
from tensors import array, from_proto
from wire import (BYTES, END, FIXED32, START, UNKNOWN, VARINT, delimited, fields_of, group, number,
                  tag, varint)
from adapterd.v1 import merge_service_pb2, projection_service_pb2

APPLY = "/adapterd.v1.ProjectionService/ApplyProjection"
MERGE = "/adapterd.v1.MergeService/Merge"
INVALID = "INVALID_ARGUMENT/INVALID_FIELD"
X = array(np.arange(24).reshape(3, 8) / 4)
BASE = array(np.arange(18).reshape(3, 6), "BF16")
WEIGHT = array(np.arange(48).reshape(6, 8) / 8, "F16")
BIAS = array(np.arange(6))


def parts_of(value):
    """dtype, shape and data of an Array, each as the bytes of its field."""
    return fields_of(value.proto())


class WireTest(ServerTest):
    def setUp(self):
        root = self.folder()
        write_adapter(root / "a")
        self.socket = self.folder() / "socket"
        self.server = self.start(f"--adapter-root={root}", "--load=a=a",
                                 f"--unix-socket={self.socket}")
        self.client = self.server.client
        self.request = apply_request("a", Q0, X.proto(), BASE.proto())
        self.merge = merge_request("a", Q0, WEIGHT.proto(), bias=BIAS.proto())

    def send(self, method, content, client=None):
        """The bytes of the reply to these bytes."""
        return (client or self.client).channel.unary_unary(method)(content, timeout=PATIENCE)

    def same_apply(self, content, like=None):
        like = self.request if like is None else like
        self.assertEqual(projection_service_pb2.ApplyProjectionRequest.FromString(content), like,
                         "the test's bytes do not mean what the test says")
        self.assertEqual(self.send(APPLY, content), self.send(APPLY, like.SerializeToString()))

    def same_merge(self, content, like=None):
        like = self.merge if like is None else like
        self.assertEqual(merge_service_pb2.MergeRequest.FromString(content), like)
        self.assertEqual(self.send(MERGE, content), self.send(MERGE, like.SerializeToString()))


class ApplyTest(WireTest):
    def rest(self):
        """All fields but the input."""
        rest = projection_service_pb2.ApplyProjectionRequest.FromString(
            self.request.SerializeToString())
        rest.ClearField("input")
        return rest.SerializeToString()

    def test_replies_are_those_of_the_generated_stub(self):
        reply = self.client.apply(self.request)
        self.assertEqual(self.send(APPLY, self.request.SerializeToString()),
                         reply.SerializeToString(deterministic=True))
        self.assertEqual(from_proto(reply.outputs[0].output).shape, (3, 6))

    def test_fields_in_every_order(self):
        for order in itertools.permutations(fields_of(self.request)):
            self.same_apply(b"".join(order))
        for order in itertools.permutations(parts_of(X)):
            self.same_apply(delimited(15, b"".join(order)) + self.rest())

    def test_repeated_scalars_and_messages_are_merged(self):
        dtype, shape, data = parts_of(X)
        other = delimited(15, bytes(12))
        self.same_apply(self.rest() + delimited(15, number(1, 2) + other + data +
                                                shape + dtype))
        self.same_apply(self.rest() + delimited(15, data + other) +
                        delimited(15, shape + data) + delimited(15, dtype))
        unpacked = b"".join(number(2, size) for size in X.shape)
        self.same_apply(self.rest() + delimited(15, dtype + unpacked + data))
        split_shape = delimited(2, varint(3)) + number(2, 8)
        self.same_apply(self.rest() + delimited(15, split_shape + data + dtype))

    def test_unknown_fields_at_every_level(self):
        dtype, shape, data = parts_of(X)
        input_tensor = delimited(15, UNKNOWN + dtype + UNKNOWN + data + shape + UNKNOWN)
        content = UNKNOWN + self.rest() + input_tensor + UNKNOWN
        plain = self.send(APPLY, self.request.SerializeToString())
        self.assertEqual(self.send(APPLY, content), plain)
        base = delimited(15, UNKNOWN + BASE.proto().SerializeToString())
        module = self.request.projections[0].module.SerializeToString()
        projection = delimited(14, UNKNOWN + delimited(1, UNKNOWN + module) + base)
        adapter = delimited(1, self.request.adapter.SerializeToString() + UNKNOWN)
        self.assertEqual(self.send(APPLY, input_tensor + projection + adapter), plain)

    def test_numbers_longer_than_they_need_to_be(self):
        shape = parts_of(X)[1]
        for size in range(2, 6):
            long_data = tag(15, BYTES, size) + varint(len(X.tobytes()), 6 - size) + X.tobytes()
            body = number(1, 1, 2 * size) + shape + long_data
            self.same_apply(self.rest() + delimited(15, body, size))

    def test_data_in_groups_or_of_other_types_is_none(self):
        dtype, shape, data = parts_of(X)
        noise = group(15, data) + number(15, 7) + tag(15, FIXED32) + b"abcd"
        plain = self.send(APPLY, self.request.SerializeToString())
        self.assertEqual(self.send(APPLY, self.rest() + noise + delimited(
            15, noise + dtype + shape + data + noise)), plain)

    def test_no_data_and_no_rows(self):
        for x in (np.zeros((0, 8)), np.zeros((2, 0, 8))):
            like = apply_request("a", Q0, array(x).proto())
            rest = like.SerializeToString()
            self.same_apply(rest, like)
            self.same_apply(delimited(15, delimited(15, b"dropped")) + rest +
                            delimited(15, delimited(15, b"")), like)
            self.assertEqual(from_proto(self.client.apply(like).outputs[0].output).shape,
                             (*x.shape[:-1], 6))
        emptied = self.request.SerializeToString() + delimited(15, delimited(15, b""))
        failure = self.refused(INVALID, self.send, APPLY, emptied, field="input")
        self.assertIn("data", failure.message)

    def test_readable_values(self):
        like = apply_request("a", Q0, X.readable(), BASE.readable())
        self.same_apply(like.SerializeToString(), like)
        unpacked = b"".join(tag(3, FIXED32) + value.tobytes() for value in X.raw.ravel())
        dtype, shape, _ = fields_of(X.readable())
        rest = b"".join(fields_of(like)[:-1])
        self.same_apply(rest + delimited(15, unpacked + dtype + shape), like)
        reply = self.client.apply(like)
        self.assertEqual((len(reply.outputs[0].output.f32_values),
                          reply.outputs[0].output.data), (18, b""))
        both = rest + delimited(15, X.readable().SerializeToString() + parts_of(X)[2])
        self.refused(INVALID, self.send, APPLY, both, field="input")

    def test_a_unix_socket_takes_the_same_bytes(self):
        client = self.server.connect(f"unix:{self.socket}")
        for content in (self.request.SerializeToString(), self.rest() + delimited(
                15, UNKNOWN + b"".join(reversed(parts_of(X))))):
            self.assertEqual(self.send(APPLY, content, client), self.send(APPLY, content))
        self.refused(INVALID, self.send, APPLY, b"\xff", client)
        large = apply_request("a", Q0, array(np.arange(80000).reshape(10000, 8) % 7).proto())
        self.assertEqual(client.apply(large), self.client.apply(large))


class MergeTest(WireTest):
    def test_fields_in_every_order(self):
        for order in itertools.permutations(fields_of(self.merge)):
            self.same_merge(b"".join(order))

    def test_repeated_and_long_and_unknown(self):
        whole = self.merge.SerializeToString()
        dtype, shape, data = parts_of(WEIGHT)
        rest = b"".join(fields_of(self.merge)[:-1])
        self.same_merge(rest + delimited(15, delimited(15, b"x") + data + dtype) +
                        delimited(15, shape, 5))
        self.same_merge(delimited(15, bytes(0)) + whole)
        self.assertEqual(self.send(MERGE, UNKNOWN + rest + delimited(
            15, UNKNOWN + shape + UNKNOWN + data + dtype)), self.send(MERGE, whole))

    def test_a_bias_with_unknown_fields_comes_back_without_them(self):
        """The adapter leaves it alone; a module that it does not know leaves the weight alone too."""
        for fields in ({}, {"skip_untargeted": True}):
            path = "model.layers.9.x" if fields else Q0
            like = merge_request("a", path, WEIGHT.proto(), bias=BIAS.proto(), **fields)
            plain = self.send(MERGE, like.SerializeToString())
            for place in (14, 15):
                content = like.SerializeToString() + delimited(place, UNKNOWN)
                self.assertEqual(self.send(MERGE, content), plain)
            reply = merge_service_pb2.MergeResponse.FromString(plain)
            self.assertEqual(reply.bias, BIAS.proto())

    def test_a_bias_in_readable_form_comes_back_with_its_type(self):
        readable = BIAS.readable()
        like = merge_request("a", Q0, WEIGHT.proto(), bias=readable)
        like.bias.ClearField("dtype")
        self.assertEqual(self.client.merge(like).bias, readable)

    def test_no_bytes_where_a_weight_is_needed(self):
        emptied = self.merge.SerializeToString() + delimited(15, delimited(15, b""))
        self.refused(INVALID, self.send, MERGE, emptied, field="weight")


class MalformedTest(WireTest):
    # Bytes that are no message wherever a message may stand.
    BROKEN = {
        "half a tag": b"\xfa",
        "a tag alone": tag(15, BYTES),
        "a length beyond the end": tag(15, BYTES) + varint(5) + b"four",
        "a length of 2 GiB": tag(15, BYTES) + varint(2 ** 31 - 1) + b"four",
        "a length of 2^35": tag(15, BYTES) + varint(2 ** 35 - 1) + b"four",
        "a length of six bytes": tag(15, BYTES) + varint(0, 6),
        "a tag of six bytes": tag(100, VARINT, 6) + b"\1",
        "a number of eleven bytes": tag(100, VARINT) + varint(1, 11),
        "field zero": b"\0\0",
        "wire type 6": varint(100 << 3 | 6),
        "wire type 7": varint(100 << 3 | 7),
        "an open group": tag(100, START) + number(1, 1),
        "a group that ends as another": tag(100, START) + tag(101, END),
        "the end of a group": tag(100, END),
        "groups without end": tag(1, START) * 200,
        "half a number": tag(100, FIXED32) + b"abc",
    }

    def test_no_message_at_any_level(self):
        around = {APPLY: (b"", self.request.SerializeToString()),
                  MERGE: (b"", self.merge.SerializeToString())}
        levels = {APPLY: ((), (15,), (14,), (14, 15), (14, 1), (1,), (2, 2)),
                  MERGE: ((), (15,), (14,), (2,), (1,))}
        for (name, broken), method in itertools.product(self.BROKEN.items(), (APPLY, MERGE)):
            for path, before in itertools.product(levels[method], around[method]):
                with self.subTest(name, method=method, path=path):
                    content = broken
                    for field in reversed(path):
                        content = delimited(field, content)
                    failure = self.refused(INVALID, self.send, method, before + content)
                    self.assertIn("is not a valid", failure.message)

    def test_text_that_is_not_utf8(self):
        self.refused(INVALID, self.send, APPLY, delimited(1, delimited(1, b"\xff")))
        self.refused(INVALID, self.send, MERGE, delimited(2, delimited(1, b"\xc3\x28")))

    def test_every_truncation_is_refused_and_the_server_lives_on(self):
        for method, request in ((APPLY, self.request), (MERGE, self.merge)):
            whole = request.SerializeToString()
            right = self.send(method, whole)
            ends = {0, *itertools.accumulate(map(len, fields_of(request)))}
            for size in range(len(whole)):
                failure = self.refused(INVALID, self.send, method, whole[:size])
                # Between two fields it is a message, only not one that makes sense.
                self.assertEqual("is not a valid" in failure.message, size not in ends, size)
            self.assertEqual(self.send(method, whole), right)

    def test_refusals_hold_no_memory(self):
        broken = delimited(15, delimited(15, bytes(1 << 20))) + b"\xff"
        for _ in range(50):
            self.refused(INVALID, self.send, APPLY, broken)
        self.assertEqual(self.server.metric("adapterd_inflight_bytes"), 0)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
