"""Roles, tokens, their rotation, and the audit log, through the real binary."""
import hashlib
import json
import os
import secrets
import signal
import sys
import threading
import unittest

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, message_factory

from adapters import Q0, write_adapter
from harness import PATIENCE, ServerTest, apply_request, failure_of, until
from tensors import array
import health_pb2
from adapterd.v1 import (adapter_service_pb2, base_model_service_pb2, merge_service_pb2,
                         projection_service_pb2)

ROLES = ("viewer", "user", "admin")
# The least role of each RPC. Not generated from the server's table: this is what it is held to.
NEEDS = {
    "AdapterService": {
        "viewer": "GetAdapter ListAdapters WatchAdapters GetServerInfo",
        "user": "ValidateAdapter EstimateCapacity GetAdapterTensors ExportAdapter",
        "admin": "LoadAdapter UploadAdapter CreateAdapter UpdateAdapterTensors ComposeAdapter "
                 "UpdateAdapter UnloadAdapter RollbackAdapter SetAlias ReconcileAdapters"},
    "ProjectionService": {"user": "ApplyProjection StreamProjections Forward"},
    "MergeService": {"user": "Merge MergeStream", "admin": "MergeCheckpoint"},
    "BaseModelService": {
        "viewer": "ListBaseModels", "user": "GetBaseWeight",
        "admin": "LoadBaseModel UnloadBaseModel MergeAdapter UnmergeAdapter"},
}
FILES = (adapter_service_pb2, projection_service_pb2, merge_service_pb2, base_model_service_pb2)
ONES = np.ones((1, 8), np.float32)  # a row for Q0
UNAUTHENTICATED = "UNAUTHENTICATED/UNAUTHENTICATED"
DENIED = "PERMISSION_DENIED/PERMISSION_DENIED"


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


def hash_of(token):
    return hashlib.sha256(token.encode()).hexdigest()


def methods():
    """Every RPC of the API, by the descriptors that clients are generated from."""
    for module in FILES:
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def least_role(method):
    found = [role for role, names in NEEDS.get(method.containing_service.name, {}).items()
             if method.name in names.split()]
    assert len(found) == 1, f"{method.full_name} needs exactly one least role, found {found}"
    return found[0]


def streams_of(method):
    """Whether the client streams, and whether the server does."""
    service = descriptor_pb2.ServiceDescriptorProto()
    method.containing_service.CopyToProto(service)
    proto = next(m for m in service.method if m.name == method.name)
    return proto.client_streaming, proto.server_streaming


def call_empty(channel, method, metadata):
    """Calls with an empty request, or none in a client's stream; "OK" or the Failure's status."""
    client_streams, server_streams = streams_of(method)
    kind = ("stream" if client_streams else "unary") + "_" + ("stream" if server_streams else "unary")
    call = getattr(channel, kind)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=bytes)
    request = message_factory.MessageFactory().GetPrototype(method.input_type)()
    argument = iter([]) if client_streams else request
    try:
        reply = call(argument, metadata=metadata, timeout=PATIENCE)
        if method.name == "WatchAdapters":  # has no end
            # Comes once the watch stands; a refused one has none to wait for, and raises below.
            reply.initial_metadata()
            if reply.is_active():
                reply.cancel()
                return "OK", None
        if server_streams:
            list(reply)
    except grpc.RpcError as error:
        failure = failure_of(error)
        return failure.status, failure
    return "OK", None


class AccessTest(ServerTest):
    def setUp(self):
        self.dir = self.folder()
        self.root = self.dir / "root"
        write_adapter(self.root / "good")
        self.policy_path = self.dir / "policy.json"
        self.tokens = {role: secrets.token_urlsafe(32) for role in ROLES}

    def policy(self, **more):
        return {"tokens": [{"subject": f"the {role}", "sha256": hash_of(token), "role": role}
                           for role, token in self.tokens.items()], **more}

    def write_policy(self, policy):
        """Puts it in place at once, as secrets are."""
        scratch = self.policy_path.with_suffix(".new")
        scratch.write_text(policy if isinstance(policy, str) else json.dumps(policy))
        os.replace(scratch, self.policy_path)

    def serve(self, *flags, policy=None):
        self.write_policy(policy or self.policy())
        return self.start(f"--adapter-root={self.root}", f"--access-policy={self.policy_path}",
                          *flags)

    def status(self, server, metadata):
        """Of a ListAdapters."""
        try:
            server.client.adapters.ListAdapters(adapter_service_pb2.ListAdaptersRequest(),
                                                metadata=metadata, timeout=PATIENCE)
        except grpc.RpcError as error:
            return failure_of(error).status
        return "OK"

    def load(self, server, name="good", source="good", role="admin"):
        return server.client.adapters.LoadAdapter(
            adapter_service_pb2.LoadAdapterRequest(name=name, source=source),
            metadata=bearer(self.tokens[role]), timeout=PATIENCE)


