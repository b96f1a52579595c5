"""Mixed traffic of all RPCs against the real server, with faults, for as long as asked; then a report.

  soak.py MINUTES [--clients N] [--seed N] [--report FILE]

Three parts of equal length, after each of which everybody goes away and the server must be as it was after
the first one. Ends with 1 when an answer was wrong, something leaked, an RPC was never asked for, or the server
did not end well.
"""
import argparse
import itertools
import multiprocessing
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))

from certificates import Authority
from checkpoints import read_checkpoint
from client import World, run_client
from contents import MODEL, write_broken, write_contents, write_model
from faults import Certificates, Faults
from harness import Server, until
from numbers_calls import BASE
from recorder import Recorder
from adapterd.v1 import (adapter_service_pb2, base_model_service_pb2, merge_service_pb2,
                         projection_service_pb2)

PARTS = 3
SHARED = ("shared-0", "shared-1", "shared-2")
# Between the two, adapters are evicted at each reload, and come back.
BUDGETS = ("112KiB", "1MiB")
# What there may be more after the last part than after the first: what the allocator keeps, and gRPC's own threads.
LEAKED_BYTES = 32 << 20
MORE_THREADS = 8


class Soak:
    def __init__(self, folder, minutes, clients, seed):
        self.folder, self.minutes, self.clients, self.seed = folder, minutes, clients, seed
        for name in ("adapters", "models", "outputs"):
            (folder / name).mkdir()
        self.contents = tuple(write_contents(folder / "adapters"))
        self.broken = write_broken(folder / "adapters")
        write_model(folder / "models")
        self.certificates = Certificates(Authority("openssl", folder / "authority"), folder)
        self.config = folder / "adapterd.conf"
        self.budgets = itertools.cycle(BUDGETS)
        self.write_config()
        self.server = Server(
            f"--adapter-root={folder / 'adapters'}", f"--model-root={folder / 'models'}",
            f"--output-root={folder / 'outputs'}", f"--data-dir={folder / 'data'}", "--keep-revisions=2",
            f"--config={self.config}", f"--tls-cert={self.certificates.cert}",
            f"--tls-key={self.certificates.key}", f"--unix-socket={folder / 'socket'}")
        self.client = self.server.connect(f"unix:{folder / 'socket'}")
        self.record, self.drift, self.rests, self.problems = Recorder(), [], [], []
        self.faults = {}

    def write_config(self):
        self.config.write_text(f"memory-budget = {next(self.budgets)}\n")

    def begin(self):
        """What is there while clients are."""
        for name, content in zip(SHARED, self.contents):
            self.client.load(name, content.source)
        self.client.load_base(BASE, MODEL)

    def run_part(self, part, seconds):
        self.begin()
        world = World(self.server.grpc, self.certificates.authority.certificate.read_bytes(),
                      str(self.folder / "outputs"), self.contents, self.broken, SHARED,
                      self.client.info().instance_id)
        faults = Faults(self.server, world, self.certificates, self.write_config, f"{self.seed}/{part}")
        spawn = multiprocessing.get_context("spawn")
        results = spawn.Queue()
        processes = [spawn.Process(target=run_client, args=(
            world, f"c{i}", f"{self.seed}/{part}/{i}", seconds, results)) for i in range(self.clients)]
        for process in processes:
            process.start()
        faults.start()
        together = Recorder()
        for _ in processes:
            together.add(results.get(timeout=seconds + 300))
        for process in processes:
            process.join()
        faults.stop()
        self.problems += faults.errors
        for name, count in faults.counts.items():
            self.faults[name] = self.faults.get(name, 0) + count
        self.drift.append(np.percentile(together.seconds, [50, 99]) * 1000)
        self.record.add(together)
        self.rest()

    def rest(self):
        """Nobody is there: everything goes, and what is left is counted."""
        client = self.client
        for name in client.list_bases():
            client.unload_base(name)
        while adapters := client.list(page_size=1000).adapters:
            for adapter in adapters:
                client.unload(adapter.name, force=True, allow_missing=True)
        until(lambda: self.server.metric("adapterd_inflight_bytes") == 0, "requests to end")
        until(lambda: self.held() == 0, "all weights to be free")
        for output in (self.folder / "outputs").glob("dying*"):  # whole, but nobody lived to look at it
            read_checkpoint(output)
            shutil.rmtree(output)
        for output in (self.folder / "outputs").glob("gone-*"):
            shutil.rmtree(output)
        try:
            until(lambda: not self.files_left(), "files to be removed")
        except AssertionError as error:
            self.problems.append(f"{error}: {self.files_left()}")
        until(lambda: self.certificates.is_served(self.server.grpc), "the newest certificate to be served")
        self.rests.append(self.settled())

    def held(self):
        return sum(value for (name, labels), value in self.server.metrics().items()
                   if name == "adapterd_memory_bytes" and dict(labels)["kind"] in ("adapters", "base_models"))

    def files_left(self):
        store = self.folder / "data/store"
        return [*(store / "content").iterdir(), *(store / "incoming").iterdir(),
                *(self.folder / "outputs").iterdir()]

    def settled(self):
        """(bytes, descriptors, threads), once nothing has changed for two seconds."""
        last, since = None, time.monotonic()
        while time.monotonic() < since + 2:
            now = self.usage()
            if now[1:] != last:
                last, since = now[1:], time.monotonic()
            time.sleep(0.1)
        return self.usage()

    def usage(self):
        process = Path(f"/proc/{self.server.process.pid}")
        anonymous = re.search(r"RssAnon:\s+(\d+)", (process / "status").read_text())[1]
        return (int(anonymous) * 1024, len(list((process / "fd").iterdir())), len(list((process / "task").iterdir())))

    def run(self):
        for part in range(PARTS):
            self.run_part(part, self.minutes * 60 / PARTS)
        self.evictions = int(self.server.metric("adapterd_evictions_total"))
        failed = self.server.stderr().count("reload_failed")
        if failed:
            self.problems.append(f"{failed} reloads failed")
        try:
            self.server.stop()
        except AssertionError as error:
            self.problems.append(str(error))
        self.judge()

    def judge(self):
        first, last = self.rests[0], self.rests[-1]
        for what, before, after, more in zip(("bytes", "descriptors", "threads"), first, last, (LEAKED_BYTES, 0, MORE_THREADS)):
            if after > before + more:
                self.problems.append(f"{what} grew from {before} to {after}")
        asked = {method for method, outcome in self.record.counts if outcome == "OK"}
        if methods() - asked:
            self.problems.append(f"never answered: {sorted(methods() - asked)}")
        if self.record.wrong_count:
            self.problems.append(f"{self.record.wrong_count} wrong answers")

    def report(self):
        first, last = self.rests[0], self.rests[-1]
        yield f"soak of {self.minutes:g} minutes, {self.clients} clients, seed {self.seed}"
        yield ""
        yield "| method | answered | refused as it must be, or for want of memory |"
        yield "|---|---:|---|"
        for method in sorted(methods()):
            others = {o: n for (m, o), n in self.record.counts.items() if m == method and o != "OK"}
            told = ", ".join(f"{n} {outcome}" for outcome, n in sorted(others.items()))
            yield f"| {method} | {self.record.counts[method, 'OK']} | {told} |"
        yield ""
        yield f"requests: {sum(self.record.counts.values())}"
        yield f"wrong answers: {self.record.wrong_count}"
        yield "faults: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(self.faults.items()))
        yield f"evictions: {self.evictions}"
        yield f"bytes after the first and the last part: {first[0]:,} and {last[0]:,} ({last[0] - first[0]:+,})"
        yield f"descriptors: {first[1]} and {last[1]}; threads: {first[2]} and {last[2]}"
        thirds = "; ".join(f"{half:.1f} and {p99:.1f}" for half, p99 in self.drift)
        yield f"ApplyProjection, p50 and p99 in ms by thirds: {thirds}"
        yield "problems: " + ("none" if not self.problems else "")
        yield from [f"- {problem}" for problem in [*self.problems, *self.record.wrongs]]


def methods():
    """Names of all RPCs, by their descriptors."""
    files = (adapter_service_pb2, base_model_service_pb2, merge_service_pb2, projection_service_pb2)
    return {method.name for file in files for service in file.DESCRIPTOR.services_by_name.values()
            for method in service.methods}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("minutes", type=float)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="adapterd-soak-") as folder:
        soak = Soak(Path(folder), arguments.minutes, arguments.clients, arguments.seed)
        try:
            soak.run()
        finally:
            soak.server.process.kill()
    report = "\n".join(soak.report())
    print(report)
    if arguments.report is not None:
        arguments.report.write_text(report + "\n")
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
