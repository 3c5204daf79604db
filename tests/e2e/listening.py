"""Receivers in the workers under test: they write down when they are called, take their time, and watch ``owns``."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from typing import Any

from celery import Celery
from celery import signals as of_celery

from e2e.history import WORKER, now
from jobsync_celery import signals

#: How often a worker asks itself what it owns.
_LOOK_SEC = 0.002


class Notebook:
    """Appends lines to a file; each is one write."""

    def __init__(self, path: str) -> None:
        self._path = path

    def line(self, event: str, **more: Any) -> None:
        text = json.dumps({"event": event, "at": now(), "worker": WORKER, "pid": os.getpid(), **more}) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def listen(app: Celery, path: str, sleep: float, hang: float = 0.0) -> None:
    """Connect receivers that sleep up to ``sleep`` seconds; ``hang``: the first revocation of each worker takes longer.

    They are connected for the life of the process, as an application's are.
    """
    book = Notebook(path)
    hangs = [hang]

    def called(event: str, partitions: frozenset[int], lost: bool = False, seconds: float = 0.0) -> None:
        book.line(event, partitions=sorted(partitions), lost=lost)
        time.sleep(seconds + random.random() * sleep)
        book.line(f"{event} returned", partitions=sorted(partitions))

    def assigned(partitions: frozenset[int], **_: Any) -> None:
        called("assigned", partitions)

    def revoked(partitions: frozenset[int], lost: bool, **_: Any) -> None:
        called("revoked", partitions, lost, hangs.pop() if hangs else 0.0)

    def tenures_changed(gained: frozenset[int], lost: frozenset[int], tenures: dict[int, int], **_: Any) -> None:
        book.line("tenures", gained=sorted(gained), lost=sorted(lost), tenures=tenures)

    signals.partitions_assigned.connect(assigned, weak=False)
    signals.partitions_revoked.connect(revoked, weak=False)
    signals.tenure_changed.connect(tenures_changed, weak=False)
    for name in ("node_joined", "node_left", "leader_changed", "lease_lost"):
        getattr(signals, name).connect(_labelled(book, name), weak=False)
    of_celery.worker_ready.connect(lambda **_: _watch(app, book), weak=False)


def _labelled(book: Notebook, label: str) -> Any:
    def news(sender: Any, signal: Any, **told: Any) -> None:
        book.line(label, told=told)

    return news


def _watch(app: Celery, book: Notebook) -> None:
    """Note what ``owns`` says, whenever that changes, and at least every half second that the process runs."""
    keys = keys_of_partitions(app)

    def watch() -> None:
        owned, last = None, 0.0
        while True:
            asked = now()
            found = [number for number, key in keys.items() if app.jobsync.owns(key)]
            if found != owned or asked - last > 0.5:
                book.line("owns", partitions=found, asked=asked)
                owned, last = found, asked
            time.sleep(_LOOK_SEC)

    threading.Thread(target=watch, daemon=True).start()


def keys_of_partitions(app: Celery) -> dict[int, str]:
    """A key of each partition."""
    tokens = app.jobsync.cluster.tokens
    keys: dict[int, str] = {}
    number = 0
    while len(keys) < tokens.partitions:
        keys.setdefault(tokens.partition_for(f"watch{number}"), f"watch{number}")
        number += 1
    return keys
