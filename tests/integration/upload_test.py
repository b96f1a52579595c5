"""UploadAdapter through the real binary: what is served, what lies in the data folder, and that
whatever goes wrong leaves nothing there."""
import signal
import sys
import unittest

import grpc

from adapters import SMALL, config_of, tensors_of, write_files
from harness import PATIENCE, ServerTest, apply_request, fixtures, until
from tensors import array, from_proto
from adapterd.v1 import adapter_pb2, adapter_service_pb2

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CASE = "peft/cases", "llama-qv"
PIECE = 1000


def start(name, **fields):
    return adapter_service_pb2.UploadAdapterRequest(
        start=adapter_service_pb2.UploadStart(name=name, **fields))


def chunk(file_name, data):
    return adapter_service_pb2.UploadAdapterRequest(
        chunk=adapter_service_pb2.UploadChunk(file_name=file_name, data=data))


def chunks(files):
    for name, data in files.items():
        for begin in range(0, len(data), PIECE):
            yield chunk(name, data[begin:begin + PIECE])


def files_of(folder, *names):
    return {name: (folder / name).read_bytes() for name in names or (CONFIG, WEIGHTS)}


class StoreTest(ServerTest):
    def setUp(self):
        self.data = self.folder() / "data"
        self.case = fixtures(CASE[0]) / CASE[1]
        self.files = files_of(self.case)
        self.serve()

    def serve(self, *flags):
        self.server = self.start(f"--data-dir={self.data}",
                                 f"--adapter-root={fixtures(CASE[0])}", *flags)
        self.client = self.server.client

    def send(self, messages, timeout=PATIENCE):
        return self.client.adapters.UploadAdapter(iter(messages), timeout=timeout)

    def upload(self, name, files, **fields):
        return self.send([start(name, **fields), *chunks(files)])

    def stored(self):
        """{key: {file name: bytes}} of the data folder; nothing may be on its way in or out."""
        store = self.data / "store"
        self.assertEqual(list((store / "incoming").iterdir()), [])
        return {key.name: {file.name: file.read_bytes() for file in key.iterdir()}
                for key in (store / "content").iterdir()}

    def refused_and_gone(self, status, messages, **metadata):
        self.refused(status, lambda: self.send(messages), **metadata)
        self.assertEqual(self.stored(), {})
        self.assertEqual(len(self.client.list().adapters), 0)
        self.assertEqual(self.server.adapter_bytes(), 0)


