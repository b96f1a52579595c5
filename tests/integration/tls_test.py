"""TLS and mutual TLS, certificates as identities, and their rotation, with real certificates."""
import json
import os
import socket
import ssl
import sys
import threading
import time
import unittest
import urllib.request

import grpc

from adapters import write_adapter
from certificates import EXPIRED, FUTURE, Authority
from harness import PATIENCE, ServerTest, failure_of, find_tool, until
from adapterd.v1 import adapter_service_pb2, adapter_service_pb2_grpc

LOCAL = "DNS:localhost,IP:127.0.0.1"
ADDRESSES = ("--grpc-address=127.0.0.1:0", "--admin-address=127.0.0.1:0")


class TlsTest(ServerTest):
    def setUp(self):
        self.dir = self.folder()
        self.openssl = find_tool(self, "openssl")
        self.authority = Authority(self.openssl, self.dir / "authority")
        self.cert, self.key = self.dir / "tls.crt", self.dir / "tls.key"
        self.put(*self.authority.issue("server", LOCAL))
        write_adapter(self.dir / "root" / "good")

    def put(self, cert, key):
        """Replaces the server's files, one after the other."""
        for source, target in ((cert, self.cert), (key, self.key)):
            scratch = target.with_suffix(".new")
            scratch.write_bytes(source.read_bytes())
            os.replace(scratch, target)

    def serve(self, *flags):
        return self.start(f"--adapter-root={self.dir / 'root'}", f"--tls-cert={self.cert}",
                          f"--tls-key={self.key}", *flags)

    def channel(self, server, identity=None, authority=None):
        pair = [path.read_bytes() for path in identity] if identity else [None, None]
        credentials = grpc.ssl_channel_credentials(
            (authority or self.authority).certificate.read_bytes(), pair[1], pair[0])
        channel = grpc.secure_channel(server.grpc, credentials, options=[
            ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)])
        self.addCleanup(channel.close)
        return channel

    def list(self, channel, **options):
        return adapter_service_pb2_grpc.AdapterServiceStub(channel).ListAdapters(
            adapter_service_pb2.ListAdaptersRequest(), timeout=PATIENCE, **options)

    def unavailable(self, channel):
        """No connection comes to be: UNAVAILABLE without an answer of ours."""
        with self.assertRaises(grpc.RpcError) as caught:
            self.list(channel)
        self.assertEqual(failure_of(caught.exception).status, "UNAVAILABLE")

    def handshake(self, address, version=None, context=None):
        """The certificate in DER and the version of a connection, of `version` alone if given."""
        if context is None:
            context = ssl.create_default_context(cafile=self.authority.certificate)
        if version is not None:
            # What our own OpenSSL would not offer by itself.
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
        host, port = address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as tls:
                return tls.getpeercert(binary_form=True), tls.version()

    def der(self, path):
        return ssl.PEM_cert_to_DER_cert(path.read_text())


