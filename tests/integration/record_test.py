"""What survives a restart with --data-dir, what is done about files and catalogues that changed
meanwhile, and earlier revisions."""
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import unittest

import numpy as np

from harness import BINARY, FULL, PATIENCE, ServerTest, clean_environment, find_tool, until
from readme import fenced
from record_model import WEIGHTS, State, answer_of, ask, upload, write_content
from stubs import SOURCE_DIR
from adapters import SMALL, exact_adapter
from adapterd.v1 import adapter_pb2

READY = adapter_pb2.ADAPTER_STATE_READY
EVICTED = adapter_pb2.ADAPTER_STATE_EVICTED
FAILED = adapter_pb2.ADAPTER_STATE_FAILED
CANNOT_SERVE = "FAILED_PRECONDITION/ADAPTER_FAILED"
MISMATCH = "ABORTED/REVISION_MISMATCH"

NOBODY = 65534  # a user id that owns nothing
GUIDE = SOURCE_DIR / "docs/operations.md"
NO_PORTS = ("--grpc-address=127.0.0.1:0", "--admin-address=127.0.0.1:0")


class RecordTest(ServerTest):
    def setUp(self):
        self.root = self.folder()
        self.data = self.folder() / "data"
        self.s = [write_content(self.root, f"s{i}", seed=i) for i in range(4)]
        self.serve()

    def serve(self, *flags, data=None):
        self.server = self.start(f"--adapter-root={self.root}",
                                 f"--data-dir={data or self.data}", *flags)
        self.client = self.server.client

    def kill(self):
        self.server.process.kill()
        self.server.wait()
        self.server.expected_exit = -signal.SIGKILL

    def restart(self, *flags):
        self.kill()
        self.serve(*flags)

    def refuses_to_start(self, *expected):
        """It ends with 2 and one line that says all of `expected`."""
        code, out, err = self.run_to_end(*NO_PORTS, f"--data-dir={self.data}")
        self.assertEqual((code, out), (2, ""), err)
        self.assertRegex(err, r"\Aadapterd: [^\n]+\n\Z")
        for part in expected:
            self.assertIn(part, err)

    def serves(self, name, content, revision=""):
        served, numbers = answer_of(self.client.apply(ask(name, revision)))
        self.assertEqual(served, content.revision)
        np.testing.assert_array_equal(numbers, content.answer)

    def state_of(self, name):
        return self.client.get(name).state


class RestartTest(RecordTest):
    def test_adapters_are_evicted_after_a_restart_and_come_back_on_use(self):
        self.client.load("a", "s0", labels={"team": "x"}, pinned=True)
        self.client.set_alias("a", "prod", self.s[0].revision)
        upload(self.client, "u", self.s[1].files)
        self.client.update("u", enabled=False)
        before = {a.name: a for a in self.client.list().adapters}
        modules = {name: list(self.client.get(name, view=FULL).modules) for name in before}
        self.restart()
        page = self.client.list()
        self.assertEqual((page.summary.adapter_count, page.summary.resident_count,
                          page.summary.memory_bytes), (2, 0, 0))
        for adapter in page.adapters:
            was = before[adapter.name]
            self.assertEqual(adapter.state, EVICTED)
            self.assertEqual(State.of(adapter), State.of(was))
            for field in ("etag", "public_id", "weights_sha256", "source", "ranks", "file_bytes",
                          "parameter_count", "load_time", "base_model", "target_modules"):
                self.assertEqual(getattr(adapter, field), getattr(was, field), field)
            whole = self.client.get(adapter.name, view=FULL)
            self.assertEqual((whole.state, list(whole.modules)), (EVICTED, modules[adapter.name]))
        self.serves("a@prod", self.s[0])
        self.refused("FAILED_PRECONDITION/ADAPTER_DISABLED", self.client.apply, ask("u"))
        self.client.update("u", enabled=True)
        self.serves("u", self.s[1])
        self.assertEqual((self.state_of("a"), self.state_of("u")), (READY, READY))

    def test_a_clean_end_leaves_the_same_as_a_crash(self):
        self.client.load("a", "s0")
        self.client.load("b", "s1")
        self.client.unload("b")
        self.server.terminate()
        self.assertEqual(self.server.wait(), (0, ""))
        self.serve()
        self.assertEqual([a.name for a in self.client.list().adapters], ["a"])
        self.serves("a", self.s[0])

    def test_a_source_that_changed_while_the_server_was_down_never_serves(self):
        for name, change in (("a", lambda: exact_adapter(self.root / "s0", SMALL, seed=9)),
                             ("b", lambda: shutil.rmtree(self.root / "s1"))):
            with self.subTest(name):
                source = {"a": 0, "b": 1}[name]
                self.client.load(name, f"s{source}")
                self.kill()
                change()
                self.serve()
                self.refused(CANNOT_SERVE, self.client.apply, ask(name), adapter=name)
                found = self.client.get(name)
                self.assertEqual((found.state, found.revision),
                                 (FAILED, self.s[source].revision))
                self.client.load(name, "s2", replace=True)
                self.serves(name, self.s[2])

    def damage(self, content):
        """Flips a bit of what the store holds of it."""
        weights = self.data / "store/content" / content.key / WEIGHTS
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)

    def test_a_stored_upload_that_was_damaged_never_serves(self):
        upload(self.client, "u", self.s[0].files)
        self.kill()
        self.damage(self.s[0])
        self.serve()
        self.refused(CANNOT_SERVE, self.client.apply, ask("u"), adapter="u")
        self.assertEqual(self.client.get("u").error.reason, "STORE_CORRUPT")

    def test_an_upload_serves_what_was_sent_whatever_the_store_holds(self):
        upload(self.client, "u", self.s[0].files)
        self.kill()
        self.damage(self.s[0])
        self.serve()
        self.assertEqual(upload(self.client, "v", self.s[0].files).adapter.revision,
                         self.s[0].revision)
        upload(self.client, "u", self.s[0].files, replace=True)
        for name in ("v", "u"):
            self.serves(name, self.s[0])
        self.restart()
        for name in ("v", "u"):
            self.serves(name, self.s[0])

    def test_an_expected_digest_is_held_against_the_files_also_after_a_restart(self):
        self.client.load("a", "s0")
        self.restart()
        for digest in (self.s[0].revision, self.s[0].weights_sha256):
            reply = self.client.load("a", "s0", expected_digest=digest)
            self.assertTrue(reply.already_loaded)
        self.restart()
        for digest in (self.s[1].revision, self.s[1].weights_sha256):
            self.refused("FAILED_PRECONDITION/DIGEST_MISMATCH",
                         lambda: self.client.load("a", "s0", expected_digest=digest, replace=True),
                         expected=digest, actual=self.s[0].revision)
        self.serves("a", self.s[0])
        self.assertEqual(self.client.load("a", "s1", replace=True,
                                          expected_digest=self.s[1].weights_sha256)
                         .replaced_revision, self.s[0].revision)


