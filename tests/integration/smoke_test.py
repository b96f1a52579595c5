"""adapterd_smoke, which tests an installation: it passes on a good server, and leaves nothing behind."""
import subprocess
import sys
import unittest

from harness import BINARY, PATIENCE, ServerTest, clean_environment


class SmokeTest(ServerTest):
    def smoke(self, address):
        return subprocess.run([BINARY.parent / "adapterd_smoke", address], capture_output=True, text=True,
                              timeout=PATIENCE, env=clean_environment())

    def test_it_passes_and_leaves_nothing(self):
        server = self.start()
        done = self.smoke(server.grpc)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(done.stdout, f"{server.grpc} uploaded, applied and unloaded an adapter\n")
        self.assertEqual(server.client.list().total_size, 0)
        self.assertEqual(server.adapter_bytes(), 0)
        self.assertEqual(server.metric("adapterd_apply_rows_total"), 1)

    def test_it_says_which_step_a_server_refuses(self):
        server = self.start("--max-upload-bytes=10")
        done = self.smoke(server.grpc)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, f"^{server.grpc}: upload: .*10")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
