"""The process itself: how it was built, what it says when it crashes, and what its log tells."""
import json
import re
import signal
import subprocess
import unittest

from adapters import SMALL, exact_adapter
from harness import BINARY, ServerTest, until
from adapterd.v1 import adapter_service_pb2

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def readelf(*arguments):
    return subprocess.run(["readelf", "-W", *arguments, BINARY], capture_output=True, text=True,
                          check=True).stdout


class BinaryTest(unittest.TestCase):
    """What makes a bug harder to use."""

    def setUp(self):
        self.symbols = set(re.findall(r" (\w+)(?:@\S+)?(?: \(\d+\))?$", readelf("--dyn-syms"), re.M))
        if any(name.startswith(("__asan", "__tsan", "__ubsan")) for name in self.symbols):
            self.skipTest("a sanitizer's build")

    def test_its_address_is_random(self):
        self.assertRegex(readelf("--file-header"), r"Type: +DYN")
        self.assertRegex(readelf("--dynamic"), r"FLAGS_1.*PIE")

    def test_its_tables_are_read_only_and_its_stack_is_not_run(self):
        segments = readelf("--segments")
        self.assertIn("GNU_RELRO", segments)
        self.assertRegex(readelf("--dynamic"), r"BIND_NOW")
        self.assertRegex(segments, r"GNU_STACK( +0x[0-9a-f]+){5} RW +")

    def test_its_stack_frames_and_buffers_are_checked(self):
        self.assertIn("__stack_chk_fail", self.symbols)
        self.assertTrue(any(re.fullmatch(r"__\w+_chk", name) and name != "__stack_chk_fail"
                            for name in self.symbols), "no fortified function")


class CrashTest(ServerTest):
    def test_it_says_where_it_crashed_and_dies_of_the_signal(self):
        for sent in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
            with self.subTest(sent.name):
                server = self.start()
                server.expected_exit = -sent
                server.process.send_signal(sent)
                server.wait()
                self.assertEqual(server.process.returncode, -sent)
                report = server.stderr()
                self.assertIn(f"*** {sent.name}, stack", report)
                self.assertIn("adapterd::", report)  # a frame by name


class LogTest(ServerTest):
    def setUp(self):
        self.root = self.folder()
        exact_adapter(self.root / "a", SMALL, seed=1)

    def lines(self, server, method):
        events = [json.loads(line) for line in server.stderr().splitlines()]
        return [e for e in events if e["event"] == "rpc" and e["method"] == method]

    def test_a_trace_is_taken_over(self):
        server = self.start(f"--adapter-root={self.root}", "--log-format=json")
        info = server.client.adapters.GetServerInfo
        request = adapter_service_pb2.GetServerInfoRequest()
        info(request, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")])
        info(request, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01"),
                                ("traceparent", f"00-{TRACE}-{PARENT}-01")])
        info(request, metadata=[("traceparent", f"00-{'0' * 32}-{PARENT}-01")])
        info(request)
        until(lambda: len(self.lines(server, "GetServerInfo")) == 4, "four lines")
        traced, *others = self.lines(server, "GetServerInfo")
        self.assertEqual((traced["trace_id"], traced["parent_id"]), (TRACE, PARENT))
        for line in others:
            self.assertNotIn("trace_id", line)

    def test_the_level_changes_with_the_config_file(self):
        config = self.folder() / "adapterd.conf"
        config.write_text("log-level = error\n")
        server = self.start(f"--adapter-root={self.root}", f"--config={config}",
                            "--log-format=json")
        server.client.info()
        config.write_text("log-level = info\n")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "reloaded" in server.stderr(), "the reload")
        self.assertEqual(self.lines(server, "GetServerInfo"), [])
        server.client.info()
        until(lambda: len(self.lines(server, "GetServerInfo")) == 1, "the line")


class DebugPagesTest(ServerTest):
    def test_without_the_flag_there_are_none(self):
        server = self.start()
        for path in ("/debug/calls", "/debug/pools", "/debug/", "/debug"):
            self.assertEqual(server.http(path)[0], 404)

    def test_open_calls_are_told_by_method_and_age(self):
        server = self.start("--debug-pages")
        self.assertEqual(json.loads(server.http("/debug/calls")[1]),
                         {"open": 0, "methods": [], "oldest": []})
        watches = [server.client.watch() for _ in range(2)]
        told = json.loads(server.http("/debug/calls")[1])
        self.assertEqual(told["open"], 2)
        [method] = told["methods"]
        self.assertEqual((method["method"], method["open"]),
                         ("adapterd.v1.AdapterService/WatchAdapters", 2))
        first, second = told["oldest"]
        self.assertGreaterEqual(first["seconds"], second["seconds"])
        self.assertEqual(first["seconds"], method["oldest_seconds"])
        self.assertNotEqual(first["request_id"], second["request_id"])
        for watch in watches:
            watch.cancel()
        until(lambda: json.loads(server.http("/debug/calls")[1])["open"] == 0, "the calls to end")

    def test_pools_tell_their_threads_and_queues(self):
        server = self.start("--debug-pages", "--threads=3")
        pools = {pool.pop("pool"): pool for pool in json.loads(server.http("/debug/pools")[1])["pools"]}
        self.assertEqual(pools["compute"], {"threads": 3, "queued": 0})
        self.assertLessEqual({"io", "control", "export", "make", "merge"}, set(pools))


if __name__ == "__main__":
    unittest.main()
