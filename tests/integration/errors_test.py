"""Every refusal through the real binary: code, reason, metadata, and nothing changed by it."""
import json
import os
import struct
import sys
import unittest

import numpy as np

from adapters import (Q0, Q1, SMALL, V0, config_of, tensors_of, write_adapter, write_files)
from harness import ServerTest, apply_request, merge_request
from tensors import array, safetensors_bytes
from adapterd.v1 import (adapter_pb2, merge_service_pb2, projection_service_pb2, tensor_pb2)

FIELD = "INVALID_ARGUMENT/INVALID_FIELD"
SHAPE = "INVALID_ARGUMENT/SHAPE_MISMATCH"
DTYPE = "INVALID_ARGUMENT/UNSUPPORTED_DTYPE"
CONFIG = "INVALID_ARGUMENT/MALFORMED_CONFIG"
FILE = "INVALID_ARGUMENT/MALFORMED_TENSOR_FILE"
ADAPTER = "INVALID_ARGUMENT/INVALID_ADAPTER"
UNSUPPORTED = "INVALID_ARGUMENT/UNSUPPORTED_ADAPTER"
UNSAFE = "INVALID_ARGUMENT/UNSAFE_FORMAT"
OUTSIDE = "INVALID_ARGUMENT/PATH_OUTSIDE_ROOT"
NO_SOURCE = "NOT_FOUND/SOURCE_NOT_FOUND"
NO_ADAPTER = "NOT_FOUND/ADAPTER_NOT_FOUND"
BUDGET = "RESOURCE_EXHAUSTED/MEMORY_BUDGET_EXCEEDED"
TOO_LARGE = "RESOURCE_EXHAUSTED/MESSAGE_TOO_LARGE"

BAD_NAMES = ["", "-a", ".a", "a/b", "a b", "a:b", "a\n", "a\0b", "\u00e4", "x" * 129, "a@b"]
A0 = f"base_model.model.{Q0}.lora_A.weight"
B0 = f"base_model.model.{Q0}.lora_B.weight"


class Refusals(ServerTest):
    """A server with one good adapter, "good", that every refusal must leave as it was."""

    def setUp(self):
        self.root = self.folder() / "root"
        self.truth = write_adapter(self.root / "good")
        self.server = self.start(f"--adapter-root={self.root}", *self.flags())
        self.client = self.server.client
        self.client.load("good", "good")
        self.before = self.state()

    def flags(self):
        return []

    def state(self):
        """What a refusal may not change: all but the counters of use."""
        listing = self.client.list(view=adapter_pb2.ADAPTER_VIEW_FULL)
        for adapter in listing.adapters:
            adapter.ClearField("use_count")
            adapter.ClearField("last_use_time")
        return self.server.adapter_bytes(), listing

    def refused(self, status, call, *arguments, **metadata):
        failure = super().refused(status, call, *arguments, **metadata)
        self.assertEqual(self.state(), self.before, "a refusal changed something")
        return failure

    def refuse_load(self, status, source, says="", **metadata):
        load = lambda: self.client.load("new", source)
        self.assertIn(says, self.refused(status, load, **metadata).message)


