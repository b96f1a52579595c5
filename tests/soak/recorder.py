"""Counts what clients ask and get, and keeps what was wrong."""
import time
from array import array
from collections import Counter

import grpc

from harness import failure_of

# A server that is asked for more than it has may say so; nothing else may go wrong.
REFUSALS = {"RESOURCE_EXHAUSTED/MEMORY_BUDGET_EXCEEDED", "UNAVAILABLE/OVERLOADED"}
MEASURED = "ApplyProjection"
KEPT_WRONGS = 20


class Refused(Exception):
    """A call was refused, as it may be."""


class Recorder:
    def __init__(self):
        self.counts = Counter()  # of (method, outcome)
        self.seconds = array("d")  # of the measured method
        self.wrongs, self.wrong_count = [], 0

    def wrong(self, what):
        self.wrong_count += 1
        if len(self.wrongs) < KEPT_WRONGS:
            self.wrongs.append(what)

    def expect(self, condition, what):
        if not condition:
            self.wrong(what)

    def call(self, method, function, *arguments, **fields):
        """The reply. Raises Refused; an error that may not be counts as wrong, and raises Refused, too."""
        begin = time.monotonic()
        try:
            reply = function(*arguments, **fields)
        except grpc.RpcError as error:
            failure = failure_of(error)
            self.counts[method, failure.status] += 1
            if failure.status not in REFUSALS:
                self.wrong(f"{method} failed: {failure}")
            raise Refused(failure.status) from error
        if method == MEASURED:
            self.seconds.append(time.monotonic() - begin)
        self.counts[method, "OK"] += 1
        return reply

    def refused(self, status, method, function, *arguments, **fields):
        """A call that has to fail so."""
        try:
            function(*arguments, **fields)
            found = "OK"
        except grpc.RpcError as error:
            found = failure_of(error).status
        self.counts[method, found] += 1
        if found != status and found not in REFUSALS:
            self.wrong(f"{method} should have been {status}, was {found}")

    def add(self, other):
        self.counts += other.counts
        self.seconds.extend(other.seconds)
        self.wrong_count += other.wrong_count
        self.wrongs = (self.wrongs + other.wrongs)[:KEPT_WRONGS]
