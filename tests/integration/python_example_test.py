"""README.md's Python client runs as it stands, with stubs made by README.md's own protoc command.

readme.py says how the README is read.
"""
import os
import subprocess
import sys
import unittest

import readme
from harness import PATIENCE, ServerTest, clean_environment
from stubs import SOURCE_DIR


class PythonExampleTest(ServerTest):
    def run_here(self, command):
        done = subprocess.run(command, cwd=self.work, capture_output=True, text=True,
                              timeout=PATIENCE, env=clean_environment(PYTHONPATH=""))
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_the_readmes_client_prints_what_the_readme_says(self):
        text = readme.README.read_text()
        programs = [p for p in readme.fenced(text, "python") if "import grpc" in p]
        self.assertTrue(programs, f"{readme.README} shows no Python client")
        protoc = [c for c in readme.indented_commands(text) if c.startswith("protoc ")]
        self.assertEqual(len(protoc), 1, "the README shows how to make the stubs with protoc")
        self.work = self.folder()
        (self.work / "proto").symlink_to(SOURCE_DIR / "proto")  # the only folder that it may need
        self.run_here(["bash", "-c", protoc[0]])
        self.assertTrue(os.listdir(self.work / "adapterd/v1"))
        server = self.start(f"--adapter-root={SOURCE_DIR / 'examples/adapters'}")
        for program in programs:
            self.assertNotEqual(readme.with_address(program, server.grpc), program)
            (self.work / "client.py").write_text(readme.with_address(program, server.grpc))
            printed = self.run_here([sys.executable, "client.py"]).splitlines()
            self.assertEqual(printed, readme.printed_by(program))
            self.assertTrue(printed, "a program that prints nothing shows nothing")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