class NamesAndFields(Refusals):
    def test_a_bad_name_is_refused_wherever_a_name_is_taken(self):
        for name in BAD_NAMES:
            with self.subTest(name):
                self.refused(FIELD, self.client.load, name, "good", field="name", actual=None)
                self.refused(FIELD, self.client.validate, name, "good", field="name")
                self.refused(FIELD, self.client.get, name, field="name")
                self.refused(FIELD, self.client.unload, name, field="name")
        for name in BAD_NAMES[:-1]:
            with self.subTest(name):
                request = apply_request(name, Q0, array(np.zeros((1, 8))).proto())
                self.refused(FIELD, self.client.apply, request, field="adapter.name")

    def test_names_at_the_limits_are_taken(self):
        for name in ("x" * 128, "_", "0", "A.b-c_9"):
            self.assertEqual(self.client.load(name, "good").adapter.name, name)

    def test_unknown_adapters_are_not_found(self):
        self.refused(NO_ADAPTER, self.client.get, "other", adapter="other")
        self.refused(NO_ADAPTER, self.client.unload, "other", adapter="other")
        reply = self.client.unload("other", allow_missing=True)
        self.assertEqual((reply.freed_bytes, reply.freed), (0, False))

    def test_bases_that_are_not_there_and_heads_that_cannot_be_are_refused(self):
        self.refused("NOT_FOUND/BASE_MODEL_NOT_FOUND",
                     lambda: self.client.load("new", "good", hosted_base="x"),
                     field="hosted_base")
        self.refused(FIELD, lambda: self.client.load(
            "new", "good", head_counts=adapter_pb2.HeadCounts(num_attention_heads=4)),
                     field="head_counts.num_key_value_heads")

    def test_digests_bases_and_options_that_differ_are_refused(self):
        other = "0" * 64
        self.refused("FAILED_PRECONDITION/DIGEST_MISMATCH", lambda: self.client.load(
            "new", "good", expected_digest=other), expected=other, actual=self.truth.revision())
        self.refused(FIELD, lambda: self.client.load("new", "good", expected_digest="ABC"),
                     field="expected_digest")
        self.refused("INVALID_ARGUMENT/BASE_MODEL_MISMATCH", lambda: self.client.load(
            "new", "good", base_model="other"), expected="other", actual="tiny")
        self.refused("ALREADY_EXISTS/ADAPTER_EXISTS", lambda: self.client.load(
            "good", "good", labels={"a": "b"}), adapter="good")
        self.refused(FIELD, lambda: self.client.load("new", "good", labels={"": "b"}),
                     field="labels")

    def test_views_that_there_are_not_are_refused(self):
        for call in (lambda: self.client.load("new", "good", view=3),
                     lambda: self.client.validate("new", "good", view=3),
                     lambda: self.client.get("good", view=-1), lambda: self.client.list(view=3)):
            self.refused(FIELD, call, field="view")

    def test_listings_refuse_pages_that_nobody_gave_out(self):
        self.refused(FIELD, lambda: self.client.list(page_size=-1), field="page_size")
        self.refused(FIELD, lambda: self.client.list(page_token="forged"), field="page_token")
        self.client.load("more", "good")
        self.before = self.state()
        token = self.client.list(page_size=1).next_page_token
        self.assertEqual(self.client.list(page_size=1, page_token=token).adapters[0].name, "more")
        self.refused(FIELD, lambda: self.client.list(page_token=token, name_prefix="m"),
                     field="page_token")

    def test_a_pinned_adapter_is_unloaded_only_with_force(self):
        self.client.load("pinned", "good", pinned=True)
        self.before = self.state()
        self.refused("FAILED_PRECONDITION/ADAPTER_PINNED", self.client.unload, "pinned",
                     adapter="pinned")
        self.refused("ABORTED/REVISION_MISMATCH", lambda: self.client.unload(
            "good", revision="0" * 64), adapter="good", actual=self.truth.revision())
        self.assertTrue(self.client.unload("pinned", force=True).freed)


class Sources(Refusals):
    def test_paths_never_leave_the_root(self):
        outside = write_adapter(self.root.parent / "outside")
        self.assertTrue(outside.modules)
        (self.root / "link").symlink_to(self.root.parent / "outside")
        (self.root / "relative").symlink_to("../outside")
        mixed = write_files(self.root / "mixed", config_of(SMALL), None)
        (mixed / "adapter_model.safetensors").symlink_to(
            self.root.parent / "outside/adapter_model.safetensors")
        for source in ("..", "../outside", "good/../../outside", "good/..", "/", "/etc/passwd",
                       str(self.root / "good"), "link", "relative", "mixed"):
            with self.subTest(source):
                self.refuse_load(OUTSIDE, source)
        (self.root / "inside").symlink_to("good")
        self.assertEqual(self.client.load("inside", "inside").adapter.revision,
                         self.truth.revision())

    def test_what_is_no_folder_with_an_adapter_is_refused(self):
        (self.root / "empty").mkdir()
        write_files(self.root / "no-config", None, tensors_of(SMALL))
        write_files(self.root / "no-weights", config_of(SMALL), None)
        os.mkfifo(self.root / "fifo")
        write_files(self.root / "fifo-inside", config_of(SMALL), None)
        os.mkfifo(self.root / "fifo-inside/adapter_model.safetensors")
        (self.root / "file.txt").write_text("no adapter")
        for source, status in (
                ("missing", NO_SOURCE), ("empty", NO_SOURCE), ("no-config", NO_SOURCE),
                ("no-weights", NO_SOURCE), ("fifo", NO_SOURCE), ("fifo-inside", NO_SOURCE),
                ("good/adapter_config.json/x", NO_SOURCE), ("x" * 300, NO_SOURCE),
                ("file.txt", FILE),
                ("", FIELD), ("a\0b", FIELD), ("x" * 5000, FIELD)):
            with self.subTest(source[:40]):
                self.refuse_load(status, source)

    def test_pickles_are_never_opened(self):
        pickle = b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R."
        write_files(self.root / "bin", config_of(SMALL), pickle, "adapter_model.bin")
        write_files(self.root / "pt", config_of(SMALL), pickle, "weights.pt")
        for source in ("bin", "pt", "bin/adapter_model.bin", "pt/weights.pt"):
            with self.subTest(source):
                self.refuse_load(UNSAFE, source)


