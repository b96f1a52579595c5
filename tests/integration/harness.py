"""Starts the real binary and talks to it as any client would.

Environment, all optional:
  ADAPTERD_BINARY         the server (default: build/bin/adapterd)
  ADAPTERD_FIXTURES_DIR   fixtures of another seed or size (default: tests/fixtures)
  ADAPTERD_STUBS_DIR      where the generated Python code is kept (default: below build/)
  ADAPTERD_TOOLS_DIR      where tools that are not on the PATH are, in bin/ (default: .tools)
  ADAPTERD_REQUIRE_TOOLS  1: a tool that is missing is a failure and not a skipped test
  ADAPTERD_SOURCE_DIR     the checkout (default: where this file is)
"""
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from stubs import SOURCE_DIR
import rpc_status_pb2
from adapterd.v1 import (adapter_pb2, adapter_service_pb2, adapter_service_pb2_grpc,
                         base_model_service_pb2, base_model_service_pb2_grpc,
                         merge_service_pb2, merge_service_pb2_grpc, projection_service_pb2,
                         projection_service_pb2_grpc, tensor_pb2)

BINARY = Path(os.environ.get("ADAPTERD_BINARY", SOURCE_DIR / "build/bin/adapterd"))
OWN_FIXTURES = SOURCE_DIR / "tests/fixtures"
FIXTURES = Path(os.environ.get("ADAPTERD_FIXTURES_DIR", OWN_FIXTURES))
TOOLS = Path(os.environ.get("ADAPTERD_TOOLS_DIR", SOURCE_DIR / ".tools"))

# Nothing here takes this long; sanitizers and a busy machine come close.
PATIENCE = 50

FULL = adapter_pb2.ADAPTER_VIEW_FULL
MAX_MESSAGE_BYTES = 1000  # of an error's message, in bytes
MAX_DETAILS_BYTES = 4096

_SANITIZER = re.compile(r"^.*(?:runtime error:|ERROR: \w+Sanitizer)", re.MULTILINE)
_READY = re.compile(r"adapterd ready grpc=(\S+:\d+) admin=(\S+:\d+)\n")
_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)",?')


def fixtures(kind):
    """The folder of one kind of fixtures; the project's own where the other ones have none."""
    return FIXTURES / kind if (FIXTURES / kind).is_dir() else OWN_FIXTURES / kind


def find_tool(test, name):
    """The path of a tool. Without it the test is skipped, or fails where tools are required."""
    path = shutil.which(name, path=f"{TOOLS / 'bin'}:{os.environ['PATH']}")
    if path is not None:
        return path
    without(test, f"{name} is neither on the PATH nor in {TOOLS / 'bin'}")


def without(test, reason):
    """Skips the test for a reason, or fails it where tools are required."""
    if os.environ.get("ADAPTERD_REQUIRE_TOOLS") == "1":
        test.fail(reason)
    print(f"SKIP {test.id()}: {reason}")
    raise unittest.SkipTest(reason)


def clean_environment(**more):
    """Ours without the server's variables, and with `more`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ADAPTERD_")}
    return {**kept, **more}


def until(condition, what):
    """Waits for a state that only polling shows."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.002)
    raise AssertionError(f"waited {PATIENCE} s in vain for {what}")


@dataclass
class Failure:
    """What an RPC was refused with."""
    code: str
    message: str
    reason: str = ""
    domain: str = ""
    metadata: dict = field(default_factory=dict)
    infos: int = 0
    retry_seconds: float = None
    details_bytes: int = 0

    @property
    def status(self):
        return f"{self.code}/{self.reason}" if self.infos else self.code


def failure_of(error):
    """Decodes a grpc.RpcError with its google.rpc details."""
    failure = Failure(error.code().name, error.details() or "")
    trailers = dict(error.trailing_metadata() or ())
    encoded = trailers.get("grpc-status-details-bin", b"")
    failure.details_bytes = len(encoded)
    for detail in rpc_status_pb2.Status.FromString(encoded).details:
        if detail.type_url == "type.googleapis.com/google.rpc.ErrorInfo":
            info = rpc_status_pb2.ErrorInfo.FromString(detail.value)
            failure.infos += 1
            failure.reason, failure.domain = info.reason, info.domain
            failure.metadata = dict(info.metadata)
        elif detail.type_url == "type.googleapis.com/google.rpc.RetryInfo":
            delay = rpc_status_pb2.RetryInfo.FromString(detail.value).retry_delay
            failure.retry_seconds = delay.seconds + delay.nanos / 1e9
    return failure


