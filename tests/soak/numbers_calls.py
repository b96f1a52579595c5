"""Calls that compute, each answer compared with numpy."""
import shutil

import numpy as np

from adapters import Q0, V0
from checkpoints import read_checkpoint
from contents import IN, MODEL, OUT, base_weights
from harness import PATIENCE, merge_request
from tensors import array, from_proto
from adapterd.v1 import adapter_pb2, merge_service_pb2, projection_service_pb2, tensor_pb2

F32 = tensor_pb2.DATA_TYPE_F32
DTYPES = ("F32", "F16", "BF16")
BASE = "base"  # is there from the beginning to the end
WEIGHTS = base_weights()


def whole(shape):
    return np.random.default_rng().integers(-4, 5, shape).astype(float)


class NumberCalls:
    """Part of SoakClient, whose members these use."""

    def _terms(self):
        """[(name, weight)] of own and shared adapters."""
        names = [n for n in (*self.own, *self.shared) if n not in self.disabled]
        chosen = self.choose.sample(names, min(len(names), self.choose.randrange(1, 4)))
        return [(name, self.choose.choice((1, 2, -1, 3))) for name in chosen]

    def _refs(self, terms):
        return [adapter_pb2.AdapterRef(name=name, weight=weight) for name, weight in terms]

    def _served(self, adapters):
        """name -> Content that a reply says it used."""
        served = {}
        for adapter in adapters:
            expected = self.own.get(adapter.name)
            if expected is not None:
                self.record.expect(expected.revision == adapter.revision,
                                   f"{adapter.name} is served by {adapter.revision}, not by {expected.revision}")
            served[adapter.name] = expected or self.by_revision[adapter.revision]
        return served

    def _equal(self, found, expected, what):
        if found.shape != expected.shape:
            self.record.wrong(f"{what}: {found.shape} instead of {expected.shape}")
        elif not np.array_equal(found, expected):
            places = np.argwhere(found != expected)
            first = tuple(places[0])
            self.record.wrong(f"{what}: {len(places)} of {expected.size} numbers are wrong; at {first} "
                              f"{found[first]}, not {expected[first]}")

    def _projection(self):
        """A request, and what tells the right outputs from the adapters that its reply names."""
        path, dtype = self.choose.choice((Q0, V0)), self.choose.choice(DTYPES)
        runs = [(self.choose.randrange(1, 9), self._terms() if self.choose.random() < 0.8 else [])
                for _ in range(self.choose.randrange(1, 5))]
        rows = sum(count for count, _ in runs)
        x, base = whole((rows, IN)), whole((rows, OUT[path])) if self.choose.random() < 0.5 else None
        request = projection_service_pb2.ApplyProjectionRequest(
            input=array(x, dtype).proto(), output_dtype=F32,
            segments=[projection_service_pb2.Segment(rows=count, adapters=self._refs(terms))
                      for count, terms in runs])
        request.projections.add(module=adapter_pb2.ModuleSelector(path=path),
                                base_output=None if base is None else array(base).proto())

        def expected(served):
            if base is None and not served:
                return np.zeros((rows, 0))  # no adapter tells how wide it is
            outputs, first = np.zeros((rows, OUT[path])) if base is None else base.copy(), 0
            for count, terms in runs:
                for name, weight in terms:
                    outputs[first:first + count] += weight * x[first:first + count] @ served[name].deltas[path].T
                first += count
            return outputs
        return request, expected

    def _check_projection(self, response, expected, what):
        found = from_proto(response.outputs[0].output).values()
        self._equal(found, expected(self._served(response.adapters)), what)

    def apply(self):
        request, expected = self._projection()
        reply = self.record.call("ApplyProjection", self.client.apply, request)
        self._check_projection(reply, expected, "ApplyProjection")

    def stream(self):
        """Requests in a row, one of them bad, which fails alone."""
        pairs = [self._projection() for _ in range(4)]
        requests = [request for request, _ in pairs]
        unknown = projection_service_pb2.ApplyProjectionRequest()
        unknown.CopyFrom(requests[1])
        del unknown.segments[:]
        unknown.adapter.name = "nobody"
        requests.insert(2, unknown)
        messages = [projection_service_pb2.StreamProjectionsRequest(request_id=i, request=request)
                    for i, request in enumerate(requests)]
        replies = self.record.call("StreamProjections", lambda: list(
            self.client.projections.StreamProjections(iter(messages), timeout=PATIENCE)))
        self.record.expect([r.request_id for r in replies] == list(range(5)), "replies out of order")
        for reply, (_, expected) in zip(replies[:2] + replies[3:], pairs):
            if reply.HasField("response"):
                self._check_projection(reply.response, expected, "StreamProjections")
            else:
                self.record.expect(reply.error.reason == "MEMORY_BUDGET_EXCEEDED", f"in a stream: {reply.error}")
        self.record.expect(replies[2].error.reason == "ADAPTER_NOT_FOUND", "an unknown adapter in a stream")

    def forward(self):
        path, terms = self.choose.choice((Q0, V0)), self._terms()
        x = whole((self.choose.randrange(1, 17), IN))
        request = projection_service_pb2.ForwardRequest(
            base_model=BASE, module=adapter_pb2.ModuleSelector(path=path), input=array(x).proto(),
            segments=[projection_service_pb2.Segment(adapters=self._refs(terms))])
        reply = self.record.call("Forward", self.client.projections.Forward, request, timeout=PATIENCE)
        served = self._served(reply.adapters)
        weight = WEIGHTS[path] + sum(w * served[name].deltas[path] for name, w in terms)
        self._equal(from_proto(reply.output).values(), x @ weight.T, "Forward")

    def _merged(self, path, terms, adapters, weight):
        served = self._served(adapters)
        return weight + sum(w * served[name].deltas[path] for name, w in terms)

    def merge(self):
        path, terms = self.choose.choice((Q0, V0)), self._terms()
        weight = whole((OUT[path], IN))
        request = merge_request("", path, array(weight).proto())
        del request.adapters[:]
        request.adapters.extend(self._refs(terms))
        reply = self.record.call("Merge", self.client.merge, request)
        self._equal(from_proto(reply.weight).values(), self._merged(path, terms, reply.adapters, weight), "Merge")

    def merge_stream(self):
        path, terms = self.choose.choice((Q0, V0)), self._terms()
        weight = whole((OUT[path], IN))
        messages = [merge_service_pb2.MergeStreamRequest(start=merge_service_pb2.MergeStreamStart(
            module=adapter_pb2.ModuleSelector(path=path), shape=weight.shape, dtype=F32,
            adapters=self._refs(terms)))]
        for first in range(0, OUT[path], 16):
            messages.append(merge_service_pb2.MergeStreamRequest(rows=merge_service_pb2.WeightRows(
                first_row=first, data=array(weight[first:first + 16]).tobytes())))
        replies = self.record.call("MergeStream", lambda: list(
            self.client.merges.MergeStream(iter(messages), timeout=PATIENCE)))
        found = np.frombuffer(b"".join(r.rows.data for r in replies[:-1]), np.float32).reshape(weight.shape)
        self._equal(found, self._merged(path, terms, replies[-1].adapters, weight), "MergeStream")

    def merge_checkpoint(self):
        self.outputs += 1
        name = self.choose.choice(list(self.own))
        output = f"{self.prefix}-{self.outputs}"
        self.record.call("MergeCheckpoint", self.client.merged_checkpoint, MODEL, output, [name])
        tensors = read_checkpoint(self.output_root / output)
        for path, weight in WEIGHTS.items():
            self._equal(tensors[f"{path}.weight"].values(), weight + self.own[name].deltas[path], "MergeCheckpoint")
        # First out of the way: whoever is killed here leaves nothing that looks like half an output.
        gone = (self.output_root / output).rename(self.output_root / f"gone-{output}")
        shutil.rmtree(gone)

    def base_model(self):
        """Two adapters are merged into a base model of one's own and taken out again."""
        base, terms = f"{self.prefix}-base", [(n, w) for n, w in self._terms() if n in self.own]
        self.record.call("LoadBaseModel", self.client.load_base, base, MODEL)
        try:
            listed = self.record.call("ListBaseModels", self.client.list_bases)
            self.record.expect({base, BASE} <= set(listed), f"bases are {sorted(listed)}")
            if terms:
                self.record.call("MergeAdapter", self.client.merge_into, base, *terms)
                self._check_weights(base, terms)
                self.record.call("UnmergeAdapter", self.client.unmerge_from, base)
            self._check_weights(base, [])
        finally:
            self.record.call("UnloadBaseModel", self.client.unload_base, base)

    def _check_weights(self, base, terms):
        for path, weight in WEIGHTS.items():
            found = self.record.call("GetBaseWeight", self.client.base_weight, base, path)
            expected = weight + sum(w * self.own[name].deltas[path] for name, w in terms)
            self._equal(from_proto(found).values(), expected, "GetBaseWeight")
