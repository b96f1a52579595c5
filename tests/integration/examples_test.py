"""The example clients do what they say, and their service config what docs/clients.md says."""
import importlib.util
import itertools
import subprocess
import sys
import threading
import unittest

import numpy as np

from harness import BINARY, PATIENCE, ServerTest, clean_environment
from stubs import SOURCE_DIR, stubs_dir
from adapterd.v1 import adapter_pb2

EXAMPLES = SOURCE_DIR / "examples"
REVISION = "8cfb9583e0db41be3e9ab04b487716434be3eb2e93d074e61296162f3d35bb2b"
# examples/README.md tells how to compute them by hand.
DELTA = [12, 6, -12]
MERGED = [[3, 1, -1, 5], [2, 1, 0, 3], [-1, 1, 3, -3]]


def load_example():
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / "python/client.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


class ExamplesTest(ServerTest):
    def serve(self):
        return self.start(f"--adapter-root={EXAMPLES / 'adapters'}", "--load=toy=toy")

    def run_example(self, *command):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE,
                              env=clean_environment(PYTHONPATH=str(stubs_dir())))
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.splitlines()

    def test_the_python_client(self):
        server = self.start(f"--adapter-root={EXAMPLES / 'adapters'}")
        printed = self.run_example(sys.executable, EXAMPLES / "python/client.py", server.grpc)
        self.assertEqual(printed, [f"revision {REVISION}", f"delta [{[float(x) for x in DELTA]}]",
                                   f"merged {[[float(x) for x in row] for row in MERGED]}"])

    def test_the_cpp_client(self):
        server = self.start(f"--adapter-root={EXAMPLES / 'adapters'}")
        printed = self.run_example(BINARY.parent / "adapterd_example_client",
                                   EXAMPLES / "service_config.json", server.grpc)
        self.assertEqual(printed, [f"revision {REVISION}", "delta " + " ".join(map(str, DELTA)),
                                   "merged " + " ".join(str(x) for row in MERGED for x in row)])

    def test_clients_say_what_is_wrong(self):
        server = self.start()
        for command in ((sys.executable, EXAMPLES / "python/client.py"),
                        (BINARY.parent / "adapterd_example_client", EXAMPLES / "service_config.json")):
            done = subprocess.run([*command, server.grpc], capture_output=True, text=True,
                                  timeout=PATIENCE, env=clean_environment(PYTHONPATH=str(stubs_dir())))
            self.assertEqual(done.returncode, 1)
            self.assertIn("toy", done.stderr)

    def test_a_replica_that_goes_costs_no_request(self):
        example = load_example()
        first, second = self.serve(), self.serve()
        module = adapter_pb2.ModuleSelector(target="q_proj", layer=0)
        row = np.array([[1, 2, 3, 4]])

        def requests(server):
            return server.metric("grpc_server_started_total", grpc_method="ApplyProjection",
                                 grpc_service="adapterd.v1.ProjectionService")

        with example.connect(f"ipv4:{first.grpc},{second.grpc}") as channel:
            def call():
                self.assertEqual(example.apply(channel, "toy", module, row).tolist(), [DELTA])
            call()
            for _ in itertools.takewhile(lambda _: not (requests(first) and requests(second)), itertools.count()):
                call()  # until both have been asked
            stopped = threading.Event()

            def stop():
                first.terminate()
                first.wait()
                stopped.set()
            stopper = threading.Thread(target=stop)
            stopper.start()
            while not stopped.is_set():
                call()
            stopper.join()
            for _ in range(50):
                call()


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
