"""Directory mode: what is in the watched folder is what is loaded."""
import os
import shutil
import sys
import threading
import time
import unittest

import numpy as np

from adapters import Q0, SMALL, config_of, exact_adapter, delta_of, tensors_of, write_adapter, write_files
from harness import ServerTest, apply_request, fixtures, until
from peft_rules import PeftAdapter
from tensors import array, from_proto
from adapterd.v1 import adapter_pb2

TINY = {Q0: (8, 6, 2)}


class FolderTest(ServerTest):
    def setUp(self):
        self.outside = self.folder()
        self.watched = self.outside / "watched"
        self.watched.mkdir()

    def serve(self, *flags):
        self.server = self.start(f"--watch-adapters={self.watched}",
                                 f"--adapter-root={self.outside}", *flags)
        self.client = self.server.client

    def states(self):
        names = adapter_pb2.AdapterState.Name
        return {adapter.name: names(adapter.state).removeprefix("ADAPTER_STATE_")
                for adapter in self.client.list(page_size=1000).adapters}

    def revision(self, name):
        """Of a READY adapter, else None."""
        for adapter in self.client.list(name_prefix=name).adapters:
            if adapter.name == name and adapter.state == adapter_pb2.ADAPTER_STATE_READY:
                return adapter.revision
        return None

    def await_states(self, **expected):
        until(lambda: self.states() == expected, f"{expected}, not {self.states()}")

    def await_revision(self, name, truth):
        until(lambda: self.revision(name) == truth.revision(), f"{name} to be as in its folder")

    def await_log(self, text):
        until(lambda: text in self.server.stderr(), f"a log line with {text}")

    def link(self, name, target):
        """Makes or swaps a symlink in one step."""
        fresh = self.outside / "fresh-link"
        fresh.symlink_to(target)
        fresh.rename(self.watched / name)


class StartTest(FolderTest):
    def test_what_is_there_is_loaded_or_failed_once_it_is_ready(self):
        shutil.copytree(fixtures("peft/cases") / "llama-qv", self.watched / "french")
        write_files(self.watched / "broken", "{", None)
        (self.watched / "README.md").write_text("not an adapter")
        (self.watched / "lost+found").mkdir()
        for _ in range(2):  # a restart finds the same
            self.serve()
            self.assertEqual(self.states(), {"broken": "FAILED", "french": "READY"})
            self.assertEqual(self.server.http("/readyz")[0], 200)
            self.assertEqual(self.revision("french"),
                             PeftAdapter(self.watched / "french").revision())
            self.assertEqual(self.client.get("french").source, "french")
            self.server.terminate()
            self.assertEqual(self.server.wait(), (0, ""))

    def test_a_folder_that_is_missing_ends_the_start(self):
        (self.outside / "file").write_text("")
        for path in (self.outside / "missing", self.outside / "file"):
            code, out, err = self.run_to_end("--grpc-address=127.0.0.1:0",
                                             "--admin-address=127.0.0.1:0",
                                             f"--watch-adapters={path}")
            self.assertEqual((code, out), (2, ""))
            self.assertRegex(err, r"\Aadapterd: --watch-adapters: [^\n]+\n\Z")
            self.assertIn(str(path), err)

    def test_500_adapters_at_once(self):
        self.serve()
        staging = self.outside / "staging"
        for i in range(500):
            write_adapter(staging / f"a{i:03}", TINY, seed=i)
        start = time.monotonic()
        for folder in sorted(staging.iterdir()):
            folder.rename(self.watched / folder.name)
        until(lambda: self.client.list(page_size=1).summary.resident_count == 500, "500 adapters")
        print(f"500 adapters loaded in {time.monotonic() - start:.2f} s")
        self.assertEqual(set(self.states().values()), {"READY"})
        self.assertEqual(self.revision("a321"), PeftAdapter(self.watched / "a321").revision())
        shutil.rmtree(self.watched / "a000")
        until(lambda: len(self.states()) == 499, "one to be unloaded")


