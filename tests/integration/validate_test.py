"""ValidateAdapter tells all that is wrong or suspicious at once, and changes nothing."""
import sys
import unittest

import grpc
import numpy as np

from adapters import Q0, Q1, SMALL, V0, V1, config_of, tensors_of, write_files
from cases_table import LOAD, entries, root_flags, source
from harness import FULL, ServerTest, failure_of
from tensors import Array, array
from adapterd.v1 import adapter_service_pb2

ERROR, WARNING = adapter_service_pb2.SEVERITY_ERROR, adapter_service_pb2.SEVERITY_WARNING
MAX_PROBLEMS = 1000


def key(path, factor):
    return f"base_model.model.{path}.lora_{factor}.weight"


def changed(tensor, value):
    """The tensor with `value` as its first element."""
    raw = tensor.raw.copy()
    raw.flat[0] = value
    return Array(tensor.dtype, raw)


class ValidateTest(ServerTest):
    def setUp(self):
        self.root = self.folder()
        self.server = self.start(f"--adapter-root={self.root}", f"--model-root={self.root}")
        self.client = self.server.client

    def tearDown(self):
        self.assertEqual(self.client.list().total_size, 0)
        self.assertEqual(self.server.adapter_bytes(), 0)

    def validate(self, tensors, **config):
        """The reply for SMALL with the given tensors (None: without that one) and config keys."""
        kept = {**tensors_of(SMALL), **tensors}
        write_files(self.root / "new", config_of(SMALL, **config),
                    {name: tensor for name, tensor in kept.items() if tensor is not None})
        return self.client.validate("new", "new")

    def check(self, reply, expected):
        """`expected`: {what the problem is about: reason}, errors alone."""
        found = {p.field or p.tensor: p.reason for p in reply.problems if p.severity == ERROR}
        self.assertEqual(found, expected)
        errors = [p for p in reply.problems if p.severity == ERROR]
        self.assertEqual(len(errors), len(expected), "a problem told twice")
        self.assertEqual(reply.valid, not expected)
        self.assertEqual(reply.HasField("adapter"), not expected)
        for problem in errors:
            about = problem.field or problem.tensor
            self.assertIn(about, problem.message)
            self.assertEqual(problem.file, "new/adapter_config.json" if problem.field
                             else "new/adapter_model.safetensors")
            if problem.tensor and "lora_" in problem.tensor:
                self.assertIn(problem.module, problem.tensor)
                self.assertNotEqual(problem.module, "")

    def test_a_sound_adapter_has_no_problem(self):
        self.check(self.validate({}), {})

    def test_five_planted_problems_are_five(self):
        stray = f"base_model.model.{Q0}.mystery"
        tensors = {key(Q0, "A"): Array("I8", np.ones((2, 8), np.int8)), key(V0, "B"): None,
                   stray: array(np.ones(3))}
        reply = self.validate(tensors, lora_alpha="16", use_future_maths=True)
        self.check(reply, {"lora_alpha": "MALFORMED_CONFIG",
                           "use_future_maths": "UNSUPPORTED_ADAPTER",
                           key(Q0, "A"): "UNSUPPORTED_DTYPE", key(V0, "A"): "INVALID_ADAPTER",
                           stray: "INVALID_ADAPTER"})

    def test_every_bad_value_is_told_also_beside_other_problems(self):
        own = tensors_of(SMALL)
        tensors = {key(Q0, "A"): changed(own[key(Q0, "A")], np.nan),
                   key(V1, "B"): changed(own[key(V1, "B")], -np.inf)}
        bad = {name: "NON_FINITE_WEIGHTS" for name in tensors}
        self.check(self.validate(tensors), bad)
        self.check(self.validate(tensors, use_future_maths=True),
                   {**bad, "use_future_maths": "UNSUPPORTED_ADAPTER"})

    def test_every_wrong_shape_is_told(self):
        wrong = {key(Q0, "A"): array(np.ones((3, 8))), key(V0, "B"): array(np.ones((4, 3))),
                 key(Q1, "A"): array(np.zeros(0)), key(V1, "A"): array(np.ones((2, 8, 1)))}
        reply = self.validate(wrong)
        self.assertEqual({p.module for p in reply.problems if p.severity == ERROR},
                         {Q0, V0, Q1, V1})
        self.assertEqual({p.reason for p in reply.problems}, {"INVALID_ADAPTER"})

    def test_a_base_model_that_cannot_be_opened_is_a_problem_of_a_source_that_can(self):
        write_files(self.root / "new", config_of(SMALL, use_future_maths=True), tensors_of(SMALL))
        for base, reason in (("nothing", "SOURCE_NOT_FOUND"), ("../x", "PATH_OUTSIDE_ROOT")):
            reply = self.client.validate("new", "new", base_checkpoint=base)
            found = {p.field: p.reason for p in reply.problems if p.severity == ERROR}
            self.assertEqual((reply.valid, found), (False, {
                "use_future_maths": "UNSUPPORTED_ADAPTER", "base_checkpoint": reason}))
            self.refused("NOT_FOUND/SOURCE_NOT_FOUND", lambda: self.client.validate(
                "new", "gone", base_checkpoint=base), file="gone")

    def test_nobody_reads_more_than_a_thousand_problems(self):
        stray = {f"stray.{i}": array(np.ones(1)) for i in range(MAX_PROBLEMS + 500)}
        reply = self.validate(stray, use_future_maths=True)
        self.assertEqual(len(reply.problems), MAX_PROBLEMS)
        self.assertIn("use_future_maths", {p.field for p in reply.problems})

    # What is let pass, but told: (tensors, config, what the message says, what it is about).
    SUSPICIOUS = {
        "a B of zeros, which changes nothing": (
            {key(Q0, "B"): array(np.zeros((6, 2)))}, {}, "zero", Q0),
        "a scale that no training uses": ({}, {"lora_alpha": 202}, "scale", Q0),
        "a rank above what the weight has": (
            {key(V0, "A"): array(np.ones((5, 8))), key(V0, "B"): array(np.ones((4, 5)))},
            {"rank_pattern": {V0: 5}}, "rank", V0),
        "values at the end of F16": (
            {key(Q1, "A"): array(np.full((2, 8), 65000.0), "F16"),
             key(Q1, "B"): array(np.ones((6, 2)), "F16")}, {}, "F16", Q1),
        "a base that nobody names": ({}, {"base_model_name_or_path": ...}, "base model", ""),
    }

    def test_what_is_suspicious_is_a_warning(self):
        for what, (tensors, config, says, module) in self.SUSPICIOUS.items():
            with self.subTest(what):
                reply = self.validate(tensors, **config)
                self.assertTrue(reply.valid, reply.problems)
                warnings = [p for p in reply.problems if p.severity == WARNING]
                self.assertEqual(len(warnings), len(reply.problems))
                self.assertTrue(any(says in p.message and module in p.message for p in warnings),
                                warnings)
                self.assertEqual(list(reply.adapter.warnings), [p.message for p in warnings])

    def test_a_warning_beside_an_error_is_told_too(self):
        reply = self.validate({key(Q0, "B"): array(np.zeros((6, 2)))},
                              base_model_name_or_path=..., use_future_maths=True)
        self.assertFalse(reply.valid)
        self.assertEqual({p.severity for p in reply.problems}, {ERROR, WARNING})


