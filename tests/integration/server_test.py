"""The program itself: how it starts, refuses to start, tells what it does, and stops."""
import json
import socket
import subprocess
import sys
import unittest

import grpc
import numpy as np

from adapters import (HEAVY, Q0, SMALL, config_of, delta_of, exact_adapter, heavy_request, tensors_of,
                      write_adapter, write_files)
from harness import ServerTest, apply_request, failure_of, find_tool, until
from tensors import array, from_proto
import health_pb2
import reflection_pb2
from adapterd.v1 import adapter_service_pb2

SERVICES = ["adapterd.v1.AdapterService", "adapterd.v1.MergeService",
            "adapterd.v1.ProjectionService"]
ANY_PORT = ["--grpc-address=127.0.0.1:0", "--admin-address=127.0.0.1:0"]
SMALL_WORK = 0.015  # seconds of a worker; a hundred times that is what a drain has to wait for


def health(client, service):
    """The name of the health status of a service."""
    check = client.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString)
    status = check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def reflect(client, **request):
    call = client.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ReflectionResponse.FromString)
    (reply,) = call(iter([reflection_pb2.ReflectionRequest(**request)]), timeout=10)
    return reply


class StartTest(ServerTest):
    def refuse_start(self, says, *flags, environment=None):
        """Exit code 2 and one line on standard error that says why; nothing on standard output."""
        code, out, err = self.run_to_end(*flags, environment=environment)
        self.assertEqual((code, out), (2, ""), err)
        self.assertRegex(err, r"\Aadapterd: [^\n]+\n\Z")
        self.assertIn(says, err)

    def test_the_ready_line_names_both_addresses_and_nothing_follows_it(self):
        server = self.start()
        self.assertRegex(server.ready_line,
                         r"\Aadapterd ready grpc=127\.0\.0\.1:\d+ admin=127\.0\.0\.1:\d+\n\Z")
        self.assertEqual(server.client.info().version, self.run_to_end("--version")[1].split()[1])
        server.terminate()
        self.assertEqual(server.wait(), (0, ""))

    def test_bad_flags_end_the_start_with_one_line(self):
        for says, flag in (
                ("--no-such-flag", "--no-such-flag=1"), ("--threads", "--threads=0"),
                ("--threads", "--threads=two"), ("--memory-budget", "--memory-budget=1Gib"),
                ("--memory-budget", "--memory-budget=0"), ("--log-format", "--log-format=xml"),
                ("--log-level", "--log-level=loud"), ("--drain-timeout", "--drain-timeout=5"),
                ("--drain-timeout", "--drain-timeout=-1s"), ("--load", "--load=name-alone"),
                ("--load", "--load=bad name=x"), ("--grpc-address", "--grpc-address=50051"),
                ("--grpc-address", "--grpc-address=127.0.0.1:70000"),
                ("--adapter-root", "--adapter-root==x"),
                ("--max-message-size", "--max-message-size=-1")):
            with self.subTest(flag):
                self.refuse_start(says, *ANY_PORT, flag)
        self.refuse_start("threads", *ANY_PORT, "--threads")

    def test_an_unreadable_root_ends_the_start(self):
        folder = self.folder()
        (folder / "file").write_text("")
        for path in (folder / "missing", folder / "file"):
            self.refuse_start(str(path), *ANY_PORT, f"--adapter-root={path}")
        self.refuse_start("root", *ANY_PORT, f"--adapter-root={folder}",
                          f"--adapter-root={folder}")
        self.refuse_start("root", *ANY_PORT, f"--adapter-root=a={folder}",
                          f"--adapter-root=a={folder}")

    def test_adapters_of_the_command_line_are_served_or_end_the_start(self):
        root = self.folder()
        write_adapter(root / "a")
        write_files(root / "broken", config_of(SMALL, lora_alpha=None), tensors_of(SMALL))
        flags = [f"--adapter-root=main={root}"]
        server = self.start(*flags, "--load=one=main:a", "--load=two=main:a")
        self.assertEqual([a.name for a in server.client.list().adapters], ["one", "two"])
        self.refuse_start("lora_alpha", *ANY_PORT, *flags, "--load=one=main:broken")
        self.refuse_start("missing", *ANY_PORT, *flags, "--load=one=main:missing")
        self.refuse_start("twice", *ANY_PORT, *flags, "--load=one=main:a", "--load=one=main:a")

    def test_a_port_that_is_taken_ends_the_start(self):
        server = self.start()
        self.refuse_start(server.grpc, f"--grpc-address={server.grpc}", ANY_PORT[1])
        self.refuse_start(server.admin, ANY_PORT[0], f"--admin-address={server.admin}")
        for reuse in (False, True):
            with self.subTest(reuse=reuse), socket.socket() as other:
                if reuse:
                    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                other.bind(("127.0.0.1", 0))
                other.listen()
                address = "127.0.0.1:%d" % other.getsockname()[1]
                self.refuse_start(address, f"--grpc-address={address}", ANY_PORT[1])
                self.refuse_start(address, ANY_PORT[0], f"--admin-address={address}")

    def test_plain_text_beyond_loopback_has_to_be_asked_for(self):
        self.refuse_start("--insecure", "--grpc-address=0.0.0.0:0", ANY_PORT[1])
        self.refuse_start("--insecure", ANY_PORT[0], "--admin-address=[::]:0")
        server = self.start("--grpc-address=0.0.0.0:0", "--insecure")
        port = server.grpc.rsplit(":", 1)[1]
        self.assertEqual(server.connect(f"127.0.0.1:{port}").list().total_size, 0)

    def test_a_flag_with_nothing_after_the_equals_sign_is_the_empty_string(self):
        root = self.folder()
        write_adapter(root / "a")
        server = self.start("--unix-socket=", f"--adapter-root={root}", "--public-id-template=",
                            "--load=a=a")
        self.assertEqual(server.client.get("a").public_id, "")
        self.refuse_start("--grpc-address", "--grpc-address=", ANY_PORT[1])
        self.refuse_start("--threads", *ANY_PORT, "--threads=")

    def test_flags_win_over_the_environment_and_that_over_the_config_file(self):
        root = self.folder()
        write_adapter(root / "a")
        config = root / "config"
        config.write_text(f'adapter-root = "{root}"\nthreads = 3\nmemory-budget = "64MiB"\n')
        info = self.start(f"--config={config}").client.info()
        self.assertEqual((info.threads, info.memory_budget_bytes), (3, 64 << 20))
        server = self.start(f"--config={config}", environment={"ADAPTERD_THREADS": "4"})
        self.assertEqual(server.client.info().threads, 4)
        server = self.start("--threads=2", environment={
            "ADAPTERD_ADAPTER_ROOT": str(root), "ADAPTERD_THREADS": "5", "ADAPTERD_LOAD": "a=a",
            "ADAPTERD_MAX_MESSAGE_SIZE": "1MiB"})
        info = server.client.info()
        self.assertEqual((info.threads, info.limits.max_message_bytes), (2, 1 << 20))
        self.assertEqual(server.client.get("a").name, "a")
        self.refuse_start("threads", *ANY_PORT, environment={"ADAPTERD_THREADS": "none"})
        config.write_text("no-such-key = 1\n")
        self.refuse_start("no-such-key", *ANY_PORT, f"--config={config}")
        self.refuse_start("missing-file", *ANY_PORT, "--config=/missing-file")

    def test_help_version_and_digest_answer_and_end(self):
        code, out, err = self.run_to_end("--help")
        self.assertEqual((code, err), (0, ""))
        for flag in ("--grpc-address", "--adapter-root", "--memory-budget", "--drain-timeout"):
            self.assertIn(flag, out)
        self.assertRegex(self.run_to_end("--version")[1], r"\Aadapterd \d+\.\d+\.\d+\n\Z")
        self.refuse_start("missing", "--digest=missing")
        self.refuse_start("empty", f"--digest={self.folder()}")