class Content(Refusals):
    def refuse_folder(self, status, config, weights, says="", **metadata):
        write_files(self.root / "new", config, weights)
        self.refuse_load(status, "new", says, adapter="new", **metadata)

    def test_broken_configs_are_refused_with_the_key(self):
        weights = tensors_of(SMALL)
        for change in ({"r": 0}, {"r": None}, {"r": "2"}, {"r": -1}, {"lora_alpha": None},
                       {"lora_alpha": "3"}, {"target_modules": []},
                       {"target_modules": ...}, {"target_modules": 7}, {"peft_type": ...},
                       {"use_rslora": "yes"}, {"rank_pattern": [1]}):
            key = next(iter(change))
            with self.subTest(change):
                self.refuse_folder(CONFIG, config_of(SMALL, **change), weights, key)
        for text in ("", "{", "[]", "null", "\ufeff{}", '{"peft_type": "LORA",}'):
            with self.subTest(text):
                self.refuse_folder(CONFIG, text, weights)
        for change in ({"peft_type": "LOHA"}, {"use_qalora": True},
                       {"alora_invocation_tokens": [1]}, {"init_lora_weights": "pissa"},
                       {"brand_new_switch": True}):
            key = next(iter(change))
            with self.subTest(change):
                self.refuse_folder(UNSUPPORTED, config_of(SMALL, **change), weights, key)
        self.refuse_folder(ADAPTER, config_of(SMALL, use_dora=True), weights, "magnitude")

    def test_tensors_that_are_no_pairs_are_refused_by_name(self):
        good = tensors_of(SMALL)
        for status, changes, tensor in (
                (ADAPTER, {A0: None}, B0), (ADAPTER, {B0: None}, A0),
                (ADAPTER, {B0: array(np.ones((6, 3)))}, B0),
                (ADAPTER, {A0: array(np.ones((3, 8))), B0: array(np.ones((6, 3)))}, A0),
                (ADAPTER, {A0: array(np.ones((2, 8, 1)))}, A0),
                (ADAPTER, {A0: array(np.ones((0, 8)))}, A0),
                (ADAPTER, {"extra": array(np.ones(3))}, "extra"),
                (ADAPTER, {A0.replace("q_proj", "k_proj"): array(np.ones((2, 8)))},
                 A0.replace("q_proj", "k_proj")),
                (DTYPE, {A0: array(np.ones((2, 8)), "I8")}, A0),
                (DTYPE, {A0: array(np.ones((2, 8)), "F64")}, A0),
                ("INVALID_ARGUMENT/NON_FINITE_WEIGHTS", {A0: array(np.full((2, 8), np.nan))}, A0),
                ("INVALID_ARGUMENT/NON_FINITE_WEIGHTS",
                 {B0: array(np.where(np.eye(6, 2) > 0, -np.inf, 1), "BF16")}, B0)):
            tensors = {k: v for k, v in {**good, **changes}.items() if v is not None}
            with self.subTest(status=status, tensor=tensor):
                self.refuse_folder(status, config_of(SMALL), tensors, tensor, tensor=tensor,
                                   file="new/adapter_model.safetensors")
        self.refuse_folder(ADAPTER, config_of(SMALL), {}, "pair")

    def test_broken_weight_files_are_refused_before_anything_is_believed(self):
        good = safetensors_bytes(tensors_of(SMALL))
        (size,) = struct.unpack_from("<Q", good)
        header = json.loads(good[8:8 + size])

        def changed(**fields):
            text = json.dumps({**header, A0: {**header[A0], **fields}}).encode()
            return struct.pack("<Q", len(text)) + text + good[8 + size:]

        begin, end = header[A0]["data_offsets"]
        double = b'{"a": 1, "a": 2}'
        for what, content in (
                ("empty", b""), ("short", good[:5]), ("no data", good[:8 + size]),
                ("truncated", good[:-1]), ("trailing byte", good + b"\0"),
                ("header beyond the file", struct.pack("<Q", 1 << 40) + good[8:]),
                ("header of all bits", b"\xff" * 8 + good[8:]),
                ("no JSON", struct.pack("<Q", 4) + b"oops" + good[8:]),
                ("a key twice", struct.pack("<Q", len(double)) + double),
                ("overlap", changed(data_offsets=[begin + 4, end + 4])),
                ("offset beyond 64 bits", changed(data_offsets=[begin, 2**64 + end])),
                ("shape that overflows", changed(shape=[2**62, 8])),
                ("shape without its data", changed(shape=[3, 8])),
                ("negative shape", changed(shape=[-2, -8])),
                ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:"
                 + b"0" * 64 + b"\nsize 5\n")):
            with self.subTest(what):
                self.refuse_folder(FILE, config_of(SMALL), content,
                                   file="new/adapter_model.safetensors")
        self.refuse_folder(DTYPE, config_of(SMALL), changed(dtype="F33"), "F33", tensor=A0)

    def test_a_hostile_name_does_not_make_the_error_large(self):
        for status, length in ((ADAPTER, 300), (FILE, 40000)):
            tensors = {**tensors_of(SMALL), "\u00e4\u0001" * (length // 2): array(np.ones(2))}
            self.refuse_folder(status, config_of(SMALL), tensors, tensor=None)


class Projections(Refusals):
    def setUp(self):
        super().setUp()
        self.x = array(np.arange(16).reshape(2, 8))

    def refuse(self, status, request, says="", **metadata):
        self.assertIn(says, self.refused(status, self.client.apply, request, **metadata).message)

    def request(self, **fields):
        request = apply_request("good", Q0, self.x.proto())
        for key, value in fields.items():
            request.ClearField(key)
            if isinstance(value, list):
                getattr(request, key).extend(value)
            elif value is not None:
                getattr(request, key).CopyFrom(value)
        return request

    def test_tensors_that_contradict_themselves_are_refused(self):
        T, F32 = tensor_pb2.Tensor, tensor_pb2.DATA_TYPE_F32
        data = self.x.tobytes()
        for status, tensor in (
                (FIELD, None),
                (FIELD, T(shape=[2, 8])),
                (FIELD, T(dtype=F32, shape=[2, 8], data=data, f32_values=[1.0] * 16)),
                (DTYPE, T(shape=[2, 8], data=data)),
                (DTYPE, T(dtype=99, shape=[2, 8], data=data)),
                (DTYPE, T(shape=[2, 8], int64_values=[1] * 16)),
                (DTYPE, T(dtype=tensor_pb2.DATA_TYPE_I32, shape=[2, 8], data=data)),
                (SHAPE, T(dtype=F32, shape=[2, 8], data=data[:-1])),
                (SHAPE, T(dtype=F32, shape=[2, 9], data=data)),
                (SHAPE, T(dtype=F32, shape=[-2, -8], data=data)),
                (SHAPE, T(dtype=F32, shape=[1 << 62, 8], data=data)),
                (SHAPE, T(shape=[2, 8], f32_values=[1.0] * 15)),
                (SHAPE, T(shape=[], f32_values=[1.0])),
                (SHAPE, T(dtype=F32, shape=[4, 4], data=data))):
            with self.subTest(str(tensor)[:80]):
                self.refuse(status, self.request(input=tensor), "input")

    def test_base_outputs_must_fit_the_rows_and_the_module(self):
        for shape in ((1, 6), (3, 6), (2, 5), (6,), (2, 6, 1)):
            with self.subTest(shape):
                base = array(np.zeros(shape)).proto()
                self.refuse(SHAPE, apply_request("good", Q0, self.x.proto(), base))

    def test_modules_must_be_named_and_targeted(self):
        S = adapter_pb2.ModuleSelector
        for status, selector, says in (
                (FIELD, S(), ""), (FIELD, S(path=Q0, target="q_proj"), ""),
                (FIELD, S(path=Q0, layer=0), ""), (FIELD, S(target="q_proj"), Q1),
                ("NOT_FOUND/MODULE_NOT_TARGETED", S(path="lm_head"), "lm_head"),
                ("NOT_FOUND/MODULE_NOT_TARGETED", S(target="q_proj", layer=7), "q_proj"),
                ("NOT_FOUND/MODULE_NOT_TARGETED", S(target="proj", layer=0), "proj")):
            with self.subTest(str(selector)):
                projection = projection_service_pb2.Projection(module=selector)
                self.refuse(status, self.request(projections=[projection]), says, field=None)
        self.refuse(FIELD, self.request(projections=[]), "projections")

    def test_rows_and_adapters_must_add_up(self):
        ref, segment = adapter_pb2.AdapterRef, projection_service_pb2.Segment
        good = ref(name="good")
        for status, adapter, segments in (
                (FIELD, None, []), (FIELD, good, [segment(rows=2)]),
                (FIELD, None, [segment(rows=1)]), (FIELD, None, [segment(rows=3)]),
                (FIELD, None, [segment(rows=1), segment(rows=0)]),
                (FIELD, None, [segment(rows=-1), segment(rows=3)]),
                (FIELD, None, [segment(rows=2**62)] * 4),
                (FIELD, None, [segment(adapters=[good] * 17)]),
                (FIELD, None, [segment(rows=0)] * 1025),
                (FIELD, ref(name="good", weight=float("nan")), []),
                (FIELD, ref(name="good", weight=float("inf")), []),
                (FIELD, ref(name="good", revision="x"), []),
                (NO_ADAPTER, ref(name="other"), []),
                ("ABORTED/REVISION_MISMATCH", ref(name="good", revision="0" * 64), []),
                (NO_ADAPTER, None, [segment(rows=1, adapters=[good]),
                                    segment(rows=1, adapters=[ref(name="other")])])):
            with self.subTest(adapter=str(adapter), segments=str(segments)[:80]):
                self.refuse(status, self.request(adapter=adapter, segments=segments))


class Merges(Refusals):
    def test_weights_must_fit_the_module(self):
        good = array(np.zeros((6, 8)))
        for status, tensor, fields in (
                (SHAPE, array(np.zeros((8, 6))), {}), (SHAPE, array(np.zeros(48)), {}),
                (SHAPE, good, {"weight_layout": merge_service_pb2.WEIGHT_LAYOUT_IN_OUT}),
                (SHAPE, good, {"bias": array(np.zeros(5)).proto()}),
                (FIELD, good, {"weight_layout": 9}),
                (DTYPE, array(np.zeros((6, 8)), "I64"), {})):
            with self.subTest(fields or tensor.shape):
                self.refused(status, self.client.merge,
                             merge_request("good", Q0, tensor.proto(), **fields))
        empty = merge_request("good", Q0, good.proto())
        empty.ClearField("adapters")
        self.refused(FIELD, self.client.merge, empty, field="adapters")
        self.refused("NOT_FOUND/MODULE_NOT_TARGETED", self.client.merge,
                     merge_request("good", "lm_head", good.proto()), adapter="good")

    def test_a_result_beyond_the_dtype_is_refused_unless_it_is_wanted(self):
        weight = array(np.full((6, 8), 65504.0), "F16")
        request = merge_request("good", Q0, weight.proto())
        request.adapters[0].weight = 1e6
        self.refused("INVALID_ARGUMENT/NON_FINITE_RESULT", self.client.merge, request,
                     adapter="good", module=Q0)
        request.allow_non_finite = True
        self.assertGreater(self.client.merge(request).stats.non_finite_elements, 0)


class SmallLimits(Refusals):
    LIMIT = 4096

    def flags(self):
        return [f"--max-message-size={self.LIMIT}", "--memory-budget=8KiB"]

    def test_what_does_not_fit_the_budget_is_refused_with_the_numbers(self):
        write_adapter(self.root / "large", {Q0: (64, 64, 16)})
        self.client.update("good", pinned=True)  # otherwise it would make room
        self.before = self.state()
        used = self.server.adapter_bytes()
        failure = self.refused(BUDGET, self.client.load, "large", "large", adapter="large",
                               needed_bytes=None, used_bytes=int(used), budget_bytes=8192)
        self.assertGreater(int(failure.metadata["needed_bytes"]), 8192 - used)
        self.refused(BUDGET, lambda: self.client.load("good", "large", replace=True))
        reply = self.client.validate("large", "large")
        self.assertEqual((reply.valid, reply.fits), (True, False))
        self.assertEqual(reply.memory_bytes, int(failure.metadata["needed_bytes"]))

    def test_a_message_over_the_limit_is_refused_in_both_directions(self):
        rows = self.LIMIT // (8 * 4)
        request = apply_request("good", Q0, array(np.zeros((rows, 8))).proto())
        failure = self.refused(TOO_LARGE, self.client.apply, request, expected=self.LIMIT,
                               actual=request.ByteSize())
        self.assertIn("request", failure.message)
        self.client.unload("good")
        write_adapter(self.root / "wide", {V0: (1, 512, 1)})
        self.client.load("wide", "wide")
        self.before = self.state()
        request = apply_request("wide", V0, array(np.zeros((4, 1))).proto())
        failure = self.refused(TOO_LARGE, self.client.apply, request, expected=self.LIMIT)
        self.assertIn("reply", failure.message)
        request = merge_request("good", Q0, array(np.zeros((64, 64))).proto())
        self.refused(TOO_LARGE, self.client.merge, request, actual=request.ByteSize())
        self.refused(TOO_LARGE, self.client.load, "a" * 5000, "good")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
