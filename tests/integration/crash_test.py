"""Whatever was acknowledged is there after kill -9, and whatever was not is whole or absent.

Threads change adapters of their own while the server is killed at random moments; after each
restart everything that it holds is compared with what it acknowledged.

Environment: ADAPTERD_KILLS (50), ADAPTERD_SEED (random; it fixes the operations, not their timing).
"""
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import unittest
from dataclasses import replace

import grpc
import numpy as np

from harness import BINARY, Server, ServerTest, clean_environment, failure_of, until
from record_model import State, answer_of, ask, upload, write_content

KILLS = int(os.environ.get("ADAPTERD_KILLS", 50))
SEED = int(os.environ.get("ADAPTERD_SEED", random.SystemRandom().randrange(1 << 32)))

WORKERS = 4
NAMES = 3  # of each worker
KEEP = 2  # --keep-revisions
PROMPT = 10  # seconds that a start may take on a busy machine
MOST_OPERATIONS = 100  # between two kills
EARLY = 0.06  # seconds; about what a start takes

# What a broken journal could do to an adapter.
LOSSES = {
    "forgets it": ["DELETE FROM revisions WHERE adapter = :name",
                   "DELETE FROM adapters WHERE name = :name"],
    "forgets a kept revision": ["DELETE FROM revisions WHERE adapter = :name AND position = "
                                "(SELECT max(position) FROM revisions WHERE adapter = :name)"],
    "forgets a label": ["UPDATE adapters SET labels = '{}' WHERE name = :name"],
    "has an older etag": ["UPDATE adapters SET etag = 'older' WHERE name = :name"],
    "confuses sources": ["UPDATE revisions SET source = 's0', stored = '' WHERE adapter = :name"],
}


class Worker:
    """Changes adapters of its own, one after the other, and knows what they must be."""

    def __init__(self, number, contents, seed):
        self.choose = random.Random(f"{seed}/{number}")
        self.names = [f"{number}-{i}" for i in range(NAMES)]
        self.contents = contents
        self.states = {}  # by name, as acknowledged
        self.etags = {}
        self.pending = None  # (name, what it becomes) of the call that the kill cut off
        self.losses = []

    def _options(self):
        return {"labels": {"n": str(self.choose.randrange(100))},
                "pinned": self.choose.random() < 0.2}

    def _load(self, name, state):
        content = self.choose.choice(list(self.contents.values()))
        options = self._options()
        state = (state or State(content.revision)).loaded(KEEP, content.revision, **options)
        if content.source.startswith("u"):
            return state, lambda c: upload(c, name, content.files, replace=True, **options)
        return state, lambda c: c.load(name, content.source, replace=True, **options)

    def _unload(self, name, _):
        return None, lambda c: c.unload(name, force=True)

    def _update(self, name, state):
        fields = {**self._options(), "enabled": self.choose.random() < 0.8}
        mask = self.choose.sample(sorted(fields), self.choose.randrange(1, 4))
        changed = {key: fields[key] for key in mask}
        return replace(state, **changed), lambda c: c.update(name, mask, **changed)

    def _alias(self, name, state):
        alias = self.choose.choice(["prod", "test"])
        revision = self.choose.choice([*state.revisions, None if alias in state.aliases else
                                       state.revision])
        return (state.aliased(KEEP, alias, revision),
                lambda c: c.set_alias(name, alias, revision or ""))

    def _roll_back(self, name, state):
        revision = self.choose.choice(state.revisions)
        return state.rolled_back(KEEP, revision), lambda c: c.rollback(name, revision)

    def _use(self, name, state):
        """Numbers while others change: not counted as a change."""
        return state, lambda c: c.apply(ask(name))

    def step(self, client):
        name = self.choose.choice(self.names)
        state = self.states.get(name)
        kinds = [self._load]
        if state is not None:
            kinds = [self._load, self._load, self._unload, self._update, self._alias,
                     self._roll_back] + [self._use] * state.enabled
        kind = self.choose.choice(kinds)
        expected, call = kind(name, state)
        self.pending = name, expected
        reply = call(client)
        self.pending = None
        if kind == self._use:
            check_reply(name, expected.revision, reply, self.contents, self.losses)
        elif expected is None:
            self.states.pop(name)
            if not reply.freed:
                self.losses.append(f"{name} was unloaded, but its memory is not free")
        else:
            adapter = getattr(reply, "adapter", reply)
            self.states[name], self.etags[name] = expected, adapter.etag
            if State.of(adapter) != expected:
                self.losses.append(f"{name} was answered {State.of(adapter)}, not {expected}")

    def run(self, server, killed, acknowledged):
        try:
            client = server.connect()
            while not killed.is_set():
                self.step(client)
                acknowledged()
        except grpc.RpcError as error:
            if not killed.is_set() or error.code() != grpc.StatusCode.UNAVAILABLE:
                self.losses.append(f"{self.pending} failed: {failure_of(error)}")
        except Exception as error:  # of the test itself: not to be lost with its thread
            self.losses.append(f"{self.pending}: {error!r}")

    def settle(self, listed):
        """After a restart: what of ours is listed, whatever became of the call that was cut off."""
        for name in self.names:
            found = State.of(listed[name]) if name in listed else None
            was = self.states.get(name)
            right = [was]
            if self.pending is not None and self.pending[0] == name:
                right.append(self.pending[1])
            if found not in right:
                self.losses.append(f"{name} is {found}, not one of {right}")
            elif len(right) == 1 and found and listed[name].etag != self.etags[name]:
                self.losses.append(f"{name} has another etag, but was not changed")
            self.states.pop(name, None)
            if found is not None:
                self.states[name], self.etags[name] = found, listed[name].etag
        self.pending = None