class Client:
    """One connection, and the API in the words of the tests. `credentials`: of TLS."""

    def __init__(self, target, credentials=None):
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
                   ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        if credentials is None:
            self.channel = grpc.insecure_channel(target, options)
        else:
            self.channel = grpc.secure_channel(target, credentials, options)
        self.adapters = adapter_service_pb2_grpc.AdapterServiceStub(self.channel)
        self.projections = projection_service_pb2_grpc.ProjectionServiceStub(self.channel)
        self.merges = merge_service_pb2_grpc.MergeServiceStub(self.channel)
        self.bases = base_model_service_pb2_grpc.BaseModelServiceStub(self.channel)

    def close(self):
        self.channel.close()

    def load(self, name, source, **fields):
        return self.adapters.LoadAdapter(
            adapter_service_pb2.LoadAdapterRequest(name=name, source=source, **fields),
            timeout=PATIENCE)

    def validate(self, name, source, **fields):
        return self.adapters.ValidateAdapter(
            adapter_service_pb2.ValidateAdapterRequest(name=name, source=source, **fields),
            timeout=PATIENCE)

    def get(self, name, **fields):
        return self.adapters.GetAdapter(
            adapter_service_pb2.GetAdapterRequest(name=name, **fields), timeout=PATIENCE).adapter

    def tensors(self, name, module):
        return self.adapters.GetAdapterTensors(
            adapter_service_pb2.GetAdapterTensorsRequest(name=name, module=module),
            timeout=PATIENCE)

    def export(self, name, folder, **fields):
        """Writes the files of the reply into `folder`; fails on any that is not as long as told."""
        folder.mkdir()
        sizes, files = {}, {}
        for reply in self.adapters.ExportAdapter(
                adapter_service_pb2.ExportAdapterRequest(name=name, **fields), timeout=PATIENCE):
            if reply.HasField("file"):
                current = reply.file.name
                sizes[current], files[current] = reply.file.size, b""
            else:
                files[current] += reply.data
        for file_name, content in files.items():
            assert len(content) == sizes[file_name], f"{file_name} is not as long as announced"
            (folder / file_name).write_bytes(content)
        return folder

    def list(self, **fields):
        return self.adapters.ListAdapters(
            adapter_service_pb2.ListAdaptersRequest(**fields), timeout=PATIENCE)

    def unload(self, name, **fields):
        return self.adapters.UnloadAdapter(
            adapter_service_pb2.UnloadAdapterRequest(name=name, **fields), timeout=PATIENCE)

    def update(self, name, mask=(), **fields):
        request = adapter_service_pb2.UpdateAdapterRequest(name=name, **fields)
        request.update_mask.paths.extend(mask)
        return self.adapters.UpdateAdapter(request, timeout=PATIENCE).adapter

    def rollback(self, name, revision):
        return self.adapters.RollbackAdapter(adapter_service_pb2.RollbackAdapterRequest(
            name=name, revision=revision), timeout=PATIENCE).adapter

    def set_alias(self, name, alias, revision):
        return self.adapters.SetAlias(adapter_service_pb2.SetAliasRequest(
            name=name, alias=alias, revision=revision), timeout=PATIENCE).adapter

    def reconcile(self, desired, **fields):
        """`desired`: AdapterSpecs. The changes by name."""
        request = adapter_service_pb2.ReconcileAdaptersRequest(desired=desired, **fields)
        reply = self.adapters.ReconcileAdapters(request, timeout=PATIENCE)
        return {change.name: change for change in reply.changes}

    def watch(self, **fields):
        """A stream of events, for as long as a test may take; stands when this returns."""
        stream = self.adapters.WatchAdapters(
            adapter_service_pb2.WatchAdaptersRequest(**fields), timeout=4 * PATIENCE)
        stream.initial_metadata()  # waits
        return stream

    def info(self):
        return self.adapters.GetServerInfo(adapter_service_pb2.GetServerInfoRequest(),
                                           timeout=PATIENCE)

    def apply(self, request):
        return self.projections.ApplyProjection(request, timeout=PATIENCE)

    def apply_later(self, request):
        return self.projections.ApplyProjection.future(request, timeout=PATIENCE)

    def merge(self, request):
        return self.merges.Merge(request, timeout=PATIENCE)

    def merge_checkpoint(self, source, output, adapters, timeout=4 * PATIENCE, **fields):
        """The stream of messages. `adapters`: names, or AdapterRefs."""
        refs = [adapter_pb2.AdapterRef(name=a) if isinstance(a, str) else a for a in adapters]
        return self.merges.MergeCheckpoint(merge_service_pb2.MergeCheckpointRequest(
            source=source, output=output, adapters=refs, **fields), timeout=timeout)

    def merged_checkpoint(self, *arguments, **fields):
        """The last message's result."""
        return list(self.merge_checkpoint(*arguments, **fields))[-1].result

    def load_base(self, name, source, **fields):
        return self.bases.LoadBaseModel(base_model_service_pb2.LoadBaseModelRequest(
            name=name, source=source, **fields), timeout=PATIENCE).base_model
    def unload_base(self, name):
        return self.bases.UnloadBaseModel(base_model_service_pb2.UnloadBaseModelRequest(
            name=name), timeout=PATIENCE).freed_bytes
    def list_bases(self):
        return {base.name: base for base in self.bases.ListBaseModels(
            base_model_service_pb2.ListBaseModelsRequest(), timeout=PATIENCE).base_models}
    def merge_into(self, base, *adapters, **fields):
        """`adapters`: names, or (name, weight)."""
        return self.bases.MergeAdapter(base_model_service_pb2.MergeAdapterRequest(
            base_model=base, adapters=[_ref(adapter) for adapter in adapters], **fields),
            timeout=PATIENCE)
    def unmerge_from(self, base, *adapters, **fields):
        return self.bases.UnmergeAdapter(base_model_service_pb2.UnmergeAdapterRequest(
            base_model=base, adapters=[_ref(adapter) for adapter in adapters], **fields),
            timeout=PATIENCE).base_model
    def base_weight(self, base, path, **selector):
        """The weight as a Tensor message; fails when its pieces are not what the first one told."""
        tensor, rows = None, 0
        for piece in self.bases.GetBaseWeight(base_model_service_pb2.GetBaseWeightRequest(
                base_model=base, module=adapter_pb2.ModuleSelector(path=path, **selector)),
                timeout=PATIENCE):
            if tensor is None:
                tensor = tensor_pb2.Tensor(dtype=piece.dtype, shape=piece.shape)
            else:
                assert not piece.shape and not piece.dtype, "only the first message has a shape"
            assert piece.first_row == rows, f"expected row {rows}, found {piece.first_row}"
            tensor.data += piece.data
            width = 4 if tensor.dtype == tensor_pb2.DATA_TYPE_F32 else 2
            rows = len(tensor.data) // (width * _row_elements(tensor.shape))
        return tensor
