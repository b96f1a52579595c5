"""A fresh adapter for a model of 7 billion parameters, in the eyes of the real PEFT.

Runs with the Python of the integration tests; ADAPTERD_PEFT_PYTHON is one that has PEFT (./dev peft
makes it), for read_created.py.
"""
import json
import math
import os
import subprocess
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))

from harness import PATIENCE, ServerTest
from adapterd.v1 import adapter_creation_pb2 as creation
from adapterd.v1 import adapter_service_pb2

PYTHON = os.environ["ADAPTERD_PEFT_PYTHON"]

# Llama 2 7B.
SIZES = dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, vocab_size=32000)
LAYERS = 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 16
# Of each of 224 modules: rank x in_features.
DRAWS = LAYERS * RANK * (6 * 4096 + 11008)


class CreationTest(ServerTest):
    def export(self, client, folder):
        """As the harness does, for more than one likes to hold in memory."""
        folder.mkdir()
        file = None
        for reply in client.adapters.ExportAdapter(
                adapter_service_pb2.ExportAdapterRequest(name="made"), timeout=10 * PATIENCE):
            if reply.HasField("file"):
                file = self.enterContext(open(folder / reply.file.name, "wb"))
            else:
                file.write(reply.data)
            file.flush()

    def test_peft_reads_it_with_b_a_zero_and_a_uniform(self):
        folder = self.folder() / "made"
        client = self.start().client
        adapter = client.adapters.CreateAdapter(creation.CreateAdapterRequest(
            name="made", geometry=creation.ModelGeometry(num_layers=LAYERS, **SIZES),
            target_modules=TARGETS, rank=RANK, seed=7), timeout=PATIENCE).adapter
        self.assertEqual(adapter.parameter_count,
                         LAYERS * RANK * (4 * (4096 + 4096) + 3 * (4096 + 11008)))
        self.export(client, folder)
        config = json.dumps(dict(num_hidden_layers=LAYERS, **SIZES))
        done = subprocess.run([PYTHON, HERE / "read_created.py", folder, config],
                              capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        found = json.loads(done.stdout)
        print(found)
        self.assertEqual((found["modules"], found["draws"]), (LAYERS * len(TARGETS), DRAWS))
        self.assertEqual(found["largest"], 0)
        # Four standard deviations of what so many uniform draws in [-1, 1] give.
        root = math.sqrt(DRAWS)
        self.assertLess(abs(found["mean"]), 4 / math.sqrt(3) / root)
        self.assertLess(abs(found["deviation"] - 1 / math.sqrt(3)), 4 * math.sqrt(1 / 15) / root)
        # The largest of n draws lies about 1/n below 1, and F32 rounds by 2^-24 at most.
        self.assertLess(found["greatest"], 1 + 2.0 ** -22)
        self.assertGreater(found["greatest"], 1 - 20 / DRAWS - 2.0 ** -22)
        self.assertLess(found["kolmogorov"], 1.95)  # exceeded once in a thousand


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + ["-v"] + sys.argv[1:])