def check_reply(name, revision, reply, contents, losses):
    """The revision that served, and its numbers."""
    served, numbers = answer_of(reply)
    if served != revision or not np.array_equal(numbers, contents[revision].answer):
        losses.append(f"{name} is served by {served} with {numbers}, not by {revision}")


class Driver:
    """A data folder, and the runs of the server on it."""

    def __init__(self, test, seed):
        self.test = test
        root = test.folder()
        self.data = root / "data"
        self.flags = [f"--adapter-root={root}", f"--data-dir={self.data}",
                      f"--keep-revisions={KEEP}"]
        contents = [write_content(root, source, seed=i)
                    for i, source in enumerate(["s0", "s1", "s2", "u0", "u1"])]
        self.contents = {content.revision: content for content in contents}
        self.choose = random.Random(seed)
        self.workers = [Worker(i, self.contents, seed) for i in range(WORKERS)]
        self.losses = []
        self.acknowledged = self.kills = 0
        self.slowest = 0.0

    def measure(self):
        """How much memory each content takes once it is used."""
        server = self.start()
        for content in self.contents.values():
            server.client.load("only", content.source)
            server.client.apply(ask("only"))
            content.memory_bytes = server.client.get("only").memory_bytes
            server.client.unload("only")
        server.stop()

    def start(self):
        begin = time.monotonic()
        server = Server(*self.flags)
        self.test.addCleanup(server.process.kill)  # when something goes wrong
        self.slowest = max(self.slowest, time.monotonic() - begin)
        return server

    def kill_early(self):
        """Kills a server while it starts."""
        process = subprocess.Popen(
            [BINARY, "--grpc-address=127.0.0.1:0", "--admin-address=127.0.0.1:0", *self.flags],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_environment())
        time.sleep(self.choose.uniform(0, EARLY))
        process.kill()
        process.wait()
        self.kills += 1

    def work_and_kill(self, server):
        enough, killed, count = threading.Event(), threading.Event(), itertools.count(1)
        wanted = self.choose.randrange(1, MOST_OPERATIONS)
        done = []

        def acknowledged():
            done.append(None)
            if next(count) >= wanted:
                enough.set()

        threads = [threading.Thread(target=worker.run, args=(server, killed, acknowledged))
                   for worker in self.workers]
        for thread in threads:
            thread.start()
        while not enough.wait(0.1) and all(thread.is_alive() for thread in threads):
            pass
        time.sleep(self.choose.uniform(0, 0.01))  # to be in the middle of anything
        killed.set()
        server.process.kill()
        for thread in threads:
            thread.join()
        self.acknowledged += len(done)
        self.kill(server)

    def kill(self, server):
        server.process.kill()
        server.wait()
        server.expected_exit = -signal.SIGKILL
        server.stop()
        self.kills += 1

    def states(self):
        return {name: state for worker in self.workers for name, state in worker.states.items()}

    def check(self, server):
        """Compares all that the server holds with what it must hold."""
        client = server.client
        page = client.list(page_size=1000)
        listed = {adapter.name: adapter for adapter in page.adapters}
        for worker in self.workers:
            worker.settle(listed)
        if page.summary.memory_bytes or page.summary.resident_count:
            self.losses.append(f"nothing was used yet, but in memory is {page.summary}")
        resident = set()
        for name, state in self.states().items():
            if not state.enabled:
                continue
            self._use(client, name, "", state.revision)
            for alias, revision in state.aliases.items():
                self._use(client, f"{name}@{alias}", "", revision)
            for revision in state.kept:
                self._use(client, name, revision, revision)
            resident.update(state.revisions)
        self._check_memory(client, resident)
        for worker in self.workers:
            self.losses += worker.losses
            worker.losses = []
        if not self.losses:  # with a loss, what the store should hold is unknown
            self._check_store()

    def _use(self, client, name, wanted, revision):
        try:
            reply = client.apply(ask(name, wanted))
        except grpc.RpcError as error:
            self.losses.append(f"{name} is not served: {failure_of(error)}")
            return
        check_reply(name, revision, reply, self.contents, self.losses)

    def _check_memory(self, client, resident):
        expected = sum(self.contents[revision].memory_bytes for revision in resident)
        found = client.list().summary
        enabled = sum(state.enabled for state in self.states().values())
        if (found.memory_bytes, found.resident_count) != (expected, enabled):
            self.losses.append(f"in memory should be {enabled} adapters of {expected} bytes, "
                               f"not {found}")

    def _check_store(self):
        used = {revision for state in self.states().values() for revision in state.revisions}
        expected = {self.contents[revision].key for revision in used
                    if self.contents[revision].source.startswith("u")}
        store = self.data / "store"

        def tidy():
            return ({key.name for key in (store / "content").iterdir()} == expected and
                    not any((store / "incoming").iterdir()))
        until(tidy, f"the store to hold {expected} alone")

    def finish(self, server):
        """Unloads everything: then nothing is left."""
        for name in self.states():
            server.client.unload(name, force=True)
        left = server.client.list().summary
        if left.adapter_count or left.memory_bytes:
            self.losses.append(f"everything is unloaded, but there is {left}")
        for worker in self.workers:
            worker.states.clear()
        self._check_store()