class StartTest(RecordTest):
    def test_a_second_process_keeps_off_and_the_first_goes_on(self):
        self.client.load("a", "s0")
        self.refuses_to_start(str(self.data), "in use by", str(self.server.process.pid))
        self.client.load("b", "s1")
        self.restart()
        self.serves("b", self.s[1])

    def test_a_catalogue_that_is_damaged_or_not_ours_ends_the_start(self):
        self.client.load("a", "s0")
        self.server.terminate()
        self.server.wait()
        catalogue = self.data / "catalogue.sqlite"
        whole = catalogue.read_bytes()
        page = bytearray(whole)
        page[4096:8192] = b"\xa5" * 4096
        for name, content, told in (("empty", b"", "has lost its content"),
                                    ("cut", whole[:100], "has lost its content"),
                                    ("half", whole[:len(whole) // 2], "malformed"),
                                    ("text", b"not a database " * 1000, "not a database"),
                                    ("a page", bytes(page), "damaged")):
            with self.subTest(name):
                catalogue.write_bytes(content)
                self.refuses_to_start("catalogue", str(self.data), told)
                self.assertEqual(catalogue.read_bytes(), content)  # left as it is
        catalogue.write_bytes(whole)
        self.serve()
        self.serves("a", self.s[0])

    def test_a_newer_catalogue_ends_the_start(self):
        self.kill()
        catalogue = sqlite3.connect(self.data / "catalogue.sqlite")
        (version,) = catalogue.execute("PRAGMA user_version").fetchone()
        catalogue.execute(f"PRAGMA user_version = {version + 1}")
        catalogue.close()
        self.refuses_to_start("catalogue", f"version {version + 1}", f"up to {version}")

    def test_a_data_folder_that_cannot_be_written_ends_the_start(self):
        self.kill()
        binary = self.folder() / "adapterd"
        shutil.copy(BINARY, binary)
        for path in (binary.parent, self.data.parent, self.data):
            path.chmod(0o755)
        for path in self.data.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        root = os.geteuid() == 0
        if not root:
            self.data.chmod(0o555)
            (self.data / "lock").chmod(0o444)
        done = subprocess.run([binary, *NO_PORTS, f"--data-dir={self.data}"], capture_output=True,
                              text=True, timeout=PATIENCE, env=clean_environment(),
                              cwd=self.data.parent, **({"user": NOBODY} if root else {}))
        self.data.chmod(0o755)
        self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
        self.assertRegex(done.stderr, r"\Aadapterd: [^\n]*Permission denied[^\n]*\n\Z")
        self.assertIn(str(self.data), done.stderr)


class KeptTest(RecordTest):
    def test_kept_revisions_serve_and_come_back_by_rollback_also_after_a_restart(self):
        self.restart("--keep-revisions=2")
        for content in self.s:
            self.client.load("a", content.source, replace=True)
        right = State(self.s[3].revision, kept=(self.s[2].revision, self.s[1].revision))
        for _ in range(2):
            self.assertEqual(State.of(self.client.get("a")), right)
            for content in self.s[1:]:
                self.serves("a", content, content.revision)
            self.refused(MISMATCH, self.client.apply, ask("a", self.s[0].revision), adapter="a",
                         expected=self.s[0].revision, actual=self.s[3].revision)
            self.refused(MISMATCH, self.client.rollback, "a", self.s[0].revision)
            self.restart("--keep-revisions=2")
        adapter = self.client.rollback("a", self.s[1].revision)
        right = State(self.s[1].revision, kept=(self.s[3].revision, self.s[2].revision))
        self.assertEqual(State.of(adapter), right)
        self.serves("a", self.s[1])
        self.restart("--keep-revisions=2")
        self.assertEqual(State.of(self.client.get("a")), right)
        self.serves("a", self.s[1])

    def test_a_kept_revision_that_changed_on_disk_does_not_come_back(self):
        self.restart("--keep-revisions=2")
        self.client.load("a", "s0")
        self.client.load("a", "s1", replace=True)
        self.kill()
        exact_adapter(self.root / "s0", SMALL, seed=9)
        self.serve("--keep-revisions=2")
        self.refused(CANNOT_SERVE, self.client.rollback, "a", self.s[0].revision)
        self.refused(CANNOT_SERVE, self.client.apply, ask("a", self.s[0].revision))
        self.serves("a", self.s[1])
        self.assertEqual(self.client.get("a").revision, self.s[1].revision)

    def test_a_kept_revision_whose_source_holds_a_newer_one_stays_in_memory(self):
        self.restart("--keep-revisions=1", "--memory-budget=4KiB")
        self.client.load("a", "s0")
        truth = exact_adapter(self.root / "s0", SMALL, seed=9)
        self.client.load("a", "s0", replace=True)
        for i in range(60):
            self.client.load(f"b{i}", "s3")
            exact_adapter(self.root / "s3", SMALL, seed=10 + i)
        self.serves("a", self.s[0], self.s[0].revision)
        self.assertEqual(self.client.get("a").revision, truth.revision())
        self.assertGreater(self.server.metric("adapterd_evictions_total"), 0)


class BackupTest(RecordTest):
    """Does what docs/operations.md says, as it says it."""

    def setUp(self):
        find_tool(self, "sqlite3")
        super().setUp()

    def run_step(self, title, **environment):
        """Runs the block ```sh under the heading `title`."""
        text = GUIDE.read_text()
        section = re.split(r"^#+ ", text.split(f"# {title}\n", 1)[1], flags=re.MULTILINE)[0]
        (script,) = fenced(section, "sh")
        return subprocess.run(["bash", "-euo", "pipefail", "-c", script], text=True,
                              capture_output=True, timeout=PATIENCE,
                              env={**os.environ, **{k: str(v) for k, v in environment.items()}})

    def succeeds(self, title, **environment):
        done = self.run_step(title, **environment)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_backup_of_a_running_server_can_be_restored(self):
        self.restart("--keep-revisions=2")
        self.client.load("a", "s0", labels={"team": "x"})
        self.client.load("a", "s1", replace=True)
        upload(self.client, "u", self.s[2].files)
        upload(self.client, "gone", self.s[3].files)
        self.client.unload("gone")
        until(lambda: len(list((self.data / "store/content").iterdir())) == 1, "the collector")
        right = {a.name: State.of(a) for a in self.client.list().adapters}
        backup, restored = self.folder() / "backup", self.folder() / "restored"
        self.succeeds("Backup", DATA_DIR=self.data, BACKUP=backup)
        self.client.unload("u")
        self.client.load("later", "s3")
        self.kill()
        self.succeeds("Restore", DATA_DIR=restored, BACKUP=backup)
        self.serve("--keep-revisions=2", data=restored)
        self.assertEqual({a.name: State.of(a) for a in self.client.list().adapters}, right)
        self.serves("a", self.s[1])
        self.serves("a", self.s[0], self.s[0].revision)
        self.serves("u", self.s[2])

    def test_a_backup_without_all_its_content_is_noticed(self):
        upload(self.client, "u", self.s[2].files)
        shutil.rmtree(self.data / "store/content" / self.s[2].key)
        done = self.run_step("Backup", DATA_DIR=self.data, BACKUP=self.folder() / "backup")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(self.s[2].key, done.stdout + done.stderr)

    def test_a_restore_over_another_data_folder_is_refused(self):
        backup = self.folder() / "backup"
        self.succeeds("Backup", DATA_DIR=self.data, BACKUP=backup)
        done = self.run_step("Restore", DATA_DIR=self.data, BACKUP=backup)
        self.assertNotEqual(done.returncode, 0)

    def test_the_signal_that_the_guide_names_reloads(self):
        self.succeeds("Changing the budget", PID=self.server.process.pid)
        until(lambda: "reloaded" in self.server.stderr(), "the reload")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