class ChangeTest(FolderTest):
    def test_folders_come_change_and_go(self):
        self.serve()
        self.assertEqual(self.states(), {})
        truth = exact_adapter(self.watched / "a", SMALL, seed=1)
        self.await_revision("a", truth)
        truth = exact_adapter(self.watched / "a", SMALL, seed=2)  # overwritten
        self.await_revision("a", truth)
        exact_adapter(self.outside / "new", SMALL, seed=3)
        (self.watched / "a").rename(self.outside / "old")
        (self.outside / "new").rename(self.watched / "a")
        truth = PeftAdapter(self.watched / "a")
        self.await_revision("a", truth)
        x = np.arange(8.0).reshape(1, 8)
        reply = self.client.apply(apply_request("a", Q0, array(x).proto()))
        np.testing.assert_array_equal(from_proto(reply.outputs[0].output).values(),
                                      delta_of(truth, Q0, x))
        self.assertNotIn("adapter_unloaded", self.server.stderr())
        shutil.rmtree(self.watched / "a")
        self.await_states()
        self.assertEqual(self.server.adapter_bytes(), 0)
        self.await_log("adapter_unloaded")

    def test_a_mounted_configmap_is_swapped_as_a_whole(self):
        truths = {}
        for version in (1, 2):
            for i, name in enumerate(("a", "b")):
                truths[version, name] = write_adapter(self.watched / f"..v{version}" / name,
                                                      seed=10 * version + i)
        self.link("..data", "..v1")
        for name in ("a", "b"):
            (self.watched / name).symlink_to(f"..data/{name}")
        self.serve()
        for name in ("a", "b"):
            self.assertEqual(self.revision(name), truths[1, name].revision())
        self.link("..data", "..v2")
        shutil.rmtree(self.watched / "..v1")
        for name in ("a", "b"):
            self.await_revision(name, truths[2, name])
        self.assertEqual(self.states(), {"a": "READY", "b": "READY"})

    def test_the_watched_folder_itself_may_be_a_symlink_that_is_swapped(self):
        truths = [write_adapter(self.outside / f"v{i}" / "a", seed=i) for i in range(2)]
        self.watched.rmdir()
        self.watched.symlink_to("v0")
        self.serve()
        self.assertEqual(self.revision("a"), truths[0].revision())
        (self.outside / "fresh").symlink_to("v1")
        (self.outside / "fresh").rename(self.watched)
        self.await_revision("a", truths[1])

    def test_a_copy_in_pieces_serves_only_when_it_is_whole(self):
        truth = write_adapter(self.outside / "whole", seed=5)
        content = (self.outside / "whole/adapter_model.safetensors").read_bytes()
        self.serve()
        seen = set()
        done = threading.Event()

        def watch():
            client = self.server.connect()
            while not done.is_set():
                seen.update(a.revision for a in client.list().adapters)

        watcher = threading.Thread(target=watch)
        watcher.start()
        target = self.watched / "a"
        target.mkdir()
        shutil.copy(self.outside / "whole/adapter_config.json", target)
        pieces = 16
        with open(target / "adapter_model.safetensors", "wb") as weights:
            for i in range(pieces):
                weights.write(content[i * len(content) // pieces:(i + 1) * len(content) // pieces])
                weights.flush()
                os.fsync(weights.fileno())
        self.await_revision("a", truth)
        done.set()
        watcher.join()
        self.assertLessEqual(seen, {"", truth.revision()})

    def test_a_file_that_is_rewritten_in_place_is_not_read_before_it_is_closed(self):
        old = write_adapter(self.watched / "a", seed=1)
        new = write_adapter(self.outside / "new", seed=2)
        content = (self.outside / "new/adapter_model.safetensors").read_bytes()
        self.serve()
        with open(self.watched / "a/adapter_model.safetensors", "r+b") as weights:
            weights.write(content[:len(content) - 8])
            weights.flush()
            # Written later and believed as soon as any folder that rests.
            self.await_revision("b", write_adapter(self.watched / "b", seed=3))
            self.assertEqual(self.revision("a"), old.revision())
            weights.write(content[-8:])
        self.await_revision("a", new)


class TroubleTest(FolderTest):
    def test_a_broken_adapter_is_failed_with_its_reason_until_it_is_repaired(self):
        self.serve()
        write_files(self.watched / "a", config_of(SMALL), b"\x08" + bytes(15))
        write_files(self.watched / "b", "{", tensors_of(SMALL))
        (self.watched / "c").mkdir()
        self.await_states(a="FAILED", b="FAILED", c="FAILED")
        listed = {adapter.name: adapter for adapter in self.client.list().adapters}
        for name, reason, part in (("a", "MALFORMED_TENSOR_FILE", "a/adapter_model.safetensors"),
                                   ("b", "MALFORMED_CONFIG", "b/adapter_config.json"),
                                   ("c", "SOURCE_NOT_FOUND", "empty")):
            self.assertEqual(listed[name].error.reason, reason)
            self.assertIn(part, listed[name].error.message)
        self.assertEqual(self.server.stderr().count("adapter_failed"), 3)
        x = array(np.ones((1, 8))).proto()
        self.refused("FAILED_PRECONDITION/ADAPTER_FAILED", self.client.apply,
                     apply_request("a", Q0, x), adapter="a")
        truths = {name: write_adapter(self.watched / name, seed=i)
                  for i, name in enumerate("abc")}
        for name, truth in truths.items():
            self.await_revision(name, truth)
        self.assertEqual(self.server.adapter_bytes(),
                         sum(self.client.get(name).memory_bytes for name in "abc"))

    def test_a_change_for_the_worse_leaves_what_serves(self):
        truth = write_adapter(self.watched / "a")
        self.serve()
        (self.watched / "a/adapter_config.json").write_text("{")
        self.await_log("adapter_failed")
        self.assertEqual(self.revision("a"), truth.revision())
        self.assertIn("MALFORMED_CONFIG", self.server.stderr())

    def test_a_symlink_that_leaves_the_folder_is_failed(self):
        write_adapter(self.outside / "elsewhere")
        (self.watched / "a").symlink_to("../elsewhere")
        self.serve()
        self.assertEqual(self.states(), {"a": "FAILED"})
        self.assertEqual(self.client.get("a").error.reason, "PATH_OUTSIDE_ROOT")

    def test_what_clients_loaded_is_left_alone(self):
        mine = write_adapter(self.outside / "mine", seed=1)
        self.serve()
        self.client.load("a", "mine", labels={"owner": "me"})
        write_adapter(self.watched / "a", seed=2)
        write_adapter(self.watched / "b", seed=3)
        self.await_states(a="READY", b="READY")
        self.await_log("adapter_skipped")
        self.assertEqual(self.revision("a"), mine.revision())
        shutil.rmtree(self.watched / "a")
        shutil.rmtree(self.watched / "b")
        self.await_states(a="READY")
        self.assertEqual(self.revision("a"), mine.revision())
        self.assertEqual(dict(self.client.get("a").labels), {"owner": "me"})

    def test_an_adapter_that_a_client_unloads_comes_back(self):
        truth = write_adapter(self.watched / "a")
        self.serve()
        self.client.unload("a")
        self.await_revision("a", truth)

    def test_a_folder_that_is_away_changes_nothing(self):
        write_adapter(self.watched / "a")
        self.serve()
        self.watched.rename(self.outside / "away")
        self.await_log("folder_unreadable")
        self.assertEqual(self.states(), {"a": "READY"})
        (self.outside / "away").rename(self.watched)
        truth = write_adapter(self.watched / "b", seed=1)
        self.await_revision("b", truth)
        self.assertEqual(self.states(), {"a": "READY", "b": "READY"})
        self.assertIn("folder_readable", self.server.stderr())

    def test_too_little_memory_is_failed_until_there_is_room(self):
        write_adapter(self.watched / "big", {Q0: (2048, 2048, 64)})
        self.serve("--memory-budget=64KiB")
        self.assertEqual(self.states(), {"big": "FAILED"})
        self.assertEqual(self.client.get("big").error.reason, "MEMORY_BUDGET_EXCEEDED")
        truth = write_adapter(self.watched / "big", TINY)
        self.await_revision("big", truth)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