class CrashTest(ServerTest):
    def run_kills(self, driver, kills):
        driver.measure()
        server = driver.start()
        while driver.kills < kills:
            driver.work_and_kill(server)
            while driver.kills < kills and driver.choose.random() < 0.25:
                driver.kill_early()
            server = driver.start()
            driver.check(server)
            if driver.losses:
                break
        return server

    def test_what_was_acknowledged_survives_and_the_rest_is_whole_or_absent(self):
        driver = Driver(self, SEED)
        server = self.run_kills(driver, KILLS)
        if not driver.losses:
            driver.finish(server)
        server.stop()
        print(f"{driver.acknowledged} operations acknowledged, {driver.kills} kills, "
              f"{len(driver.losses)} losses; slowest start {driver.slowest:.2f} s")
        self.assertEqual(driver.losses, [])
        self.assertLess(driver.slowest, PROMPT)

    def test_a_loss_would_be_found(self):
        """Plants losses between a kill and the restart."""
        for loss in LOSSES:
            with self.subTest(loss):
                driver = Driver(self, SEED)
                driver.measure()
                server = driver.start()
                worker, name = driver.workers[0], None
                while name is None:
                    worker.step(server.client)
                    name = next((n for n, state in worker.states.items()
                                 if state.kept and state.enabled and not state.aliases), None)
                driver.kill(server)
                catalogue = sqlite3.connect(driver.data / "catalogue.sqlite")
                for statement in LOSSES[loss]:
                    self.assertGreater(catalogue.execute(statement, {"name": name}).rowcount, 0)
                catalogue.commit()
                catalogue.close()
                server = driver.start()
                driver.check(server)
                server.stop()
                self.assertTrue(any(name in text for text in driver.losses), driver.losses)


if __name__ == "__main__":
    print(f"seed {SEED}")
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
