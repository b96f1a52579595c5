"""Calls a deployment all the time, and counts what goes wrong: the load of the chart's trial.

    calls.py STUBS RESULT TARGET [TARGET ...]

STUBS is a folder with the API's Python stubs. A thread for each TARGET applies the toy adapter to one row after the other and
compares each answer with what its two matrices give. `dns:///` targets get the settings that clients are told to use,
others none and no retries: whatever such a client sees of an upgrade is counted. Until SIGTERM; then RESULT is written, as
JSON: {target: {calls, wrong, errors: {text: count}, slowest_ms}}.
"""
import json
import pathlib
import signal
import sys
import threading
import time

sys.path.insert(0, sys.argv[1])

import grpc
import numpy as np

from adapterd.v1 import adapter_pb2, projection_service_pb2, projection_service_pb2_grpc, tensor_pb2

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOY = ROOT / "examples/adapters/toy"
MODULE = "model.layers.0.self_attn.q_proj"
PAUSE_SECONDS = 0.005


def toy():
    """scale, A and B, read from the file without any code of ours."""
    config = json.loads((TOY / "adapter_config.json").read_text())
    data = (TOY / "adapter_model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])

    def matrix(factor):
        tensor = header[f"base_model.model.{MODULE}.lora_{factor}.weight"]
        begin, end = tensor["data_offsets"]
        return np.frombuffer(data[start + begin:start + end], "<f4").reshape(tensor["shape"])
    return config["lora_alpha"] / config["r"], matrix("A"), matrix("B")


def channel(target):
    if not target.startswith("dns:"):
        return grpc.insecure_channel(target, [("grpc.enable_retries", 0)])
    config = (ROOT / "examples/service_config.json").read_text()
    return grpc.insecure_channel(target, [("grpc.service_config", config), ("grpc.dns_min_time_between_resolutions_ms", 1000)])


def call(target, stop, result):
    scale, a, b = toy()
    x = np.arange(1, a.shape[1] + 1, dtype="<f4")
    expected = scale * (b @ (a @ x))
    request = projection_service_pb2.ApplyProjectionRequest(
        adapter=adapter_pb2.AdapterRef(name="toy"),
        input=tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_F32, shape=[1, len(x)], data=x.tobytes()))
    request.projections.add(module=adapter_pb2.ModuleSelector(path=MODULE))
    with channel(target) as connection:
        stub = projection_service_pb2_grpc.ProjectionServiceStub(connection)
        while not stop.is_set():
            begin = time.monotonic()
            try:
                reply = stub.ApplyProjection(request, timeout=10)
                output = np.frombuffer(reply.outputs[0].output.data, "<f4")
                if not np.allclose(output, expected, rtol=1e-5):
                    result["wrong"] += 1
            except grpc.RpcError as error:
                text = f"{error.code().name}: {error.details()}"
                result["errors"][text] = result["errors"].get(text, 0) + 1
            result["calls"] += 1
            result["slowest_ms"] = max(result["slowest_ms"], round((time.monotonic() - begin) * 1000))
            time.sleep(PAUSE_SECONDS)


def main(_, result_file, *targets):
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    results = {target: {"calls": 0, "wrong": 0, "errors": {}, "slowest_ms": 0} for target in targets}
    threads = [threading.Thread(target=call, args=(target, stop, results[target])) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pathlib.Path(result_file).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
