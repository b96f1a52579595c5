"""What goes on around the clients: some die, some are slow, certificates and the config change."""
import contextlib
import multiprocessing
import os
import random
import signal
import socket
import ssl
import threading
import time

import grpc

from client import run_client
from harness import PATIENCE
from adapterd.v1 import adapter_pb2, adapter_service_pb2

PAUSE = 0.5  # seconds between two faults
SLOW_SECONDS = 3
DYING_SECONDS = 3600  # it is killed long before
LOCAL = "DNS:localhost,IP:127.0.0.1"


class Certificates:
    """The server's files, and two certificates that take turns in them."""

    def __init__(self, authority, folder):
        self.authority = authority
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        self._pairs = [authority.issue(name, LOCAL) for name in ("first", "second")]
        self.rotations = 0
        self._put()

    def _put(self):
        for source, target in zip(self._pairs[self.rotations % 2], (self.cert, self.key)):
            fresh = target.with_suffix(".new")
            fresh.write_bytes(source.read_bytes())
            os.replace(fresh, target)

    def rotate(self):
        self.rotations += 1
        self._put()

    def is_served(self, address):
        """Whether a new connection sees the certificate that was put last."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        host, port = address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as tls:
                found = tls.getpeercert(binary_form=True)
        return found == ssl.PEM_cert_to_DER_cert(self._pairs[self.rotations % 2][0].read_text())


class Faults:
    """A thread that makes trouble from start() to stop()."""

    def __init__(self, server, world, certificates, write_config, seed):
        self._server, self._world, self._certificates = server, world, certificates
        self._write_config, self._seed = write_config, seed
        self._choose = random.Random(seed)
        self.counts = {}
        self.errors = []

    def start(self):
        self._stop = threading.Event()
        self._slow = contextlib.ExitStack()
        self._dying = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self):
        self._stop.set()
        self._thread.join()
        self._slow.close()
        if self._dying is not None:
            self._kill()

    def _run(self):
        faults = [self.dying_client, self.reload, self.rotate, self.half_a_handshake, self.half_a_request,
                  self.slow_reader, self.slow_upload]
        while not self._stop.wait(PAUSE):
            fault = self._choose.choice(faults)
            try:
                fault()
                self.counts[fault.__name__] = self.counts.get(fault.__name__, 0) + 1
            except Exception as error:  # not to be lost with its thread
                self.errors.append(f"{fault.__name__}: {error!r}")

    def _kill(self):
        self._dying.kill()
        self._dying.join()
        self._dying = None

    def dying_client(self):
        """The one that lives is killed in the middle of whatever it does, and another one begins."""
        if self._dying is not None:
            self._kill()
        number = self.counts.get("dying_client", 0)
        spawn = multiprocessing.get_context("spawn")
        self._dying = spawn.Process(target=run_client, args=(
            self._world, f"dying{number}", f"{self._seed}/{number}", DYING_SECONDS, None))
        self._dying.start()

    def reload(self):
        self._write_config()
        self._server.process.send_signal(signal.SIGHUP)

    def rotate(self):
        self._certificates.rotate()

    def half_a_handshake(self):
        self._slow.enter_context(self._connect(self._server.grpc)).sendall(b"\x16\x03\x01")

    def half_a_request(self):
        self._slow.enter_context(self._connect(self._server.admin)).sendall(b"GET /metrics HTTP/1.1\r\nX: ")

    def _connect(self, address):
        host, port = address.rsplit(":", 1)
        return socket.create_connection((host, int(port)), timeout=PATIENCE)

    def slow_reader(self):
        """Watches without reading, for a while."""
        client = self._world.connect()
        stream = client.watch()
        self._stop.wait(SLOW_SECONDS)
        stream.cancel()
        client.close()

    def slow_upload(self):
        """Sends a file drop by drop, and goes away in the middle."""
        def messages():
            yield adapter_service_pb2.UploadAdapterRequest(
                start=adapter_service_pb2.UploadStart(name="slow"))
            for _ in range(100):
                yield adapter_service_pb2.UploadAdapterRequest(chunk=adapter_service_pb2.UploadChunk(
                    file_name="adapter_model.safetensors", data=b"\0" * 1000))
                time.sleep(0.1)
        client = self._world.connect()
        call = client.adapters.UploadAdapter.future(messages())
        self._stop.wait(SLOW_SECONDS)
        call.cancel()
        client.close()
