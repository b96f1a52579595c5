"""A short soak is clean, and a wrong answer, a leak or a call that is never made would be found."""
import sys
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path

from harness import SOURCE_DIR, find_tool

sys.path.insert(0, str(SOURCE_DIR / "tests/soak"))
from recorder import Recorder
from soak import LEAKED_BYTES, MORE_THREADS, PARTS, Soak

MINUTES = 0.15


class SoakTest(unittest.TestCase):
    def run_soak(self, change=lambda soak: None):
        find_tool(self, "openssl")
        with tempfile.TemporaryDirectory(prefix="adapterd-soak-") as folder:
            soak = Soak(Path(folder), MINUTES, clients=2, seed=1)
            self.addCleanup(soak.server.process.kill)
            change(soak)
            soak.run()
        return soak

    def test_a_short_one_is_clean(self):
        soak = self.run_soak()
        self.assertEqual((soak.problems, soak.record.wrongs, len(soak.rests)), ([], [], PARTS))

    def test_what_goes_wrong_is_found(self):
        def expect_other_numbers(soak):
            first = soak.contents[0]
            wrong = replace(first, deltas={path: delta + 1 for path, delta in first.deltas.items()})
            soak.contents = (wrong, *soak.contents[1:])
        self.assertGreater(self.run_soak(expect_other_numbers).record.wrong_count, 0)

    def test_leaks_and_calls_that_were_never_made_are_told(self):
        soak = Soak.__new__(Soak)  # nothing runs: the verdict alone
        soak.record, soak.problems = Recorder(), []
        soak.rests = [(0, 20, 50), (LEAKED_BYTES + 1, 21, 51 + MORE_THREADS)]
        soak.judge()
        told = "\n".join(soak.problems)
        for what in ("bytes grew", "descriptors grew", "threads grew", "never answered"):
            self.assertIn(what, told)


if __name__ == "__main__":
    unittest.main()
