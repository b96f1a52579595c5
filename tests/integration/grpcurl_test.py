"""README.md's session with grpcurl does what the README says, by reflection alone.

The commands and answers are taken from the README; readme.py says how they are written.
"""
import subprocess
import sys
import unittest

import readme
from harness import PATIENCE, ServerTest, find_tool
from stubs import SOURCE_DIR


class GrpcurlTest(ServerTest):
    def test_the_readmes_session_gives_the_readmes_answers(self):
        grpcurl = find_tool(self, "grpcurl")
        session = [(readme.words_of(command), answer)
                   for command, answer in readme.console_commands(readme.README.read_text())]
        session = [(words, answer) for words, answer in session if words[0] == "grpcurl"]
        self.assertTrue(session, f"{readme.README} shows no grpcurl commands")
        server = self.start(f"--adapter-root={SOURCE_DIR / 'examples/adapters'}")
        for words, answer in session:
            with self.subTest(command=" ".join(words)):
                self.assertIn("-plaintext", words)
                self.assertFalse([w for w in words if w.startswith(("-proto", "-import"))],
                                 "reflection has to be enough")
                command = [readme.with_address(word, server.grpc) for word in words[1:]]
                self.assertIn(server.grpc, command, "the README names the default address")
                done = subprocess.run([grpcurl, *command], capture_output=True, text=True,
                                      timeout=PATIENCE)
                said = done.stdout + done.stderr
                self.assertEqual(done.returncode != 0, answer.startswith("ERROR:"), said)
                self.assertEqual(readme.differences(answer, said), [], said)


class ConventionTest(unittest.TestCase):
    """Tests that read a README would pass in silence if they read it wrongly."""

    def test_a_session_is_cut_into_commands_and_answers(self):
        text = ("```console\n$ grpcurl -d '{\n  \"a\": 1\n}' \\\n    host x\n{\n  \"b\": 2\n}\n"
                "$ second\n```\n```json\n$ not a command\n```\n")
        self.assertEqual(readme.console_commands(text), [
            ("grpcurl -d '{\n  \"a\": 1\n}' \\\n    host x", '{\n  "b": 2\n}'), ("second", "")])
        self.assertEqual(readme.words_of(readme.console_commands(text)[0][0]),
                         ["grpcurl", "-d", '{\n  "a": 1\n}', "host", "x"])

    def test_indented_blocks_are_commands(self):
        text = "words\n\n    one a \\\n      b\n\n```sh\n    no\n```\n\n    two\n"
        self.assertEqual(readme.indented_commands(text), ["one a b", "two"])

    def test_json_must_agree_but_for_what_is_left_open(self):
        for expected, actual in (
                ('{"a": 1}', '{"a": 1.0}'), ('{"a": "..."}', '{"a": [1, 2]}'),
                ('{"a": 1, "...": "..."}', '{"a": 1, "b": 2}'), ("[1, \"...\"]", "[1, 2, 3]"),
                ('["..."]', "[]"), ('{"a": 1} {"b": 2}', '{"a":1}\n{"b":2}')):
            self.assertEqual(readme.differences(expected, actual), [], (expected, actual))
        for expected, actual in (
                ('{"a": 1}', '{"a": "1"}'), ('{"a": 1}', '{"a": 1.0000001}'), ('{"a": 1}', "{}"),
                ("{}", '{"a": 1}'), ('{"a": "..."}', "{}"), ("[1]", "[1, 2]"), ("[1, 2]", "[1]"),
                ('["x", "..."]', "[]"), ('{"a": true}', '{"a": 1}'), ('{"a": 1}', '{"a": 1} {}')):
            self.assertNotEqual(readme.differences(expected, actual), [], (expected, actual))

    def test_text_must_agree_but_for_what_is_left_open(self):
        self.assertEqual(readme.differences("a\n...\nd", "a\nb\nc\nd\n"), [])
        self.assertEqual(readme.differences("ERROR:\n  Code: X", "ERROR:\n Code: X\n"), [])
        self.assertNotEqual(readme.differences("a\nd", "a\nb\nd"), [])
        self.assertNotEqual(readme.differences("a.c", "abc"), [])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
