"""Merged checkpoints in the eyes of transformers: their logits are those of PEFT's own merges.

Runs with the Python of the integration tests; ADAPTERD_PEFT_PYTHON is one that has transformers (./dev peft
makes it), for read_logits.py.
"""
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))

from harness import ServerTest, fixtures

PYTHON = os.environ["ADAPTERD_PEFT_PYTHON"]

# Of the largest logit. A BF16 weight in 500 may lie on the other side of a rounding.
TOLERANCES = {"F32": 1e-4, "BF16": 1e-2}
# What the adapter does has to be seen beside that.
CHANGE = 3


class CheckpointTest(ServerTest):
    def test_transformers_computes_what_it_does_with_pefts_merges(self):
        output = self.folder()
        server = self.start(f"--adapter-root={fixtures('peft/merge')}",
                            f"--model-root={fixtures('peft')}", f"--output-root={output}")
        cases = sorted(fixtures("peft/merge").iterdir())
        self.assertGreaterEqual(len(cases), 7)
        for folder in cases:
            with self.subTest(folder.name):
                base = json.loads((folder / "case.json").read_text())["base"]
                server.client.load(folder.name, f"{folder.name}/adapter")
                server.client.merged_checkpoint(base, folder.name, [folder.name])
                found = self.logits(folder / "merged", output / folder.name, fixtures("peft") / base)
                ours, unmerged = (d / found["scale"] for d in found["distances"])
                print(f"{folder.name}: {ours:.2g} of the largest logit off, unmerged {unmerged:.2g}")
                tolerance = TOLERANCES["BF16" if "bf16" in folder.name else "F32"]
                self.assertLess(ours, tolerance)
                self.assertGreater(unmerged, CHANGE * tolerance)

    def logits(self, *folders):
        done = subprocess.run([PYTHON, "-B", HERE / "read_logits.py", *folders], capture_output=True,
                              text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        return json.loads(done.stdout)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + ["-v"] + sys.argv[1:])