class Roles(AccessTest):
    def test_each_role_may_call_what_the_table_says_and_nothing_else(self):
        server = self.serve()
        channel = server.client.channel
        checked = 0
        for method in methods():
            needed = least_role(method)
            with self.subTest(method=method.full_name):
                status, _ = call_empty(channel, method, None)
                self.assertEqual(status, UNAUTHENTICATED)
                for role in ROLES:
                    status, failure = call_empty(channel, method, bearer(self.tokens[role]))
                    if ROLES.index(role) >= ROLES.index(needed):
                        self.assertNotIn(status, (UNAUTHENTICATED, DENIED), role)
                        self.assertNotIn("UNIMPLEMENTED", status)
                    else:
                        self.assertEqual(status, DENIED, role)
                        self.assertIn(f"needs the role {needed}", failure.message)
                        self.assertEqual(failure.metadata, {"expected": needed, "actual": role})
                    checked += 1
        self.assertEqual(checked, 3 * sum(len(names.split()) for service in NEEDS.values()
                                          for names in service.values()))

    def test_without_a_policy_everybody_may_do_everything(self):
        server = self.start(f"--adapter-root={self.root}")
        self.assertEqual(server.client.load("good", "good").adapter.name, "good")
        self.assertEqual(self.status(server, bearer("anything")), "OK")

    def test_callers_without_credentials_have_the_role_that_the_policy_gives_them(self):
        server = self.serve(policy=self.policy(anonymous_role="viewer"))
        self.assertEqual(self.status(server, None), "OK")
        self.assertEqual(self.status(server, bearer("wrong")), UNAUTHENTICATED)
        self.refused(DENIED, server.client.load, "good", "good", expected="admin")

    def test_health_is_open_to_all(self):
        server = self.serve()
        check = server.client.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString)
        self.assertEqual(check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status, 1)

    def test_a_refused_call_starts_nothing(self):
        server = self.serve()
        for role in ("viewer", "user"):
            with self.assertRaises(grpc.RpcError):
                self.load(server, role=role)
        listing = server.client.adapters.ListAdapters(
            adapter_service_pb2.ListAdaptersRequest(), metadata=bearer(self.tokens["viewer"]),
            timeout=PATIENCE)
        self.assertEqual(listing.total_size, 0)


