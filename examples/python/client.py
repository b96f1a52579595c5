"""A client of adapterd: loads the toy adapter, applies it to one row, and merges it into one weight.

usage: client.py [TARGET]      (default: 127.0.0.1:50051; behind Kubernetes: dns:///adapterd-headless:50051)

Needs grpcio, protobuf and numpy, and the stubs that the README makes on the PYTHONPATH.
"""
import pathlib
import sys

import grpc
import numpy as np

from adapterd.v1 import adapter_pb2, adapter_service_pb2, adapter_service_pb2_grpc
from adapterd.v1 import merge_service_pb2, merge_service_pb2_grpc
from adapterd.v1 import projection_service_pb2, projection_service_pb2_grpc, tensor_pb2

# Retries, balancing between replicas, and health checks: gRPC does all three when it is told so.
SERVICE_CONFIG = (pathlib.Path(__file__).parents[1] / "service_config.json").read_text()


def connect(target):
    return grpc.insecure_channel(target, options=[
        ("grpc.service_config", SERVICE_CONFIG),
        # Replies can be larger than the 4 MB that clients accept by default.
        ("grpc.max_receive_message_length", -1),
        # A rolling update may replace all replicas within the 30 s for which addresses are kept by default.
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        # Only what is still in this buffer can be sent again.
        ("grpc.per_rpc_retry_buffer_size", 64 << 20)])


def to_tensor(array):
    return tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_F32, shape=array.shape,
                             data=array.astype("<f4").tobytes())


def to_array(tensor):
    return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)


def load(channel, name, source):
    """Also right when it is loaded already: equal content is no change."""
    request = adapter_service_pb2.LoadAdapterRequest(name=name, source=source)
    return adapter_service_pb2_grpc.AdapterServiceStub(channel).LoadAdapter(request, timeout=60).adapter


def apply(channel, name, module, rows):
    """scale * B (A x) for each row."""
    request = projection_service_pb2.ApplyProjectionRequest(
        adapter=adapter_pb2.AdapterRef(name=name), input=to_tensor(rows))
    request.projections.add(module=module)
    reply = projection_service_pb2_grpc.ProjectionServiceStub(channel).ApplyProjection(request)
    return to_array(reply.outputs[0].output)


def merge(channel, name, module, weight):
    """weight + scale * B A."""
    request = merge_service_pb2.MergeRequest(
        adapters=[adapter_pb2.AdapterRef(name=name)], module=module, weight=to_tensor(weight))
    return to_array(merge_service_pb2_grpc.MergeServiceStub(channel).Merge(request).weight)


def main(target="127.0.0.1:50051"):
    module = adapter_pb2.ModuleSelector(target="q_proj", layer=0)
    with connect(target) as channel:
        print("revision", load(channel, "toy", "toy").revision)
        print("delta", apply(channel, "toy", module, np.array([[1, 2, 3, 4]])).tolist())
        print("merged", merge(channel, "toy", module, np.ones((3, 4))).tolist())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
