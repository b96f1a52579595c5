"""adapterd_smoke and adapterd_health, which look at an installation: plain, with TLS, and with an access policy."""
import hashlib
import json
import subprocess
import sys
import unittest

from certificates import Authority
from harness import BINARY, PATIENCE, ServerTest, clean_environment, find_tool


class ProbeTest(ServerTest):
    def probe(self, program, address, *flags):
        return subprocess.run([BINARY.parent / program, address, *map(str, flags)], capture_output=True, text=True,
                              timeout=PATIENCE, env=clean_environment())

    def smoke(self, address, *flags):
        return self.probe("adapterd_smoke", address, *flags)

    def health(self, address, *flags):
        done = self.probe("adapterd_health", address, *flags)
        return done.returncode, done.stdout


class Smoke(ProbeTest):

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

    def test_it_shows_the_token_of_a_file(self):
        folder = self.folder()
        token, policy = folder / "token", folder / "policy.json"
        token.write_text("open sesame\n")
        policy.write_text(json.dumps({"tokens": [
            {"subject": "smoke", "role": "admin", "sha256": hashlib.sha256(b"open sesame").hexdigest()}]}))
        server = self.start(f"--access-policy={policy}")
        done = self.smoke(server.grpc, "--token-file", token)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        without = self.smoke(server.grpc)
        self.assertEqual(without.returncode, 1)
        self.assertRegex(without.stderr, f"^{server.grpc}: upload: ")
        missing = self.smoke(server.grpc, "--token-file", folder / "none")
        self.assertEqual((missing.returncode, missing.stderr),
                         (2, f"{folder / 'none'}: No such file or directory\n"))


class Health(ProbeTest):
    def test_it_asks_for_the_process_and_for_a_service(self):
        server = self.start()
        self.assertEqual(self.health(server.grpc), (0, "serving\n"))
        self.assertEqual(self.health(server.grpc, "adapterd.v1.ProjectionService"), (0, "serving\n"))
        self.assertEqual(self.health(server.grpc, "no.such.Service")[0], 1)


class Tls(ProbeTest):
    def test_both_speak_tls_and_show_a_client_certificate(self):
        folder = self.folder()
        authority = Authority(find_tool(self, "openssl"), folder / "authority")
        cert, key = authority.issue("server", "DNS:adapterd.example")
        client_cert, client_key = authority.issue("client", "DNS:client.example")
        ca = authority.certificate
        server = self.start("--grpc-address=127.0.0.1:0", "--admin-address=127.0.0.1:0", f"--tls-cert={cert}",
                            f"--tls-key={key}", f"--tls-client-ca={ca}")
        named = ("--tls-ca", ca, "--tls-server-name", "adapterd.example")
        identified = (*named, "--tls-cert", client_cert, "--tls-key", client_key)
        done = self.smoke(server.grpc, *identified)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(self.health(server.grpc, *identified), (0, "serving\n"))
        # Plain text, no client certificate, another name than the certificate's, another authority.
        other = Authority(find_tool(self, "openssl"), folder / "other").certificate
        for flags in ((), named, ("--tls-ca", ca, *identified[4:]), ("--tls-ca", other, *identified[2:])):
            with self.subTest(flags=flags):
                self.assertEqual(self.health(server.grpc, *flags)[0], 1)

    def test_flags_that_mean_nothing_alone_are_refused(self):
        for flags in (("--tls-server-name=a",), ("--tls-ca=a", "--tls-cert=b"), ("--tls-ca=a", "--tls-key=b")):
            with self.subTest(flags=flags):
                self.assertGreater(self.health("127.0.0.1:1", *flags)[0], 1)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
