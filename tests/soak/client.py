"""One client of the soak: a process that calls every RPC in random order, and checks every answer."""
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from changes import ChangeCalls
from harness import Client
from numbers_calls import NumberCalls
from recorder import Recorder, Refused

NAMES = 5
CONNECTION_SECONDS = 2  # then it connects anew, with whatever certificate the server has by then
# How often each call is made, against the others.
OFTEN = {"apply": 40, "stream": 5, "forward": 5, "merge": 4, "merge_stream": 2, "load": 5, "replace_shared": 3,
         "bad": 4, "look": 3}


@dataclass(frozen=True)
class World:
    """What the clients of one server share. Goes to other processes."""
    target: str
    authority: bytes
    output_root: str
    contents: tuple
    broken: dict
    shared: tuple  # names of adapters that everybody replaces
    instance: str

    def connect(self):
        return Client(self.target, grpc.ssl_channel_credentials(self.authority))


class SoakClient(NumberCalls, ChangeCalls):
    """Has adapters of its own, whose names begin with `prefix`, and knows what they must be."""

    def __init__(self, world, prefix, seed, scratch):
        self.world, self.prefix, self.scratch = world, prefix, Path(scratch)
        self.choose = random.Random(seed)
        self.contents, self.broken, self.shared = world.contents, world.broken, world.shared
        self.instance, self.output_root = world.instance, Path(world.output_root)
        self.by_revision = {content.revision: content for content in world.contents}
        self.names = [f"{prefix}-{i}" for i in range(NAMES)]
        self.own = {}  # name -> Content, as acknowledged
        self.disabled, self.outputs = set(), 0
        self.record = Recorder()
        self.client = world.connect()
        once = [call.__name__ for part in (NumberCalls, ChangeCalls) for name, call in vars(part).items()
                if callable(call) and not name.startswith("_")]
        self.once = ["load", *once, "replace_shared"]
        self.calls = [name for name in self.once for _ in range(OFTEN.get(name, 1))]

    def replace_shared(self):
        name, content = self.choose.choice(self.shared), self.choose.choice(self.contents)
        reply = self.record.call("LoadAdapter", self.client.load, name, content.source, replace=True)
        self.record.expect(reply.adapter.revision == content.revision, f"{name} became {reply.adapter.revision}")

    def step(self, call=None):
        """`call`: None for any."""
        call = call or self.choose.choice(self.calls)
        try:
            if not self.own:
                self.load()
            getattr(self, call)()
        except Refused:
            pass
        except Exception as error:  # an answer that is not even what it should look like
            self.record.wrong(f"{call}: {error!r}")

    def run(self, seconds):
        end = time.monotonic() + seconds
        for call in self.once:
            self.step(call)
        while time.monotonic() < end:
            renew = time.monotonic() + CONNECTION_SECONDS
            while time.monotonic() < min(renew, end):
                self.step()
            self.client.close()
            self.client = self.world.connect()
        for name in list(self.own):
            self._free(name)
        self.client.close()
        return self.record


def run_client(world, prefix, seed, seconds, results):
    """The whole life of a process. `results`: a queue, or None when it is going to be killed."""
    with tempfile.TemporaryDirectory(prefix="adapterd-soak-") as scratch:
        record = SoakClient(world, prefix, seed, scratch).run(seconds)
    if results is not None:
        results.put(record)