class Transport(TlsTest):
    def test_clients_of_the_authority_are_served_and_others_go_away(self):
        server = self.serve()
        self.assertEqual(self.list(self.channel(server)).total_size, 0)
        self.unavailable(self.channel(server, authority=Authority(self.openssl, self.dir / "wrong")))
        with self.assertRaises(grpc.RpcError) as caught:
            server.client.list()  # plain text
        self.assertEqual(failure_of(caught.exception).status, "UNAVAILABLE")

    def test_versions_before_1_2_are_refused_on_both_ports(self):
        server = self.serve(f"--admin-tls-cert={self.cert}", f"--admin-tls-key={self.key}")
        for address in (server.grpc, server.admin):
            for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
                with self.assertRaises((ssl.SSLError, ConnectionError)):
                    self.handshake(address, version)
            self.assertEqual(self.handshake(address, ssl.TLSVersion.TLSv1_2)[1], "TLSv1.2")
            self.assertEqual(self.handshake(address)[1], "TLSv1.3")

    def test_a_unix_socket_stays_plain_text(self):
        path = self.dir / "socket"
        server = self.serve(f"--unix-socket={path}")
        self.assertEqual(server.connect(f"unix:{path}").list().total_size, 0)

    def test_with_tls_insecure_is_not_needed_and_metrics_have_a_switch_of_their_own(self):
        server = self.serve("--grpc-address=0.0.0.0:0", "--admin-address=0.0.0.0:0",
                            "--admin-insecure")
        self.assertTrue(server.ready_line)
        code, _, err = self.run_to_end("--grpc-address=0.0.0.0:0", "--admin-insecure")
        self.assertEqual(code, 2)
        self.assertIn("--grpc-address", err)

    def test_admin_http_has_tls_of_its_own(self):
        server = self.start(f"--admin-tls-cert={self.cert}", f"--admin-tls-key={self.key}")
        context = ssl.create_default_context(cafile=self.authority.certificate)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}),
                                             urllib.request.HTTPSHandler(context=context))
        port = server.admin.rsplit(":", 1)[1]
        with opener.open(f"https://localhost:{port}/metrics", timeout=PATIENCE) as reply:
            self.assertIn(b"adapterd_build_info", reply.read())
        self.assertEqual(server.client.list().total_size, 0)

    def test_files_that_do_not_do_end_the_start_with_one_line(self):
        good = (self.cert, self.key)
        other = self.authority.issue("other", LOCAL)
        expired = self.authority.issue("expired", LOCAL, EXPIRED)
        future = self.authority.issue("future", LOCAL, FUTURE)
        text = self.dir / "text"
        text.write_text("no certificate")
        cases = [
            ("No such file", (self.dir / "none", good[1])), ("No such file", (good[0], self.dir / "none")),
            ("expected certificates in PEM", (text, good[1])),
            ("expected a private key in PEM", (good[0], text)),
            ("is not the key of", (good[0], other[1])), ("has expired", expired),
            ("is not valid yet", future)]
        for prefix in ("tls", "admin-tls"):
            for message, (cert, key) in cases:
                with self.subTest(prefix=prefix, message=message):
                    code, _, err = self.run_to_end(f"--{prefix}-cert={cert}",
                                                   f"--{prefix}-key={key}", *ADDRESSES)
                    self.assertEqual((code, err.count("adapterd: --")), (2, 1), err)
                    self.assertIn(message, err)
        code, _, err = self.run_to_end(f"--tls-cert={self.cert}", f"--tls-key={self.key}",
                                       f"--tls-client-ca={text}", *ADDRESSES)
        self.assertEqual(code, 2)
        self.assertIn("--tls-client-ca", err)
        for flags in (["--tls-cert=x"], ["--tls-key=x"], ["--tls-client-ca=x"],
                      ["--admin-tls-cert=x"], ["--admin-tls-key=x"]):
            code, _, err = self.run_to_end(*flags, *ADDRESSES)
            self.assertEqual(code, 2)
            self.assertIn("needs --", err)