class ServingTest(ServerTest):
    def test_health_is_told_for_each_service(self):
        client = self.start().client
        for service in ["", *SERVICES]:
            self.assertEqual(health(client, service), "SERVING", service)
        with self.assertRaises(grpc.RpcError) as caught:
            health(client, "other")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_reflection_lists_the_services_and_has_their_files(self):
        client = self.start().client
        listed = reflect(client, list_services="").list_services_response.service
        self.assertLessEqual(set(SERVICES), {service.name for service in listed})
        for service in SERVICES:
            files = reflect(client, file_containing_symbol=service).file_descriptor_response
            self.assertTrue(files.file_descriptor_proto, service)

    def test_the_admin_server_tells_life_readiness_and_metrics(self):
        server = self.start()
        self.assertEqual(server.http("/healthz")[:2], (200, "ok\n"))
        self.assertEqual(server.http("/readyz")[:2], (200, "ready\n"))
        self.assertEqual(server.http("/other")[0], 404)
        with socket.create_connection(server.admin.split(":")) as kept:
            kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            reply = kept.makefile("rb").read()  # to its end: an idle connection would hold a thread
        self.assertIn(b"Connection: close", reply)
        status, text, headers = server.http("/metrics")
        self.assertEqual(status, 200)
        self.assertIn("text/plain; version=0.0.4", headers["Content-Type"])
        for name in ("adapterd_adapters", "adapterd_memory_bytes", "adapterd_memory_budget_bytes",
                     "adapterd_inflight_bytes", "adapterd_queue_length", "adapterd_build_info",
                     "adapterd_evictions_total", "adapterd_load_duration_seconds",
                     "adapterd_apply_rows_total", "adapterd_apply_stage_seconds",
                     "adapterd_merge_duration_seconds", "adapterd_merge_bytes_total",
                     "grpc_server_handling_seconds", "process_resident_memory_bytes"):
            self.assertIn(f"# TYPE {name} ", text)

    def test_what_is_done_is_counted(self):
        root = self.folder()
        write_adapter(root / "a")
        server = self.start(f"--adapter-root={root}", "--load=a=a")
        request = apply_request("a", Q0, array(np.ones((3, 8))).proto())
        for _ in range(4):
            server.client.apply(request)
        with self.assertRaises(grpc.RpcError):
            server.client.apply(apply_request("b", Q0, array(np.ones((3, 8))).proto()))
        handled = {"grpc_service": "adapterd.v1.ProjectionService",
                   "grpc_method": "ApplyProjection"}
        metric = server.metric
        self.assertEqual(metric("grpc_server_handled_total", grpc_code="OK", **handled), 4)
        self.assertEqual(metric("grpc_server_handled_total", grpc_code="NotFound", **handled), 1)
        self.assertEqual(metric("adapterd_apply_requests_total", adapter="a"), 4)
        self.assertEqual(metric("adapterd_apply_rows_total"), 12)
        self.assertEqual(metric("adapterd_rejected_total", reason="ADAPTER_NOT_FOUND"), 1)
        self.assertEqual(metric("adapterd_adapters", state="ready"), 1)
        self.assertEqual(metric("adapterd_adapter_memory_bytes", adapter="a"),
                         server.adapter_bytes())
        self.assertEqual(metric("adapterd_inflight_bytes"), 0)

    def test_promtool_finds_nothing_to_say_about_the_metrics(self):
        promtool = find_tool(self, "promtool")
        root = self.folder()
        write_adapter(root / "a")
        server = self.start(f"--adapter-root={root}", "--load=a=a")
        server.client.apply(apply_request("a", Q0, array(np.ones((1, 8))).proto()))
        with self.assertRaises(grpc.RpcError):
            server.client.load("b", "missing")
        check = subprocess.run([promtool, "check", "metrics"], input=server.http("/metrics")[1],
                               capture_output=True, text=True)
        self.assertEqual((check.returncode, check.stdout, check.stderr), (0, "", ""))

    def test_a_unix_socket_serves_the_same_api(self):
        folder = self.folder()
        path = folder / "socket"
        with socket.socket(socket.AF_UNIX) as stale:  # as a process that died leaves behind
            stale.bind(str(path))
        server = self.start(f"--unix-socket={path}")
        client = server.connect(f"unix:{path}")
        self.assertEqual(client.info().instance_id, server.client.info().instance_id)
        code, _, err = self.run_to_end(*ANY_PORT, f"--unix-socket={path}")
        self.assertEqual(code, 2, err)  # somebody listens there
        self.assertEqual(client.info().instance_id, server.client.info().instance_id)
        (folder / "file").write_text("keep")
        code, _, err = self.run_to_end(*ANY_PORT, f"--unix-socket={folder / 'file'}")
        self.assertEqual((code, (folder / "file").read_text()), (2, "keep"), err)

    def test_json_log_lines_carry_the_request_id_that_the_caller_gets(self):
        server = self.start("--log-format=json")
        _, call = server.client.adapters.ListAdapters.with_call(
            adapter_service_pb2.ListAdaptersRequest(), metadata=[("x-request-id", "my-request")])
        self.assertIn(("x-request-id", "my-request"), call.trailing_metadata())
        with self.assertRaises(grpc.RpcError) as caught:
            server.client.get("other\n")
        given = dict(caught.exception.trailing_metadata())["x-request-id"]
        server.terminate()
        server.wait()
        lines = [json.loads(line) for line in server.stderr().splitlines()]
        rpcs = [line for line in lines if line["event"] == "rpc"]
        self.assertEqual([line["request_id"] for line in rpcs], ["my-request", given])
        self.assertEqual([line["code"] for line in rpcs], ["OK", "InvalidArgument"])
        self.assertEqual(rpcs[1]["reason"], "INVALID_FIELD")
        for line in lines:
            self.assertRegex(line["time"], r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z\Z")
            self.assertIn(line["level"], ("debug", "info", "warning", "error"))
        self.assertEqual([line["event"] for line in lines][0], "serving")


class DrainTest(ServerTest):
    """One worker and long requests, so that there is always work left when SIGTERM comes."""

    def serve(self, *flags):
        root = self.folder()
        truth = exact_adapter(root / "busy", HEAVY)
        self.server = self.start(f"--adapter-root={root}", "--load=busy=busy", "--threads=1",
                                 *flags)
        x = np.arange(64 * 64).reshape(64, 64) % 7.0
        self.request, times = heavy_request(self.server.client, "busy", array(x).proto(),
                                            SMALL_WORK)
        self.right = times * delta_of(truth, Q0, x)
        self.started = self.started_applies()

    def started_applies(self):
        return self.server.metric("grpc_server_started_total", grpc_method="ApplyProjection",
                                  grpc_service="adapterd.v1.ProjectionService")

    def begin(self, count):
        calls = [self.server.client.apply_later(self.request) for _ in range(count)]
        until(lambda: self.started_applies() == self.started + count, "all requests to arrive")
        self.assertFalse(calls[-1].done(), "there is work left")
        return calls

    def refused_while_draining(self):
        """How a request is refused that needs no worker and so never waits, or None."""
        try:
            self.server.client.info()
        except grpc.RpcError as error:
            return failure_of(error)
        return None

    def test_sigterm_loses_none_of_100_running_requests(self):
        self.serve("--drain-timeout=45s")
        calls = self.begin(100)
        self.server.terminate()
        for call in calls:
            for output in call.result().outputs:
                np.testing.assert_array_equal(from_proto(output.output).values(), self.right)
        self.assertEqual(self.server.wait(), (0, ""))
        self.assertNotIn("drain_timeout", self.server.stderr())

    def test_large_replies_reach_slow_readers_before_the_connection_closes(self):
        """A closed socket throws away what the peer has not read when the peer still writes."""
        root = self.folder()
        truth = exact_adapter(root / "wide", {Q0: (16, 16384, 16)})
        self.server = self.start(f"--adapter-root={root}", "--load=busy=wide", "--threads=1")
        self.request = apply_request("busy", Q0, array(np.ones((64, 16))).proto())
        clients = [self.server.connect() for _ in range(4)]
        calls = [client.apply_later(self.request) for client in clients * 8]
        calls[0].result()
        self.server.terminate()
        right = delta_of(truth, Q0, np.ones((64, 16)))
        for call in calls:
            np.testing.assert_array_equal(from_proto(call.result().outputs[0].output).values(),
                                          right)
        self.assertEqual(self.server.wait()[0], 0)

    def test_new_requests_are_told_to_go_elsewhere_while_old_ones_end(self):
        self.serve("--drain-timeout=45s")
        calls = self.begin(100)
        self.server.terminate()
        failure = until(self.refused_while_draining, "a refusal")
        self.assertFalse(calls[-1].done(), "there is work left")
        self.assertEqual(failure.status, "UNAVAILABLE/DRAINING")
        self.assertGreater(failure.retry_seconds, 0)
        for call in calls:
            call.result()
        self.assertEqual(self.server.wait()[0], 0)

    def test_readiness_ends_before_the_requests_do_and_life_does_not(self):
        self.serve("--drain-timeout=45s")
        calls = self.begin(100)
        self.server.terminate()
        until(lambda: self.server.http("/readyz")[0] == 503, "readiness to end")
        self.assertFalse(calls[-1].done())
        self.assertEqual(self.server.http("/healthz")[0], 200)
        for call in calls:
            call.result()
        self.assertEqual(self.server.wait()[0], 0)

    def test_what_outlasts_the_drain_timeout_is_cut_off_and_the_exit_code_tells(self):
        self.serve("--drain-timeout=10ms")
        calls = self.begin(100)
        self.server.terminate()
        with self.assertRaises(grpc.RpcError):
            calls[-1].result()
        self.server.expected_exit = 1
        self.assertEqual(self.server.wait()[0], 1)
        self.assertIn("drain_timeout", self.server.stderr())

    def test_sigint_stops_as_sigterm_does(self):
        server = self.start()
        server.process.send_signal(2)
        self.assertEqual(server.wait(), (0, ""))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