class Tokens(AccessTest):
    def test_what_is_no_valid_token_gets_one_answer_that_tells_nothing(self):
        server = self.serve()
        good = self.tokens["admin"]
        headers = {
            "empty": [""], "scheme alone": ["Bearer"], "scheme and space": ["Bearer "],
            "no scheme": [good], "other scheme": [f"Basic {good}"], "two spaces": [f"Bearer  {good}"],
            "truncated": [f"Bearer {good[:-1]}"], "longer": [f"Bearer {good}x"],
            "other case": [f"Bearer {good.swapcase()}"], "its hash": [f"Bearer {hash_of(good)}"],
            "forged": ["Bearer " + secrets.token_urlsafe(32)], "over-long": ["Bearer " + "x" * 5000],
            "twice": [f"Bearer {good}"] * 2, "good and bad": [f"Bearer {good}", "Bearer x"],
        }
        messages = set()
        for name, values in headers.items():
            with self.subTest(name):
                with self.assertRaises(grpc.RpcError) as caught:
                    server.client.adapters.ListAdapters(
                        adapter_service_pb2.ListAdaptersRequest(), timeout=PATIENCE,
                        metadata=tuple(("authorization", value) for value in values))
                failure = failure_of(caught.exception)
                self.assertEqual(failure.status, UNAUTHENTICATED)
                self.assertEqual(failure.metadata, {})
                messages.add(failure.message)
        self.assertEqual(len(messages), 1, messages)
        self.assertEqual(self.status(server, (("authorization", f"bEARER {good}"),)), "OK")
        log = server.stderr()
        for token in self.tokens.values():
            self.assertNotIn(token, log)
            self.assertNotIn(hash_of(token), log)

    def test_a_policy_that_is_none_ends_the_start(self):
        sha = hash_of("x")
        entry = {"subject": "s", "sha256": sha, "role": "user"}
        broken = {
            "line 2: not JSON": '{"tokens":\n[}',
            "the key \"role\" comes twice":
                f'{{"tokens": [{{"subject": "s", "sha256": "{sha}", "role": "user", "role": "admin"}}]}}',
            "found \"roles\"": {"roles": []},
            "tokens[0].role: expected viewer, user, admin, found \"root\"":
                {"tokens": [{**entry, "role": "root"}]},
            "tokens[0].sha256: expected the 64 hex digits": {"tokens": [{**entry, "sha256": "hunter2"}]},
            "tokens[0].sha256: expected the SHA-256 of a token": {
                "tokens": [{**entry, "sha256": hash_of("")}]},
            "tokens[1]: expected each token": {"tokens": [entry, entry]},
            "tokens[0].subject: expected text": {"tokens": [{"sha256": sha, "role": "user"}]},
            "anonymous_role: expected viewer": {"anonymous_role": "nobody"},
        }
        for message, policy in broken.items():
            with self.subTest(message):
                self.write_policy(policy)
                code, out, err = self.run_to_end(f"--access-policy={self.policy_path}",
                                                 "--grpc-address=127.0.0.1:0",
                                                 "--admin-address=127.0.0.1:0")
                self.assertEqual((code, out), (2, ""))
                self.assertIn(message, err)
                self.assertNotIn("hunter2", err)
        self.policy_path.unlink()
        code, _, err = self.run_to_end(f"--access-policy={self.policy_path}")
        self.assertEqual((code, err.count("\n")), (2, 1), err)
        self.assertIn("--access-policy: ", err)

    def test_a_new_policy_holds_soon_and_a_broken_one_changes_nothing(self):
        server = self.serve()
        old, new = self.tokens["viewer"], secrets.token_urlsafe(32)
        self.write_policy('{"tokens": [')
        until(lambda: server.metric("adapterd_access_policy_reads_total", result="failed"),
              "the broken policy to be read")
        self.assertEqual(self.status(server, bearer(old)), "OK")
        self.tokens["viewer"] = new
        self.write_policy(self.policy())
        until(lambda: self.status(server, bearer(new)) == "OK", "the new token to be known")
        self.assertEqual(self.status(server, bearer(old)), UNAUTHENTICATED)

    def test_sighup_reads_the_policy_anew(self):
        server = self.serve()
        reads = server.metric("adapterd_access_policy_reads_total", result="taken_over")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.metric("adapterd_access_policy_reads_total",
                                    result="taken_over") > reads, "the policy to be read again")

    def test_tokens_rotate_under_load_without_a_failed_request(self):
        server = self.serve()
        self.load(server)
        current = [self.tokens["user"]]
        stop, failures, done = threading.Event(), [], []

        def work():
            request = apply_request("good", Q0, array(ONES).proto())
            client, count = server.connect(), 0
            while not stop.is_set():
                try:
                    client.projections.ApplyProjection(request, timeout=PATIENCE,
                                                       metadata=bearer(current[0]))
                    count += 1
                except grpc.RpcError as error:
                    failures.append(failure_of(error))
            done.append(count)

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for _ in range(3):
            new = secrets.token_urlsafe(32)
            both = self.policy()
            both["tokens"].append({"subject": "the user", "sha256": hash_of(new), "role": "user"})
            self.write_policy(both)  # both hold while clients change over
            until(lambda: self.status(server, bearer(new)) == "OK", "the new token")
            old, current[0], self.tokens["user"] = current[0], new, new
            before = server.metric("adapterd_apply_rows_total")
            until(lambda: server.metric("adapterd_apply_rows_total") > before + 20, "requests")
            self.write_policy(self.policy())
            until(lambda: self.status(server, bearer(old)) == UNAUTHENTICATED, "the old to go")
        stop.set()
        for worker in workers:
            worker.join()
        self.assertEqual(failures, [])
        self.assertGreater(min(done), 0)

    def test_a_stream_ends_with_the_rights_of_its_caller(self):
        server = self.serve()
        self.load(server)
        requests = [projection_service_pb2.StreamProjectionsRequest(
            request_id=i, request=apply_request("good", Q0, array(ONES).proto())) for i in (1, 2)]
        go_on = threading.Event()

        def feed():
            yield requests[0]
            go_on.wait(PATIENCE)
            yield requests[1]

        token = self.tokens["user"]
        stream = server.client.projections.StreamProjections(feed(), metadata=bearer(token),
                                                             timeout=PATIENCE)
        self.assertEqual(next(stream).request_id, 1)
        del self.tokens["user"]
        self.write_policy(self.policy())
        until(lambda: self.status(server, bearer(token)) == UNAUTHENTICATED, "the token to go")
        go_on.set()
        with self.assertRaises(grpc.RpcError) as caught:
            next(stream)
        self.assertEqual(failure_of(caught.exception).status, UNAUTHENTICATED)


