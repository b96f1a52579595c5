"""What adapters are after each change, by the API's rules and nothing of the server's code; and the
few contents that the tests of the system of record give them."""
import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from adapters import Q0, SMALL, delta_of, exact_adapter
from harness import PATIENCE, apply_request
from tensors import array, from_proto
from adapterd.v1 import adapter_service_pb2

X = np.arange(8.0).reshape(1, 8)
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


@dataclass
class Content:
    """An adapter's files, its revision, and what it answers to X in module Q0."""
    source: str
    files: dict
    revision: str
    answer: np.ndarray
    weights_sha256: str
    memory_bytes: int = 0

    @property
    def key(self):
        """Its name in the store, as core/catalog/content_key.h defines it."""
        lines = [f"{name}\0{len(data)}\0{hashlib.sha256(data).hexdigest()}\n"
                 for name, data in sorted(self.files.items())]
        return hashlib.sha256(("adapterd-content-v1\n" + "".join(lines)).encode()).hexdigest()


def write_content(root, source, seed):
    """A folder below `root`. Its answer is exact in F32, so that any other content's differs."""
    modules = {path: (*widths, 2 + seed) for path, (*widths, _) in SMALL.items()}
    truth = exact_adapter(root / source, modules, seed=seed)
    files = {name: (root / source / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    return Content(source, files, truth.revision(), delta_of(truth, Q0, X),
                   hashlib.sha256(files[WEIGHTS]).hexdigest())


def upload(client, name, files, **fields):
    messages = [adapter_service_pb2.UploadAdapterRequest(
        start=adapter_service_pb2.UploadStart(name=name, **fields))]
    messages += [adapter_service_pb2.UploadAdapterRequest(
        chunk=adapter_service_pb2.UploadChunk(file_name=file, data=data))
        for file, data in files.items()]
    return client.adapters.UploadAdapter(iter(messages), timeout=PATIENCE)


def ask(name, revision=""):
    request = apply_request(name, Q0, array(X).proto())
    request.adapter.revision = revision
    return request


def answer_of(reply):
    """(revision, numbers) of a reply to ask()."""
    return reply.adapters[0].revision, from_proto(reply.outputs[0].output).values()


@dataclass(frozen=True)
class State:
    """All of an adapter that has to survive."""
    revision: str
    labels: dict = field(default_factory=dict)
    aliases: dict = field(default_factory=dict)
    pinned: bool = False
    enabled: bool = True
    kept: tuple = ()

    @staticmethod
    def of(adapter):
        return State(adapter.revision, dict(adapter.labels), dict(adapter.aliases), adapter.pinned,
                     adapter.enabled, tuple(adapter.kept_revisions))

    @property
    def revisions(self):
        return (self.revision, *self.kept)

    def _only_kept(self, keep):
        """The newest `keep` of the earlier revisions stay, and those that an alias points at."""
        targets = self.aliases.values()
        return replace(self, kept=tuple(revision for place, revision in enumerate(self.kept)
                                        if place < keep or revision in targets))

    def loaded(self, keep, revision, **options):
        if revision == self.revision:
            return replace(self, **options)
        others = tuple(r for r in self.revisions if r != revision)
        return replace(self, revision=revision, kept=others, **options)._only_kept(keep)

    def rolled_back(self, keep, revision):
        return self.loaded(keep, revision)

    def aliased(self, keep, alias, revision):
        """`revision` None: without the alias."""
        aliases = {**self.aliases, alias: revision}
        if revision is None:
            del aliases[alias]
        if aliases == self.aliases:
            return self
        return replace(self, aliases=aliases)._only_kept(keep)