class ClientCertificates(TlsTest):
    def test_only_certificates_of_the_client_authority_connect(self):
        clients = Authority(self.openssl, self.dir / "clients")
        server = self.serve(f"--tls-client-ca={clients.certificate}")
        good = clients.issue("good", "DNS:engine.example")
        self.assertEqual(self.list(self.channel(server, good)).total_size, 0)
        self.unavailable(self.channel(server))
        self.unavailable(self.channel(server, clients.issue("old", "DNS:engine.example", EXPIRED)))
        self.unavailable(self.channel(server, self.authority.issue("other", "DNS:engine.example")))

    def test_a_certificates_san_has_the_role_that_the_policy_gives_it(self):
        clients = Authority(self.openssl, self.dir / "clients")
        policy, audit = self.dir / "policy.json", self.dir / "audit"
        policy.write_text(json.dumps({"certificates": [
            {"san": "spiffe://example/operator", "role": "admin", "subject": "the operator"},
            {"san": "engine.example", "role": "user"}, {"san": "watcher.example", "role": "viewer"}]}))
        server = self.serve(f"--tls-client-ca={clients.certificate}", f"--access-policy={policy}",
                            f"--audit-log={audit}")

        def load(name, sans, **options):
            stub = adapter_service_pb2_grpc.AdapterServiceStub(
                self.channel(server, clients.issue(name, sans)))
            return stub.LoadAdapter(adapter_service_pb2.LoadAdapterRequest(
                name=name, source="good"), timeout=PATIENCE, **options)

        self.assertTrue(load("operator", "URI:spiffe://example/operator").adapter.revision)
        for name in ("engine", "watcher"):
            self.refused("PERMISSION_DENIED/PERMISSION_DENIED", load, name, f"DNS:{name}.example")
        # The common name is no identity, nor is a name that only begins alike.
        for name, sans in (("engine.example", "DNS:nobody"), ("x", "DNS:engine.example.org")):
            self.refused("UNAUTHENTICATED/UNAUTHENTICATED", load, name, sans)
        with self.assertRaises(grpc.RpcError) as caught:  # a wrong token is not made up for
            load("y", "URI:spiffe://example/operator", metadata=(("authorization", "Bearer x"),))
        self.assertEqual(failure_of(caught.exception).status, "UNAUTHENTICATED/UNAUTHENTICATED")
        lines = [json.loads(line) for line in audit.read_text().splitlines()]
        self.assertEqual([(line["subject"], line["transport"], line["code"]) for line in lines], [
            ("the operator", "mtls", "OK"), ("engine.example", "mtls", "PermissionDenied"),
            ("watcher.example", "mtls", "PermissionDenied")])


class Rotation(TlsTest):
    def await_certificate(self, address, cert):
        until(lambda: self.handshake(address)[0] == self.der(cert), f"{cert.name} to be served")

    def test_certificates_rotate_under_load_without_a_failed_request(self):
        server = self.serve(f"--admin-tls-cert={self.cert}", f"--admin-tls-key={self.key}")
        stop, failures, done = threading.Event(), [], []

        def work(reconnect):
            channel, count = self.channel(server), 0
            while not stop.is_set():
                if reconnect:
                    channel = self.channel(server)
                try:
                    self.list(channel)
                    count += 1
                except grpc.RpcError as error:
                    failures.append(failure_of(error))
                if reconnect:
                    channel.close()
            done.append(count)

        workers = [threading.Thread(target=work, args=[reconnect]) for reconnect in (True, True, False)]
        for worker in workers:
            worker.start()
        for turn in range(3):
            cert, key = self.authority.issue(f"turn{turn}", LOCAL)
            self.put(cert, key)
            for address in (server.grpc, server.admin):
                self.await_certificate(address, cert)
        stop.set()
        for worker in workers:
            worker.join()
        self.assertEqual(failures, [])
        self.assertGreater(min(done), 3)

    def test_files_that_do_not_do_leave_the_ones_before_in_use(self):
        server = self.serve()
        old = self.der(self.cert)
        cert, key = self.authority.issue("next", LOCAL)
        self.cert.write_bytes(cert.read_bytes())  # the key is still that of the other
        until(lambda: (self.handshake(server.grpc), "certificate_failed" in server.stderr())[1],
              "the error in the log")
        self.assertEqual(self.handshake(server.grpc)[0], old)
        self.put(*self.authority.issue("expired", LOCAL, EXPIRED))
        until(lambda: (self.handshake(server.grpc), "has expired" in server.stderr())[1],
              "the error in the log")
        self.assertEqual(self.handshake(server.grpc)[0], old)
        self.put(cert, key)
        self.await_certificate(server.grpc, cert)

    def test_the_authority_of_clients_rotates_too(self):
        authorities = [Authority(self.openssl, self.dir / name) for name in ("one", "two")]
        file = self.dir / "client-ca.pem"
        file.write_bytes(authorities[0].certificate.read_bytes())
        server = self.serve(f"--tls-client-ca={file}")
        one, two = (a.issue("client", "DNS:client") for a in authorities)
        self.list(self.channel(server, one))
        self.unavailable(self.channel(server, two))
        file.write_bytes(authorities[1].certificate.read_bytes())

        def is_served():
            try:
                return bool(self.list(self.channel(server, two)).summary)
            except grpc.RpcError:
                return False
        until(is_served, "the new authority's client to be served")
        self.unavailable(self.channel(server, one))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