class FixturesTest(ServerTest):
    def setUp(self):
        self.client = self.start(*root_flags()).client

    def test_the_first_problem_is_what_load_refuses_with(self):
        for kind, name, (_, says) in entries("refuse"):
            with self.subTest(name):
                with self.assertRaises(grpc.RpcError) as caught:
                    self.client.load(name, source(kind, name))
                refusal = failure_of(caught.exception)
                try:
                    reply = self.client.validate(name, source(kind, name))
                except grpc.RpcError as error:  # only when there is nothing to open
                    failure = failure_of(error)
                    self.assertEqual(failure.status, "NOT_FOUND/SOURCE_NOT_FOUND")
                    self.assertTrue(refusal.message.startswith(failure.message), refusal.message)
                    continue
                first = next(p for p in reply.problems if p.severity == ERROR)
                self.assertEqual(first.reason, refusal.reason)
                self.assertIn(says, first.message)
                self.assertTrue(refusal.message.startswith(first.message), refusal.message)
                for field in ("file", "tensor", "module", "field"):
                    self.assertEqual(getattr(first, field), refusal.metadata.get(field, ""))

    def test_what_loads_is_described_as_it_will_be(self):
        for kind, name, _ in entries(LOAD):
            with self.subTest(name):
                reply = self.client.validate(name, source(kind, name))
                self.assertTrue(reply.valid and reply.fits, reply.problems)
                loaded = self.client.load(name, source(kind, name), view=FULL).adapter
                self.assertEqual(list(reply.adapter.modules), list(loaded.modules))
                self.assertEqual(list(reply.adapter.warnings), list(loaded.warnings))
                self.assertEqual([p.message for p in reply.problems], list(loaded.warnings))
                self.assertEqual(reply.adapter.revision, loaded.revision)
                self.assertGreaterEqual(reply.memory_bytes, loaded.memory_bytes)
                self.client.unload(name)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
