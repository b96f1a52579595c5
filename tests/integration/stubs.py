"""Python stubs of the API, generated from proto/ by the same protoc that builds the server.

Importing this module makes `adapterd.v1.*_pb2` and `*_pb2_grpc` importable, and three helpers that
are wire-compatible with what Debian ships no Python code for: rpc_status_pb2 (google.rpc.Status),
health_pb2 (grpc.health.v1) and reflection_pb2 (grpc.reflection.v1alpha).
"""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE_DIR = Path(os.environ.get("ADAPTERD_SOURCE_DIR", Path(__file__).resolve().parents[2]))
HERE = Path(__file__).resolve().parent


def _files():
    api = sorted((SOURCE_DIR / "proto").rglob("*.proto"))
    return api, [SOURCE_DIR / "service/rpc_status.proto", SOURCE_DIR / "service/health.proto",
                 HERE / "reflection.proto"]


def _program(name):
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing (Debian: protobuf-compiler, protobuf-compiler-grpc)")
    return found


def _generate(out):
    api, helpers = _files()
    includes = ["-I", str(SOURCE_DIR / "proto"), "-I", str(SOURCE_DIR / "service"), "-I", str(HERE)]
    subprocess.run(
        [_program("protoc"), *includes, f"--python_out={out}", f"--grpc_python_out={out}",
         f"--plugin=protoc-gen-grpc_python={_program('grpc_python_plugin')}", *map(str, api)],
        check=True)
    subprocess.run([_program("protoc"), *includes, f"--python_out={out}", *map(str, helpers)],
                   check=True)


def stubs_dir():
    """The folder with the generated code; made once for each state of the .proto files."""
    digest = hashlib.sha256()
    for path in sum(_files(), []):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    parent = Path(os.environ.get("ADAPTERD_STUBS_DIR", SOURCE_DIR / "build/tests/python_stubs"))
    target = parent / digest.hexdigest()[:16]
    if not target.is_dir():
        parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(dir=parent, prefix="new-")
        _generate(scratch)
        try:
            os.rename(scratch, target)  # tests that start together all generate, one wins
        except OSError:
            shutil.rmtree(scratch)
    return target


sys.path.insert(0, str(stubs_dir()))
