"""Calls that change and tell what there is; each answer is compared with what must be."""
import itertools
import shutil

import numpy as np

from adapters import Q0, V0
from contents import Content, IN, OUT
from harness import PATIENCE, apply_request
from numbers_calls import whole
from peft_rules import PeftAdapter
from record_model import upload
from tensors import array, from_proto
from adapterd.v1 import adapter_creation_pb2 as creation
from adapterd.v1 import adapter_pb2, adapter_service_pb2, tensor_pb2

READY = adapter_pb2.ADAPTER_STATE_READY
EVENTS = adapter_service_pb2
UNCHANGED = adapter_service_pb2.RECONCILE_ACTION_UNCHANGED
LOAD = adapter_service_pb2.RECONCILE_ACTION_LOAD
MOST_COMPOSED_RANK = 8  # of each part, so that ranks do not grow without end


class ChangeCalls:
    """Part of SoakClient, whose members these use."""

    def _name(self):
        return self.choose.choice(self.names)

    def _existing(self):
        return self.choose.choice(list(self.own))

    def _became(self, name, content, adapter):
        """A reply says what `name` is now."""
        self.record.expect(adapter.revision == content.revision,
                           f"{name} became {adapter.revision}, not {content.revision}")
        self.own[name] = content

    def _free(self, name):
        if name in self.own:
            self.record.call("UnloadAdapter", self.client.unload, name, force=True)
            del self.own[name]

    def load(self):
        name, content = self._name(), self.choose.choice(self.contents)
        reply = self.record.call("LoadAdapter", self.client.load, name, content.source, replace=True)
        self._became(name, content, reply.adapter)

    def upload(self):
        name, content = self._name(), self.choose.choice(self.contents)
        reply = self.record.call("UploadAdapter", upload, self.client, name, content.files, replace=True)
        self._became(name, content, reply.adapter)

    def unload(self):
        self._free(self._existing())

    def replace_and_roll_back(self):
        name = self._existing()
        before = self.own[name]
        other = self.choose.choice([c for c in self.contents if c.revision != before.revision])
        reply = self.record.call("LoadAdapter", self.client.load, name, other.source, replace=True)
        self._became(name, other, reply.adapter)
        self.record.expect(before.revision in reply.adapter.kept_revisions, f"{name} does not keep its revision")
        adapter = self.record.call("RollbackAdapter", self.client.rollback, name, before.revision)
        self._became(name, before, adapter)

    def update(self):
        name, number = self._existing(), str(self.choose.randrange(1000))
        adapter = self.record.call("UpdateAdapter", self.client.update, name, ["labels"], labels={"n": number})
        self.record.expect(dict(adapter.labels) == {"n": number}, f"{name} has labels {adapter.labels}")

    def disable(self):
        name = self._existing()
        self.record.call("UpdateAdapter", self.client.update, name, enabled=False)
        self.disabled.add(name)
        x = array(np.zeros((1, IN))).proto()
        self.record.refused("FAILED_PRECONDITION/ADAPTER_DISABLED", "ApplyProjection", self.client.apply,
                            apply_request(name, Q0, x))
        self.record.call("UpdateAdapter", self.client.update, name, enabled=True)
        self.disabled.discard(name)

    def alias(self):
        name, content = self._existing(), self.own
        revision = content[name].revision
        self.record.call("SetAlias", self.client.set_alias, name, "prod", revision)
        x = whole((2, IN))
        reply = self.record.call("ApplyProjection", self.client.apply,
                                 apply_request(f"{name}@prod", V0, array(x).proto()))
        self._equal(from_proto(reply.outputs[0].output).values(), x @ content[name].deltas[V0].T, "an alias")
        self.record.call("SetAlias", self.client.set_alias, name, "prod", "")

    def validate(self):
        content = self.choose.choice(self.contents)
        reply = self.record.call("ValidateAdapter", self.client.validate, "v", content.source)
        self.record.expect(reply.valid and reply.adapter.revision == content.revision, f"validated: {reply}")
        source, reason = self.choose.choice([b for b in self.broken.items() if b[0] in ("nan", "torn", "text")])
        reply = self.record.call("ValidateAdapter", self.client.validate, "v", source)
        self.record.expect(not reply.valid and reply.problems[0].reason == reason, f"{source}: {reply}")

    def look(self):
        """What the listing, GetAdapter and GetAdapterTensors say of own adapters."""
        listed = self.record.call("ListAdapters", self.client.list, name_prefix=f"{self.prefix}-", page_size=100)
        found = {adapter.name: adapter.revision for adapter in listed.adapters}
        expected = {name: content.revision for name, content in self.own.items()}
        self.record.expect(found == expected, f"listed are {found}, not {expected}")
        name, path = self._existing(), self.choose.choice((Q0, V0))
        adapter = self.record.call("GetAdapter", self.client.get, name)
        self.record.expect(adapter.revision == expected[name], f"GetAdapter of {name}: {adapter.revision}")
        tensors = self.record.call("GetAdapterTensors", self.client.tensors, name,
                                   adapter_pb2.ModuleSelector(path=path))
        a, b = from_proto(tensors.lora_a).values(), from_proto(tensors.lora_b).values()
        self._equal(tensors.scale * b @ a, self.own[name].deltas[path], "GetAdapterTensors")

    def export(self):
        name, folder = self._existing(), self.scratch / "export"
        try:
            self.record.call("ExportAdapter", self.client.export, name, folder,
                             format=adapter_pb2.ADAPTER_FORMAT_PEFT)
            found = Content.of(PeftAdapter(folder)).deltas
            for path in OUT:
                self._equal(found[path], self.own[name].deltas[path], "ExportAdapter")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def create(self):
        name, rank = self._name(), self.choose.randrange(1, MOST_COMPOSED_RANK + 1)
        self._free(name)
        request, deltas = creation.CreateAdapterRequest(name=name), {}
        for path, out in OUT.items():
            a, b = whole((rank, IN)), whole((out, rank))
            deltas[path] = b @ a
            request.tensors.modules.add(path=path, alpha=rank, lora_a=array(a).proto(), lora_b=array(b).proto())
        reply = self.record.call("CreateAdapter", self.client.adapters.CreateAdapter, request, timeout=PATIENCE)
        self.own[name] = Content(reply.adapter.revision, deltas, rank=rank)

    def update_tensors(self):
        name = self._existing()
        before = self.own[name]
        if not before.rank:
            return
        a, b = whole((before.rank, IN)), whole((OUT[Q0], before.rank))
        messages = [
            creation.UpdateAdapterTensorsRequest(start=creation.UpdateTensorsStart(name=name)),
            creation.UpdateAdapterTensorsRequest(tensor=creation.UpdatedTensors(
                path=Q0, lora_a=array(a).proto(), lora_b=array(b).proto()))]
        reply = self.record.call("UpdateAdapterTensors", self.client.adapters.UpdateAdapterTensors,
                                 iter(messages), timeout=PATIENCE)
        self.own[name] = Content(reply.adapter.revision, {**before.deltas, Q0: b @ a}, rank=before.rank)

    def compose(self):
        parts = [n for n, content in self.own.items() if content.rank][:2]
        name = next((n for n in self.names if n not in parts), None)
        if len(parts) < 2 or name is None:
            return
        self._free(name)
        terms = [(part, self.choose.choice((1, 2, -1))) for part in parts]
        request = creation.ComposeAdapterRequest(name=name, method=creation.COMPOSE_METHOD_CAT,
                                                 adapters=self._refs(terms))
        reply = self.record.call("ComposeAdapter", self.client.adapters.ComposeAdapter, request, timeout=PATIENCE)
        self.own[name] = Content(reply.adapter.revision, {
            path: sum(weight * self.own[part].deltas[path] for part, weight in terms) for path in OUT})

    def reconcile(self):
        """A name of its own comes by desired state, stays, and goes."""
        name, content = f"{self.prefix}-desired", self.choose.choice(self.contents)
        desired = [adapter_service_pb2.AdapterSpec(name=name, source=content.source)]
        for action in (LOAD, UNCHANGED):
            change = self.record.call("ReconcileAdapters", self.client.reconcile, desired)[name]
            if change.error and "MEMORY_BUDGET_EXCEEDED" in (change.error + change.reason):
                return
            self.record.expect(change.action == action and not change.error, f"reconciled: {change}")
        self.own[name] = content
        self._free(name)

    def watch(self):
        """The events of a name of its own, in order."""
        name, content = f"{self.prefix}-watched", self.choose.choice(self.contents)
        stream = self.record.call("WatchAdapters", self.client.watch)
        try:
            self.record.call("LoadAdapter", self.client.load, name, content.source)
            self.own[name] = content
            self._free(name)
            events = []
            for reply in itertools.islice(stream, 10_000):
                if reply.event.adapter.name == name:
                    events.append(reply.event)
                if events and events[-1].type == EVENTS.ADAPTER_EVENT_TYPE_UNLOADED:
                    break
            self.record.expect(events[0].type == EVENTS.ADAPTER_EVENT_TYPE_LOADED, f"the first event: {events[0]}")
            numbers = [event.sequence for event in events]
            self.record.expect(numbers == sorted(set(numbers)), f"sequences {numbers}")
        finally:
            stream.cancel()

    def estimate(self):
        request = creation.EstimateCapacityRequest(
            budget_bytes=1 << 20, rank=4, dtype=tensor_pb2.DATA_TYPE_F32,
            matrix=creation.MatrixShape(in_features=IN, out_features=OUT[Q0]))
        reply = self.record.call("EstimateCapacity", self.client.adapters.EstimateCapacity, request, timeout=PATIENCE)
        self.record.expect(reply.parameter_count == 4 * (IN + OUT[Q0]), f"parameters {reply.parameter_count}")
        self.record.expect(reply.adapters_that_fit == (1 << 20) // reply.bytes_per_adapter, f"capacity {reply}")

    def info(self):
        instance = self.record.call("GetServerInfo", self.client.info).instance_id
        self.record.expect(instance == self.instance, "another instance answers")

    def bad(self):
        """What must be refused, and with which reason."""
        x, narrow = array(np.zeros((2, IN))).proto(), array(np.zeros((2, IN - 1))).proto()
        source, reason = self.choose.choice(list(self.broken.items()))
        code = "NOT_FOUND" if reason == "SOURCE_NOT_FOUND" else "INVALID_ARGUMENT"
        status, method, function, *arguments = self.choose.choice([
            (f"{code}/{reason}", "LoadAdapter", self.client.load, f"{self.prefix}-x", source),
            ("INVALID_ARGUMENT/INVALID_FIELD", "LoadAdapter", self.client.load, "no name", "s0"),
            ("NOT_FOUND/ADAPTER_NOT_FOUND", "ApplyProjection", self.client.apply, apply_request("nobody", Q0, x)),
            ("NOT_FOUND/ADAPTER_NOT_FOUND", "UnloadAdapter", self.client.unload, "nobody"),
            ("INVALID_ARGUMENT/SHAPE_MISMATCH", "ApplyProjection", self.client.apply,
             apply_request(self._existing(), Q0, narrow)),
            ("NOT_FOUND/MODULE_NOT_TARGETED", "ApplyProjection", self.client.apply,
             apply_request(self._existing(), "model.norm", x)),
            ("NOT_FOUND/BASE_MODEL_NOT_FOUND", "UnloadBaseModel", self.client.unload_base, "nobody")])
        self.record.refused(status, method, function, *arguments)
