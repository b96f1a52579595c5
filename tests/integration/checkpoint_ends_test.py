"""MergeCheckpoint where it does not go well: bad input, full disks, clients that leave, kill -9. What
is left is always nothing, or the whole output."""
import json
import os
import random
import resource
import shutil
import tempfile
import time
import unittest
from pathlib import Path

import grpc
import numpy as np

from adapters import write_adapter
from checkpoints import (CONFIG, INDEX, WEIGHTS, checkpoint_digest, llama_tensors, projection_paths,
                         read_checkpoint, write_checkpoint)
from harness import PATIENCE, Server, ServerTest, failure_of, until
from tensors import array, safetensors_bytes

KILLS = int(os.environ.get("ADAPTERD_MERGE_KILLS", "20"))
UNFINISHED = ".adapterd-merge-"

# Large enough that a merge takes some hundred milliseconds, so that it can be met in the middle.
WIDE = {f"model.layers.{layer}.self_attn.q_proj": (1024, 1024) for layer in range(24)}


def modules(layers=2, rank=4):
    return {path: (shape[1], shape[0], rank) for path, shape in projection_paths(layers).items()}


class CheckpointEndsTest(ServerTest):
    def setUp(self):
        self.root = self.folder()

    def begin(self, **options):
        self.server = self.start(f"--adapter-root={self.root}", f"--model-root={self.root}",
                                 **options)
        self.client = self.server.client

    def small(self, **fields):
        write_checkpoint(self.root / "base", llama_tensors(), **fields)
        write_adapter(self.root / "a", modules())
        self.begin()
        self.client.load("a", "a")

    def wide(self):
        random_numbers = np.random.default_rng(5)
        tensors = {f"{path}.weight": array(random_numbers.standard_normal(shape), "BF16")
                   for path, shape in WIDE.items()}
        write_checkpoint(self.root / "base", tensors, shards=4)
        write_adapter(self.root / "a", {path: (1024, 1024, 8) for path in WIDE})

    def entries(self):
        return sorted(p.name for p in self.root.iterdir())

    def merge(self, source="base", output="out", adapters=("a",), **fields):
        return self.client.merged_checkpoint(source, output, adapters, **fields)

    def merge_refused(self, status, source="base", output="out", **metadata):
        before = self.entries()
        failure = self.refused(status, lambda: self.merge(source, output), **metadata)
        self.assertEqual(self.entries(), before)
        return failure

    # Bad input.

    def test_a_request_that_makes_no_sense_is_refused(self):
        self.small()
        invalid = "INVALID_ARGUMENT/INVALID_FIELD"
        for field, fields in (("source", {"source": ""}), ("output", {"output": ""}),
                              ("adapters", {"adapters": []}),
                              ("adapters[1]", {"adapters": ["a", "a"]}),
                              ("max_shard_bytes", {"max_shard_bytes": -1})):
            with self.subTest(field):
                self.refused(invalid, lambda: self.merge(**fields), field=field)
        self.refused("INVALID_ARGUMENT/UNSUPPORTED_DTYPE", lambda: self.merge(dtype=4),
                     field="dtype")
        self.refused("NOT_FOUND/ADAPTER_NOT_FOUND", lambda: self.merge(adapters=["nobody"]))
        self.assertEqual(self.entries(), ["a", "base"])

    def test_files_are_not_more_than_may_be_open(self):
        write_checkpoint(self.root / "base", {**llama_tensors(), **{
            f"model.layers.9.buffers.{i}": array([1.0]) for i in range(513)}})
        write_adapter(self.root / "a", modules())
        self.begin()
        self.client.load("a", "a")
        self.refused("INVALID_ARGUMENT/INVALID_FIELD", lambda: self.merge(max_shard_bytes=1),
                     field="max_shard_bytes", expected="at most 512 files")
        for i in range(1000):
            (self.root / "base" / f"note{i}.txt").touch()
        self.merge_refused("INVALID_ARGUMENT/INVALID_FIELD", field="source",
                           expected="at most 1000 files")
        (self.root / "base" / "note0.txt").unlink()
        self.merge()

    def test_paths_stay_below_their_roots(self):
        self.small()
        outside = self.folder()
        (self.root / "away").symlink_to(outside)
        for output in ("../out", "/tmp/out", "x/../../out", "away/out"):
            self.merge_refused("INVALID_ARGUMENT/PATH_OUTSIDE_ROOT", output=output)
        for source in ("../base", "/etc", "away"):
            self.merge_refused("INVALID_ARGUMENT/PATH_OUTSIDE_ROOT", source=source)
        self.assertEqual(list(outside.iterdir()), [])

    def test_an_output_that_is_there_is_kept(self):
        self.small()
        (self.root / "empty").mkdir()
        (self.root / "file").write_text("mine")
        (self.root / "dangling").symlink_to("nowhere")
        for output in ("empty", "file", "dangling", "base", ".", "empty/"):
            self.merge_refused("ALREADY_EXISTS/OUTPUT_EXISTS", output=output, field="output")
        self.assertEqual((self.root / "file").read_text(), "mine")
        self.merge_refused("NOT_FOUND/SOURCE_NOT_FOUND", output="file/out")

    def test_an_output_inside_the_source_is_refused(self):
        self.small()
        (self.root / "base/sub").mkdir()
        (self.root / "link").symlink_to("base/sub")
        for output in ("base/out", "base/sub/out", "base/x/y", "link/out"):
            self.merge_refused("INVALID_ARGUMENT/INVALID_FIELD", output=output, field="output")
        self.assertEqual(list((self.root / "base/sub").iterdir()), [])

    def test_broken_checkpoints_are_refused(self):
        self.small(shards=3)
        shard = "model-00002-of-00003.safetensors"
        broken = "INVALID_ARGUMENT/MALFORMED_TENSOR_FILE"

        def change_index(folder, change):
            index = json.loads((folder / INDEX).read_text())
            change(index["weight_map"])
            (folder / INDEX).write_text(json.dumps(index))

        def twice(folder):
            first = next(iter(json.loads((folder / INDEX).read_text())["weight_map"]))
            path = folder / shard
            more = {first: array([1.0])}
            path.write_bytes(safetensors_bytes(more))

        for status, damage in (
                ("NOT_FOUND/SOURCE_NOT_FOUND", lambda f: (f / shard).unlink()),
                (broken, lambda f: change_index(f, lambda m: m.update({"nothing.weight": shard}))),
                (broken, twice),
                (broken, lambda f: os.truncate(f / shard, (f / shard).stat().st_size - 5)),
                (broken, lambda f: (f / shard).write_bytes(b"")),
                ("NOT_FOUND/SOURCE_NOT_FOUND", lambda f: [p.unlink() for p in f.iterdir()])):
            shutil.rmtree(self.root / "broken", ignore_errors=True)
            shutil.copytree(self.root / "base", self.root / "broken")
            damage(self.root / "broken")
            self.merge_refused(status, source="broken")

    def test_weights_of_other_quantisers_are_refused_by_name(self):
        self.small()
        path = "model.layers.0.self_attn.q_proj.weight"
        for dtype in ("F8_E4M3", "I8", "U8"):
            tensors = llama_tensors()
            content = safetensors_bytes({**tensors, path: array(np.zeros((24, 16)), "I8")})
            folder = self.root / dtype
            write_checkpoint(folder, {})
            size = int.from_bytes(content[:8], "little")
            header = content[8:8 + size].replace(b'"I8"', f'"{dtype}"'.encode())
            (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header +
                                           content[8 + size:])
            self.merge_refused("INVALID_ARGUMENT/UNSUPPORTED_DTYPE", source=dtype, tensor=path,
                               actual=dtype)
        write_checkpoint(self.root / "gptq", llama_tensors(),
                         {**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 4}})
        failure = self.merge_refused("INVALID_ARGUMENT/UNSUPPORTED_DTYPE", source="gptq")
        self.assertIn("gptq", failure.message)

    def test_an_adapter_of_another_model_is_refused(self):
        self.small()
        write_adapter(self.root / "other", {"encoder.block.0.q": (16, 24, 2)})
        write_adapter(self.root / "wide", {"model.layers.0.self_attn.q_proj": (17, 24, 2)})
        for name in ("other", "wide"):
            self.client.load(name, name)
            failure = self.refused("INVALID_ARGUMENT/BASE_MODEL_MISMATCH",
                                   lambda: self.merge(adapters=[name]), adapter=name)
            self.assertEqual(failure.metadata.get("field", "source"), "source", failure)

    def test_shards_may_be_links_below_the_root(self):
        self.small()
        hub = self.root / "hub/blobs"
        hub.mkdir(parents=True)
        (self.root / "hub/snapshot").mkdir()
        for file in (self.root / "base").iterdir():
            shutil.move(file, hub / f"blob-{file.name}")
            (self.root / "hub/snapshot" / file.name).symlink_to(f"../blobs/blob-{file.name}")
        result = self.merge("hub/snapshot")
        self.assertEqual(checkpoint_digest(read_checkpoint(self.root / "out")), result.digest)
        self.assertTrue((self.root / "out" / WEIGHTS).is_file())
        self.assertFalse((self.root / "out" / WEIGHTS).is_symlink())
        outside = self.folder() / WEIGHTS
        outside.write_bytes((hub / f"blob-{WEIGHTS}").read_bytes())
        (self.root / "hub/snapshot" / WEIGHTS).unlink()
        (self.root / "hub/snapshot" / WEIGHTS).symlink_to(outside)
        self.merge_refused("INVALID_ARGUMENT/PATH_OUTSIDE_ROOT", source="hub/snapshot",
                           output="out2")

    def test_source_and_output_may_lie_on_different_file_systems(self):
        self.small()
        shared_memory = Path("/dev/shm")
        if shared_memory.stat().st_dev == self.root.stat().st_dev:
            self.skipTest("there is one file system only")
        with tempfile.TemporaryDirectory(prefix="adapterd-test-", dir=shared_memory) as outputs:
            server = self.start(f"--adapter-root={self.root}", f"--model-root={self.root}",
                                f"--output-root={outputs}")
            server.client.load("a", "a")
            result = server.client.merged_checkpoint("base", "out", ["a"])
            self.assertEqual(checkpoint_digest(read_checkpoint(Path(outputs) / "out")),
                             result.digest)

    # A disk that is full, and clients that leave.

    def test_a_full_disk_leaves_nothing(self):
        self.wide()
        self.begin()
        self.client.load("a", "a")
        limit = 1 << 20
        resource.prlimit(self.server.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        self.merge_refused("RESOURCE_EXHAUSTED/STORAGE_FULL")

    def test_a_client_that_leaves_takes_the_output_with_it(self):
        self.wide()
        self.begin()
        self.client.load("a", "a")
        for i in range(5):
            stream = self.client.merge_checkpoint("base", f"out{i}", ["a"])
            next(stream)
            stream.cancel()
            until(lambda: not any(n.startswith(UNFINISHED) for n in self.entries()), "no leftovers")
        for name in set(self.entries()) - {"a", "base"}:  # done before it heard of it
            self.assert_whole(self.root / name)

    def test_a_deadline_ends_it(self):
        self.wide()
        self.begin()
        self.client.load("a", "a")
        with self.assertRaises(grpc.RpcError) as caught:
            self.merge(timeout=0.02)
        self.assertEqual(failure_of(caught.exception).code, "DEADLINE_EXCEEDED")
        until(lambda: not any(n.startswith(UNFINISHED) for n in self.entries()), "no leftovers")
        self.assertNotIn("out", self.entries())

    def test_there_are_not_too_many_at_once(self):
        self.wide()
        self.begin()
        self.client.load("a", "a")
        streams = [self.client.merge_checkpoint("base", f"out{i}", ["a"]) for i in range(12)]
        ends = []
        for stream in streams:
            try:
                ends.append(list(stream)[-1].phase)
            except grpc.RpcError as error:
                failure = failure_of(error)
                self.assertEqual(failure.status, "UNAVAILABLE/OVERLOADED")
                self.assertIsNotNone(failure.retry_seconds)
                ends.append("refused")
        self.assertGreaterEqual(ends.count("done"), 4)
        self.assertEqual([n for n in self.entries() if n.startswith("out")],
                         sorted(f"out{i}" for i, end in enumerate(ends) if end == "done"))

    # Crashes.

    def assert_whole(self, output):
        certificate = json.loads((output / "adapterd_merge.json").read_text())
        self.assertEqual(checkpoint_digest(read_checkpoint(output)), certificate["digest"])
        self.assertEqual(certificate["digest"], self.digest)

    def test_kill_9_leaves_all_of_it_or_nothing(self):
        self.wide()
        self.begin()
        self.client.load("a", "a")
        begun = time.monotonic()
        self.digest = self.merge(output="reference").digest
        seconds = time.monotonic() - begun
        shutil.rmtree(self.root / "reference")
        self.server.stop()
        moments = random.Random(7)
        met = {"nothing": 0, "whole": 0, "left over": 0}
        for _ in range(KILLS):
            server = Server(f"--adapter-root={self.root}", f"--model-root={self.root}")
            server.expected_exit = -9
            self.addCleanup(server.stop)
            self.assertEqual(self.entries(), ["a", "base"])  # what was left over is gone
            server.client.load("a", "a")
            stream = server.client.merge_checkpoint("base", "out", ["a"])
            next(stream)
            time.sleep(moments.uniform(0, 1.2 * seconds))  # the moment is what is tested
            server.process.kill()
            server.process.wait()
            left = self.entries()
            met["left over"] += any(name.startswith(UNFINISHED) for name in left)
            met["whole" if "out" in left else "nothing"] += 1
            if "out" in left:
                self.assert_whole(self.root / "out")
                shutil.rmtree(self.root / "out")
        self.begin()
        self.assertEqual(self.entries(), ["a", "base"])
        print(f"kill -9 at {KILLS} moments of {seconds:.2f} s: {met}")
        self.assertGreater(met["left over"], 0)

    def test_a_start_leaves_alone_what_another_process_is_writing(self):
        self.wide()
        self.begin()
        self.client.load("a", "a")
        stream = self.client.merge_checkpoint("base", "out", ["a"])
        next(stream)
        self.start(f"--adapter-root={self.root}", f"--model-root={self.root}")
        self.digest = list(stream)[-1].result.digest
        self.assert_whole(self.root / "out")


if __name__ == "__main__":
    unittest.main()