class UploadTest(StoreTest):
    def test_an_upload_is_served_like_its_folder(self):
        loaded = self.client.load("loaded", CASE[1]).adapter
        reply = self.upload("uploaded", self.files, expected_digest=loaded.revision, pinned=True,
                            labels={"team": "red"})
        self.assertFalse(reply.already_loaded)
        self.assertEqual(reply.adapter.revision, loaded.revision)
        self.assertTrue(reply.adapter.pinned)
        self.assertEqual(dict(reply.adapter.labels), {"team": "red"})
        self.assertEqual(list(self.stored().values()), [self.files])
        module = self.client.get("loaded", view=adapter_pb2.ADAPTER_VIEW_FULL).modules[0]
        x = array([[(i % 7) - 3.0 for i in range(module.in_features)]], "F32").proto()
        replies = [self.client.apply(apply_request(name, module.path, x))
                   for name in ("loaded", "uploaded")]
        outputs = [from_proto(reply.outputs[0].output).values() for reply in replies]
        self.assertTrue(outputs[0].any())
        self.assertTrue((outputs[0] == outputs[1]).all())

    def test_equal_content_is_stored_once_and_kept_for_its_last_adapter(self):
        self.upload("x", self.files)
        self.upload("y", dict(reversed(self.files.items())))
        self.assertEqual(len(self.stored()), 1)
        self.assertTrue(self.upload("x", self.files).already_loaded)
        self.client.unload("x")
        self.assertEqual(len(self.stored()), 1)
        self.client.unload("y")
        until(lambda: not any((self.data / "store/content").iterdir()), "the content to be removed")
        until(lambda: not any((self.data / "store/incoming").iterdir()), "its files to be removed")

    def test_a_replace_frees_what_it_replaces(self):
        first = self.upload("x", self.files).adapter
        folder = write_files(self.folder() / "a", config_of(SMALL), tensors_of(SMALL))
        other = files_of(folder)
        self.refused("ALREADY_EXISTS/ADAPTER_EXISTS", lambda: self.upload("x", other))
        self.assertEqual(list(self.stored().values()), [self.files])
        self.assertEqual(self.upload("x", other, replace=True).replaced_revision, first.revision)
        self.assertEqual(list(self.stored().values()), [other])

    def test_what_is_no_adapter_has_its_reason_and_is_not_stored(self):
        torn = {**self.files, WEIGHTS: self.files[WEIGHTS][:-1]}
        for status, files in {
                "NOT_FOUND/SOURCE_NOT_FOUND": {CONFIG: self.files[CONFIG]},
                "INVALID_ARGUMENT/MALFORMED_TENSOR_FILE": torn,
                "INVALID_ARGUMENT/MALFORMED_CONFIG": {**self.files, CONFIG: b"{"},
                "INVALID_ARGUMENT/UNSAFE_FORMAT": {CONFIG: self.files[CONFIG],
                                                   "adapter_model.bin": b"\x80\x02"}}.items():
            with self.subTest(status):
                self.refused_and_gone(status, [start("x"), *chunks(files)], adapter="x")

    def test_another_digest_than_expected_is_refused(self):
        self.refused_and_gone("FAILED_PRECONDITION/DIGEST_MISMATCH",
                              [start("x", expected_digest="0" * 64), *chunks(self.files)])

    def test_names_of_files_are_no_paths(self):
        for name in ("../adapter_config.json", "/tmp/x", "a/b", "", ".", ".."):
            with self.subTest(name):
                self.refused_and_gone("INVALID_ARGUMENT/INVALID_FIELD",
                                      [start("x"), chunk(name, b"{}")], field="chunk.file_name")

    def test_messages_have_their_order(self):
        begin, piece = start("x"), chunk(CONFIG, b"{}")
        for messages in ([], [piece], [begin], [begin, begin], [begin, piece, begin],
                         [begin, piece, chunk(WEIGHTS, b""), piece],
                         [adapter_service_pb2.UploadAdapterRequest()]):
            self.refused_and_gone("INVALID_ARGUMENT/INVALID_FIELD", messages)

    def test_a_broken_stream_leaves_nothing(self):
        gone = self.server.connect()

        def messages():
            yield start("x")
            yield chunk(CONFIG, self.files[CONFIG])
            yield chunk(WEIGHTS, self.files[WEIGHTS][:100])
            # The server has begun to write: break off now.
            until(lambda: any((self.data / "store/incoming").glob(f"*/{WEIGHTS}")), "the weights")
            call.cancel()

        call = gone.adapters.UploadAdapter.future(messages(), timeout=PATIENCE)
        with self.assertRaises(grpc.FutureCancelledError):
            call.result()
        until(self.uploads_ended, "the server to be done with it")
        self.assertEqual(self.stored(), {})
        self.assertEqual(len(self.client.list().adapters), 0)

    def uploads_ended(self):
        return sum(value for (name, labels), value in self.server.metrics().items()
                   if name == "grpc_server_handled_total" and
                   ("grpc_method", "UploadAdapter") in labels)

    def test_a_killed_server_begins_without_what_was_half_there(self):
        def messages():
            yield start("x")
            yield chunk(CONFIG, self.files[CONFIG])
            until(lambda: any((self.data / "store/incoming").glob(f"*/{CONFIG}")), "the config")
            self.server.process.kill()

        self.server.expected_exit = -signal.SIGKILL
        with self.assertRaises(grpc.RpcError):
            self.send(messages())
        self.server.wait()
        self.assertTrue(any((self.data / "store/incoming").iterdir()))
        self.serve()
        self.assertEqual(self.stored(), {})
        self.assertEqual(self.upload("x", self.files).adapter.name, "x")

    def test_a_second_server_keeps_off_the_data_folder(self):
        code, _, stderr = self.run_to_end(
            "--grpc-address=127.0.0.1:0", "--admin-address=127.0.0.1:0", f"--data-dir={self.data}")
        self.assertEqual(code, 2)
        self.assertIn("is in use by", stderr)


class LimitTest(StoreTest):
    def serve(self, *flags):
        super().serve("--max-upload-bytes=1000", "--max-message-size=2000", *flags)

    def test_an_upload_over_the_limit_is_refused(self):
        self.refused_and_gone(
            "RESOURCE_EXHAUSTED/MESSAGE_TOO_LARGE",
            [start("x"), chunk("a", b"1" * 600), chunk("b", b"2" * 400), chunk("b", b"3")],
            expected=1000, actual=1001)

    def test_a_message_over_the_limit_is_refused(self):
        self.refused_and_gone("RESOURCE_EXHAUSTED/MESSAGE_TOO_LARGE",
                              [start("x"), chunk("a", b"1" * 2000)], expected=2000)


class WithoutDataFolderTest(ServerTest):
    def setUp(self):
        self.files = files_of(fixtures(CASE[0]) / CASE[1])
        self.temporary = self.folder()

    def upload(self, client):
        return client.adapters.UploadAdapter(iter([start("x"), *chunks(self.files)]),
                                             timeout=PATIENCE)

    def test_what_is_loaded_is_in_memory_alone(self):
        server = self.start(environment={"TMPDIR": str(self.temporary)})
        self.assertEqual(self.upload(server.client).adapter.state,
                         adapter_pb2.ADAPTER_STATE_READY)
        self.assertEqual([p for p in self.temporary.rglob("*") if p.is_file()], [])
        self.assertEqual(len(server.client.list().adapters), 1)
        server.terminate()
        server.wait()
        self.assertEqual(list(self.temporary.iterdir()), [])

    def test_without_any_folder_to_write_to_it_says_what_is_missing(self):
        server = self.start(environment={"TMPDIR": str(self.temporary / "missing")})
        failure = self.refused("FAILED_PRECONDITION/NO_DATA_DIR",
                               lambda: self.upload(server.client))
        self.assertIn("--data-dir", failure.message)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + ["-v"] + sys.argv[1:])
