"""Shows adapterd at work on an adapter that PEFT wrote, and checks its numbers against PEFT's.

usage: demo.py PATH_OF_ADAPTERD

Starts the server on free ports, loads, lists, applies, merges, reads a few metrics, unloads and stops
it. Exits non-zero when anything is off.
"""

import importlib
import json
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import urllib.request

import grpc
import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = REPOSITORY / "tests" / "fixtures" / "peft"
ADAPTER = "llama-qv"
MODULE = "model.layers.0.self_attn.q_proj"

# F32 sums of 64 products in another order than PEFT's: a few units in the last place.
RELATIVE, ABSOLUTE = 1e-5, 1e-6

failures = []


def say(text=""):
    print(text, flush=True)


def step(title):
    say(f"\n\033[1m{title}\033[0m" if sys.stdout.isatty() else f"\n{title}")


def check(what, ours, theirs):
    difference = float(np.max(np.abs(ours - theirs)))
    good = ours.shape == theirs.shape and np.allclose(ours, theirs, RELATIVE, ABSOLUTE)
    say(f"  {'ok ' if good else 'OFF'}  {what}: largest difference from PEFT {difference:.2e}")
    if not good:
        failures.append(what)


def read_safetensors(path):
    blob = path.read_bytes()
    size = struct.unpack("<Q", blob[:8])[0]
    tensors = {}
    for name, entry in json.loads(blob[8:8 + size]).items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(blob[begin:end], np.float32).reshape(entry["shape"])
    return tensors


def generate_stubs(folder):
    """Python stubs from proto/, as any client would make them."""
    protos = sorted(str(p.relative_to(REPOSITORY / "proto"))
                    for p in (REPOSITORY / "proto").rglob("*.proto"))
    subprocess.run(["protoc", f"-I{REPOSITORY / 'proto'}", f"--python_out={folder}",
                    f"--grpc_out={folder}",
                    "--plugin=protoc-gen-grpc=/usr/bin/grpc_python_plugin", *protos], check=True)
    sys.path.insert(0, folder)
    return [importlib.import_module(f"adapterd.v1.{name}")
            for name in ("tensor_pb2", "adapter_pb2", "adapter_service_pb2",
                         "adapter_service_pb2_grpc", "projection_service_pb2",
                         "projection_service_pb2_grpc", "merge_service_pb2",
                         "merge_service_pb2_grpc")]


def start_server(binary, output_root):
    server = subprocess.Popen(
        [binary, "--grpc-address=127.0.0.1:0", "--admin-address=127.0.0.1:0",
         f"--adapter-root={FIXTURES / 'cases'}", f"--model-root={FIXTURES / 'bases'}",
         f"--output-root={output_root}", "--log-level=warning"],
        stdout=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    match = re.fullmatch(r"adapterd ready grpc=(\S+) admin=(\S+)\n", line)
    if not match:
        server.kill()
        sys.exit(f"the server did not start: {line!r}")
    say(f"  {line.strip()}")
    return server, match[1], match[2]


def show_metrics(admin):
    wanted = ("adapterd_adapters{state=\"ready\"}", "adapterd_adapter_memory_bytes",
              "adapterd_apply_rows_total", "adapterd_apply_stage_seconds_sum",
              "adapterd_merge_duration_seconds_sum", "grpc_server_handled_total")
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10) as reply:
        for line in reply.read().decode().splitlines():
            if line.startswith(wanted):
                say(f"  {line}")