def _ref(adapter):
    if isinstance(adapter, str):
        return adapter_pb2.AdapterRef(name=adapter)
    return adapter_pb2.AdapterRef(name=adapter[0], weight=adapter[1])
def _row_elements(shape):
    """Of a weight: behind its first dimension, or behind the first two of a stack of experts."""
    elements = 1
    for dim in shape[2 if len(shape) == 3 else 1:]:
        elements *= dim
    return elements

def apply_request(name, path, x, base=None, **fields):
    """ApplyProjection of one adapter's module by its path; x and base are Tensor messages."""
    return projection_service_pb2.ApplyProjectionRequest(
        input=x, adapter=adapter_pb2.AdapterRef(name=name),
        projections=[projection_service_pb2.Projection(
            module=adapter_pb2.ModuleSelector(path=path), base_output=base)], **fields)


def merge_request(name, path, weight, **fields):
    return merge_service_pb2.MergeRequest(
        weight=weight, module=adapter_pb2.ModuleSelector(path=path),
        adapters=[adapter_pb2.AdapterRef(name=name)], **fields)


class Server:
    """A running adapterd on ports of its own choice."""

    def __init__(self, *flags, environment=None):
        self._folder = tempfile.TemporaryDirectory(prefix="adapterd-test-")
        self._stderr_path = Path(self._folder.name) / "stderr"
        with open(self._stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(
                [BINARY, "--grpc-address=127.0.0.1:0", "--admin-address=127.0.0.1:0", *flags],
                stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=self._folder.name,
                env=clean_environment(**(environment or {})))
        self.ready_line = self._first_line()
        ready = _READY.fullmatch(self.ready_line)
        if ready is None:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"no ready line but {self.ready_line!r}: {self.stderr()}")
        self.grpc, self.admin = ready.groups()
        self.expected_exit = 0  # what stop() takes for a good end
        self._clients = []
        self.client = self.connect()

    def _first_line(self):
        lines = []
        reader = threading.Thread(target=lambda: lines.append(self.process.stdout.readline()))
        reader.start()
        reader.join(PATIENCE)
        if reader.is_alive():
            self.process.kill()  # which also ends the reader
            reader.join()
        return lines[0]

    def connect(self, target=None):
        self._clients.append(Client(target or self.grpc))
        return self._clients[-1]

    def stderr(self):
        return self._stderr_path.read_text()

    def http(self, path):
        """(status, text, headers) of the admin server."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{self.admin}{path}", timeout=PATIENCE) as reply:
                return reply.status, reply.read().decode(), reply.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), error.headers

    def is_plain(self):
        """Whether it was built without a sanitizer."""
        return "libasan" not in Path(f"/proc/{self.process.pid}/maps").read_text()

    def metrics(self):
        """{(name, frozenset of label pairs): value} of one scrape."""
        samples = {}
        for line in self.http("/metrics")[1].splitlines():
            if line.startswith("#") or not line:
                continue
            sample = _SAMPLE.match(line)
            labels = frozenset(_LABEL.findall(sample["labels"] or ""))
            samples[sample["name"], labels] = float(sample["value"])
        return samples

    def metric(self, name, **labels):
        """The value of one series; 0 when there is none."""
        return self.metrics().get((name, frozenset(labels.items())), 0.0)

    def adapter_bytes(self):
        """What the budget says that adapters hold; the series must be there."""
        return self.metrics()["adapterd_memory_bytes", frozenset({("kind", "adapters")})]

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        """The exit code, and whatever followed the ready line on standard output.

        Ends our connections: a client that no call keeps awake is slow to notice that it is asked to.
        """
        for client in self._clients:
            client.close()
        try:
            rest, _ = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise AssertionError(f"adapterd did not stop:\n{self.stderr()}") from None
        return self.process.returncode, rest

    def stop(self):
        """Ends the process and fails unless it ended well; sanitizers report by the exit code."""
        if self.process.poll() is None:
            for client in self._clients:
                client.close()
            self.terminate()
            self.wait()
        if not self._stderr_path.exists():
            return  # it was stopped before
        code, stderr = self.process.returncode, self.stderr()
        self._folder.cleanup()
        if code != self.expected_exit:
            report = _SANITIZER.search(stderr)  # begins with what matters, then goes on for long
            shown = stderr[report.start():][:4000] if report else stderr[-4000:]
            raise AssertionError(f"adapterd ended with {code}:\n{shown}")


class ServerTest(unittest.TestCase):
    """Starts servers, and checks refusals."""

    def start(self, *flags, **options):
        server = Server(*flags, **options)
        self.addCleanup(server.stop)
        return server

    def folder(self):
        folder = tempfile.TemporaryDirectory(prefix="adapterd-test-")
        self.addCleanup(folder.cleanup)
        return Path(folder.name)

    def run_to_end(self, *flags, environment=None):
        """Runs the binary until it ends by itself: (exit code, stdout, stderr)."""
        done = subprocess.run([BINARY, *flags], capture_output=True, text=True, timeout=PATIENCE,
                              env=clean_environment(**(environment or {})))
        return done.returncode, done.stdout, done.stderr

    def refused(self, status, call, *arguments, **metadata):
        """Calls, expects `CODE/REASON` and the given metadata (None: any value), gives the Failure.

        What every refusal must be is checked here: one ErrorInfo of our domain, and small.
        """
        with self.assertRaises(grpc.RpcError) as caught:
            call(*arguments)
        failure = failure_of(caught.exception)
        self.assertEqual(failure.status, status, failure.message)
        self.assertEqual((failure.infos, failure.domain), (1, "adapterd"))
        self.assertLessEqual(len(failure.message.encode()), MAX_MESSAGE_BYTES)
        self.assertLessEqual(failure.details_bytes, MAX_DETAILS_BYTES)
        self.assertNotEqual(failure.message.strip(), "")
        for key, expected in metadata.items():
            self.assertIn(key, failure.metadata, failure)
            if expected is not None:
                self.assertEqual(failure.metadata[key], str(expected), failure)
        return failure
