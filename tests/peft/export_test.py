"""What adapterd exports is the adapter that it loaded, in the eyes of the real PEFT.

Runs with the Python of the integration tests; ADAPTERD_PEFT_PYTHON is one that has PEFT (./dev peft
makes it), for compare_exports.py.
"""
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))

from cases_table import LOAD, entries, root_flags, source
from harness import ServerTest, fixtures
from peft_rules import PeftAdapter
from adapterd.v1 import adapter_pb2

# PEFT sorts the patterns of a config when it saves, and then reads other ranks than it wrote.
UNREADABLE = {"llama-patterns"}

PYTHON = os.environ["ADAPTERD_PEFT_PYTHON"]


class ExportTest(ServerTest):
    def setUp(self):
        self.exports = self.folder()
        self.client = self.start(*root_flags(), f"--adapter-root=exports={self.exports}").client

    def cases(self):
        """(kind, name) of every adapter whose base model is here."""
        for kind, name, _ in entries(LOAD):
            if kind in ("peft/cases", "golden-peft"):
                yield kind, name

    def export(self, name, folder):
        return self.client.export(name, self.exports / folder,
                                  format=adapter_pb2.ADAPTER_FORMAT_PEFT)

    def test_an_export_is_the_same_adapter_and_exports_the_same_bytes(self):
        for kind, name in self.cases():
            with self.subTest(name):
                loaded = self.client.load(name, source(kind, name)).adapter
                first = self.export(name, name)
                again = self.client.load(f"{name}.again", f"exports:{name}").adapter
                if not folds(PeftAdapter(fixtures(kind) / name)):
                    self.assertEqual(again.revision, loaded.revision)
                second = self.export(f"{name}.again", f"{name}.again")
                files = [{path.name: path.read_bytes() for path in folder.iterdir()}
                         for folder in (first, second)]
                self.assertEqual(set(files[0]), {"adapter_config.json",
                                                 "adapter_model.safetensors"})
                self.assertEqual(*files)

    def test_peft_reads_an_export_as_it_reads_the_original(self):
        jobs = []
        for kind, name in self.cases():
            self.client.load(name, source(kind, name))
            jobs.append(job(kind, name, self.export(name, name)))
        reports = compare(self.folder(), jobs)
        self.assertEqual([report["name"] for report in reports], [job["name"] for job in jobs])
        for report in reports:
            with self.subTest(report["name"]):
                self.assertEqual(report["trouble"], "")
                self.assertLessEqual(report["worst"], 1, report["where"])
                print(f"{report['name']:32} {report['compared']} tensors and outputs are PEFT's, "
                      f"worst {report['worst']:.2f} of the tolerance")


def folds(truth):
    """Whether an export can only hold products of what the file holds."""
    return any(pair.folds for pair in truth.modules.values())


def job(kind, name, exported):
    folder = fixtures(kind) / name
    base, dtype = folder, "float32"
    if kind == "peft/cases":
        case = json.loads((folder / "case.json").read_text())
        base, dtype = fixtures("peft/bases") / case["base"], case["base_dtype"]
    # ok-* are spellings of llama-qv, some of which PEFT itself reads as nothing.
    original = folder.parent / "llama-qv" if name.startswith("ok-") else folder
    if name in UNREADABLE:
        original = folder / "expected.safetensors"
    return {"name": name, "base": str(base), "dtype": dtype, "original": str(original),
            "exported": str(exported), "exact": not folds(PeftAdapter(folder))}


def compare(folder, jobs):
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run([PYTHON, "-B", HERE / "compare_exports.py", folder / "jobs.json"],
                          stdout=subprocess.PIPE, text=True, check=True,
                          env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