class Audit(AccessTest):
    def setUp(self):
        super().setUp()
        self.log = self.dir / "audit.log"

    def lines(self, path=None):
        """Each line must be JSON for itself."""
        return [json.loads(line) for line in (path or self.log).read_bytes().split(b"\n")[:-1]]

    def expect_lines(self, count):
        """They are written before a call is answered."""
        lines = self.lines()
        self.assertEqual(len(lines), count, lines)
        return lines

    def test_every_change_leaves_a_line_that_says_who_and_what(self):
        server = self.serve(f"--audit-log={self.log}")
        revision = self.load(server).adapter.revision
        with self.assertRaises(grpc.RpcError):
            self.load(server, name="other", role="user")
        with self.assertRaises(grpc.RpcError):
            server.client.load("nobody", "good")  # no credentials: nobody to name
        self.status(server, bearer(self.tokens["viewer"]))  # changes nothing
        with self.assertRaises(grpc.RpcError):
            self.load(server, name="absent", source="absent")
        loaded, denied, absent = self.expect_lines(3)
        self.assertEqual({key: loaded[key] for key in loaded.keys() - {"time", "peer", "request_id"}}, {
            "subject": "the admin", "role": "admin", "transport": "plain",
            "method": "adapterd.v1.AdapterService/LoadAdapter", "adapter": "good",
            "source": "good", "revision": revision, "code": "OK"})
        self.assertRegex(loaded["peer"], r"^ipv4:127\.0\.0\.1:\d+$")
        self.assertRegex(loaded["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")
        self.assertEqual((denied["subject"], denied["adapter"], denied["code"], denied["reason"]),
                         ("the user", "other", "PermissionDenied", "PERMISSION_DENIED"))
        self.assertEqual((absent["adapter"], absent["code"], absent["reason"]),
                         ("absent", "NotFound", "SOURCE_NOT_FOUND"))

    def test_every_rpc_of_an_admin_is_audited_and_no_other(self):
        server = self.serve(f"--audit-log={self.log}")
        for method in methods():
            call_empty(server.client.channel, method, bearer(self.tokens["admin"]))
        audited = {line["method"] for line in self.lines()}
        self.assertEqual(audited, {
            f"{method.containing_service.full_name}/{method.name}" for method in methods()
            if least_role(method) == "admin"})

    def test_no_name_can_forge_a_line(self):
        server = self.serve(f"--audit-log={self.log}")
        names = ['x\n{"subject": "the viewer"}', 'x"}', "x\r\n\u2028y", "\x00\x1b[2J", "x" * 100_000]
        for name in names:
            with self.assertRaises(grpc.RpcError):
                self.load(server, name=name)
        lines = self.expect_lines(len(names))
        for name, line in zip(names[:-1], lines):
            self.assertEqual((line["subject"], line["adapter"]), ("the admin", name))
        self.assertLess(len(lines[-1]["adapter"]), 1000)
        raw = self.log.read_bytes()
        self.assertEqual([byte for byte in set(raw) if byte < 32 or byte > 126], [10])

    def test_rotation_loses_no_line(self):
        server = self.serve(f"--audit-log={self.log}")
        self.load(server, name="a")
        first = self.log.with_suffix(".1")
        self.log.rename(first)
        self.load(server, name="b")
        self.log.unlink()
        server.process.send_signal(signal.SIGHUP)
        until(self.log.exists, "the log to be there again")
        self.load(server, name="c")
        self.assertEqual([line["adapter"] for line in self.lines(first)], ["a"])
        self.assertEqual([line["adapter"] for line in self.lines()], ["c"])

    def test_a_full_disk_is_told_of_and_stops_no_change(self):
        server = self.serve("--audit-log=/dev/full")
        self.load(server)
        self.assertEqual(server.metric("adapterd_audit_failures_total"), 1)
        self.assertIn("audit_failed", server.stderr())

    def test_a_log_that_cannot_be_opened_ends_the_start(self):
        code, _, err = self.run_to_end(f"--audit-log={self.dir}/none/audit.log")
        self.assertEqual((code, err.count("\n")), (2, 1), err)
        self.assertIn("--audit-log: ", err)

    def test_without_a_policy_the_subject_is_anonymous(self):
        server = self.start(f"--adapter-root={self.root}", "--audit-log=-")
        server.client.load("good", "good")
        server.terminate()
        _, out = server.wait()
        self.assertEqual([(line["subject"], line["adapter"]) for line in
                          map(json.loads, out.splitlines())], [("anonymous", "good")])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