def run(binary):
    step("Starting adapterd on free ports")
    with tempfile.TemporaryDirectory() as folder:
        (tensor, adapter, control, control_stub, apply, apply_stub, merge,
         merge_stub) = generate_stubs(folder)
    outputs = tempfile.TemporaryDirectory()
    server, address, admin = start_server(binary, outputs.name)
    channel = grpc.insecure_channel(address)
    adapters = control_stub.AdapterServiceStub(channel)
    projections = apply_stub.ProjectionServiceStub(channel)
    merges = merge_stub.MergeServiceStub(channel)
    expected = read_safetensors(FIXTURES / "cases" / ADAPTER / "expected.safetensors")
    base = read_safetensors(FIXTURES / "bases" / "tiny-llama" / "model.safetensors")

    def pack(array):
        return tensor.Tensor(dtype=tensor.DATA_TYPE_F32, shape=array.shape, data=array.tobytes())

    def unpack(message):
        return np.frombuffer(message.data, np.float32).reshape(message.shape)

    try:
        step(f"LoadAdapter {ADAPTER}, as PEFT saved it")
        loaded = adapters.LoadAdapter(
            control.LoadAdapterRequest(name="demo", source=ADAPTER)).adapter
        say(f"  {loaded.module_count} modules {list(loaded.target_modules)} of "
            f"{loaded.base_model}, rank {list(loaded.ranks)}, {loaded.parameter_count} parameters")
        say(f"  revision {loaded.revision}")
        say(f"  {loaded.memory_bytes} bytes in memory, {loaded.file_bytes} in the file")

        step("ListAdapters")
        listing = adapters.ListAdapters(control.ListAdaptersRequest())
        for each in listing.adapters:
            say(f"  {each.public_id}  {adapter.AdapterState.Name(each.state)}")
        say(f"  {listing.summary.memory_bytes} of {listing.summary.memory_budget_bytes} bytes used")

        step(f"ApplyProjection on {MODULE}")
        request = apply.ApplyProjectionRequest(
            adapter=adapter.AdapterRef(name="demo"), input=pack(expected[f"{MODULE}|x"]))
        request.projections.add(module=adapter.ModuleSelector(path=MODULE),
                                base_output=pack(expected[f"{MODULE}|y_base"]))
        reply = projections.ApplyProjection(request)
        check("base output + delta", unpack(reply.outputs[0].output), expected[f"{MODULE}|y"])

        step(f"Merge into the base weight of {MODULE}")
        weight = base[f"{MODULE}.weight"]
        reply = merges.Merge(merge.MergeRequest(
            weight=pack(weight), module=adapter.ModuleSelector(target="q_proj", layer=0),
            adapters=[adapter.AdapterRef(name="demo")]))
        check("merged weight", unpack(reply.weight), expected[f"{MODULE}|merged"])
        say(f"  largest delta {reply.stats.max_abs_delta:.3g}, largest rounding error "
            f"{reply.stats.max_abs_rounding_error:.1e}")

        step("MergeCheckpoint of the whole base model, with its progress")
        for reply in merges.MergeCheckpoint(merge.MergeCheckpointRequest(
                source="tiny-llama", output="merged",
                adapters=[adapter.AdapterRef(name="demo")])):
            say(f"  {reply.phase:<9} {reply.tensors_done:>3} of {reply.tensors_total} tensors, "
                f"{reply.bytes_done} of {reply.bytes_total} bytes  {reply.current_tensor}")
        merged = read_safetensors(pathlib.Path(outputs.name) / "merged" / "model.safetensors")
        check("the same weight, in the checkpoint", merged[f"{MODULE}.weight"],
              expected[f"{MODULE}|merged"])
        say(f"  {reply.result.merged_tensors} tensors merged, {reply.result.copied_tensors} copied, "
            f"digest {reply.result.digest[:16]}...; {', '.join(reply.result.files)}")

        step(f"Metrics at http://{admin}/metrics")
        show_metrics(admin)

        step("UnloadAdapter")
        freed = adapters.UnloadAdapter(control.UnloadAdapterRequest(name="demo"))
        say(f"  {freed.freed_bytes} bytes freed")
        if freed.freed_bytes != loaded.memory_bytes:
            failures.append("bytes freed")
    finally:
        channel.close()
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
        outputs.cleanup()
    say(f"\nThe server stopped with exit code {code}.")
    if code != 0:
        failures.append("exit code")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run(sys.argv[1])
    if failures:
        sys.exit(f"\nOff: {', '.join(failures)}")
    say("Everything agrees with PEFT.")


if __name__ == "__main__":
    main()
