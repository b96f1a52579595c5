"""ExportAdapter and GetAdapterTensors through the real binary, without PEFT: tests/peft has that."""
import shutil
import sys
import unittest

import grpc

from cases_table import LOAD, entries, root_flags, source
from harness import ServerTest, fixtures, until
from tensors import from_proto
from adapterd.v1 import adapter_pb2, adapter_service_pb2

FILES = {"adapter_config.json", "adapter_model.safetensors"}
Q0 = adapter_pb2.ModuleSelector(path="model.layers.0.self_attn.q_proj")


class ExportTest(ServerTest):
    def setUp(self):
        self.exports = self.folder()
        self.server = self.start(*root_flags(), f"--adapter-root=exports={self.exports}")
        self.client = self.server.client

    def test_an_export_of_an_export_has_the_same_bytes(self):
        for kind, name, _ in entries(LOAD):
            with self.subTest(name):
                self.client.load(name, source(kind, name))
                first = self.client.export(name, self.exports / name)
                self.client.load(f"{name}.again", f"exports:{name}")
                second = self.client.export(f"{name}.again", self.exports / f"{name}.again")
                self.assertEqual({path.name for path in first.iterdir()}, FILES)
                for file in FILES:
                    self.assertEqual((first / file).read_bytes(), (second / file).read_bytes())

    def test_plain_factors_keep_their_revision(self):
        loaded = self.client.load("q", source("peft/cases", "llama-qv")).adapter
        self.client.export("q", self.exports / "q", format=adapter_pb2.ADAPTER_FORMAT_PEFT)
        again = self.client.load("again", "exports:q").adapter
        self.assertEqual(again.revision, loaded.revision)

    def test_what_cannot_be_exported_is_refused(self):
        self.client.load("q", source("peft/cases", "llama-qv"))
        for status, fields in {
                "NOT_FOUND/ADAPTER_NOT_FOUND": {"name": "nobody"},
                "INVALID_ARGUMENT/INVALID_FIELD": {"name": "a/b"}}.items():
            request = adapter_service_pb2.ExportAdapterRequest(**fields)
            self.refused(status, lambda: list(self.client.adapters.ExportAdapter(request)))

    def test_a_client_that_goes_away_lets_go_of_the_adapter(self):
        self.client.load("q", source("peft/cases", "llama-all-linear"))
        for _ in range(20):
            stream = self.client.adapters.ExportAdapter(
                adapter_service_pb2.ExportAdapterRequest(name="q"))
            next(stream)
            stream.cancel()
        until(lambda: self.client.get("q").in_flight == 0, "the exports to let go")
        self.assertTrue(self.client.unload("q").freed)
        self.assertEqual(self.server.adapter_bytes(), 0)

    def test_tensors_are_those_of_the_module_asked_for(self):
        self.client.load("q", source("peft/cases", "llama-qv"))
        reply = self.client.tensors("q", Q0)
        self.assertEqual(from_proto(reply.lora_a).values().shape,
                         from_proto(reply.lora_b).values().shape[::-1])
        self.assertFalse(reply.HasField("magnitude") or reply.HasField("bias"))
        for status, name, module in (
                ("NOT_FOUND/ADAPTER_NOT_FOUND", "nobody", Q0),
                ("INVALID_ARGUMENT/INVALID_FIELD", "q", None),
                ("INVALID_ARGUMENT/INVALID_FIELD", "q",
                 adapter_pb2.ModuleSelector(path=Q0.path, expert=0)),
                ("NOT_FOUND/MODULE_NOT_TARGETED", "q", adapter_pb2.ModuleSelector(path="x"))):
            self.refused(status, lambda: self.client.tensors(name, module))


class FoldersTest(ServerTest):
    """Which folder an adapter is taken from."""

    def setUp(self):
        self.root = self.folder()
        self.client = self.start(f"--adapter-root={self.root}").client

    def put(self, folder):
        shutil.copytree(fixtures("peft/cases") / "llama-qv", self.root / folder)

    def test_the_only_adapter_below_is_found(self):
        self.put("saved/mine")
        (self.root / "saved" / "README.md").write_text("trained by me")
        (self.root / "saved" / "runs").mkdir()
        loaded = self.client.load("x", "saved").adapter
        self.assertEqual(loaded.revision, self.client.load("y", "saved/mine").adapter.revision)

    def test_several_are_listed(self):
        self.put("out/checkpoint-10")
        self.put("out/checkpoint-20")
        failure = self.refused("NOT_FOUND/SOURCE_NOT_FOUND", lambda: self.client.load("x", "out"))
        self.assertIn("checkpoint-10", failure.message)
        self.assertIn("checkpoint-20", failure.message)
        self.put("both")
        shutil.copytree(self.root / "out" / "checkpoint-10", self.root / "both" / "checkpoint-10")
        self.client.load("x", "both")  # has one of its own


class ValidateCommandTest(ServerTest):
    def report(self, name, *more):
        return self.run_to_end(f"--validate={fixtures('peft/cases') / name}", *more)

    def test_a_sound_adapter_is_described(self):
        code, out, err = self.report("llama-dora", "--base-checkpoint",
                                     str(fixtures("peft/bases") / "tiny-llama"))
        self.assertEqual((code, err), (0, ""))
        for says in ("PEFT, dora", "tiny-llama", "4 linear", "q_proj", "within the budget"):
            self.assertIn(says, out)

    def test_errors_have_their_reasons_and_an_exit_code(self):
        code, out, err = self.report("bad-unknown-true-key")
        self.assertEqual((code, err), (1, ""))
        self.assertIn("not valid; errors: 1", out)
        self.assertRegex(out, r"ERROR +UNSUPPORTED_ADAPTER +use_future_maths\n")
        code, out, _ = self.run_to_end("--validate=missing")
        self.assertEqual(code, 1)
        self.assertIn("SOURCE_NOT_FOUND", out)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + ["-v"])
