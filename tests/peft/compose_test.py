"""What adapterd composes loads in the real PEFT, and is what add_weighted_adapter makes there.

Runs with the Python of the integration tests; ADAPTERD_PEFT_PYTHON is one that has PEFT (./dev peft
makes it), for read_composed.py, which also times PEFT's own route.
"""
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))

from compose_test import request_of
from harness import PATIENCE, ServerTest, fixtures

PYTHON = os.environ["ADAPTERD_PEFT_PYTHON"]
FIXTURES = fixtures("peft/compose")


class ComposeTest(ServerTest):
    def test_exports_are_what_peft_makes_of_the_same_adapters(self):
        exports = self.folder()
        client = self.start(f"--adapter-root={FIXTURES}").client
        for name in "abcd":
            client.load(name, name)
        cases = json.loads((FIXTURES / "compose.json").read_text())
        for name, case in cases.items():
            client.adapters.ComposeAdapter(request_of(name, **case), timeout=PATIENCE)
            client.export(name, exports / name)
        done = subprocess.run(
            [PYTHON, "-B", HERE / "read_composed.py", fixtures("peft/bases") / "tiny-llama", FIXTURES,
             exports], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        found = json.loads(done.stdout)
        print(found)
        self.assertEqual(set(found), set(cases))
        for name, distance in found.items():
            # PEFT's clamp depends on the signs that its SVD gives: docs/compose.md.
            if "svd_clamp" not in cases[name]:
                self.assertLess(distance, 1e-4, name)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + ["-v"] + sys.argv[1:])
