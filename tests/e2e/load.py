"""Work that comes in all the time."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.result import AsyncResult

from e2e.site import Site
from e2e.waiting import until


class Stream:
    """Tasks published at a steady rate in the background."""

    def __init__(
        self, site: Site, keys: int, sec: float, pause: float, options: dict[str, Any], spread: float = 0.0
    ) -> None:
        self._site, self._keys, self._sec, self._pause = site, keys, sec, pause
        self._chance, self._spread = random.Random(7), spread
        self._options = options
        self._over = threading.Event()
        self.results: list[AsyncResult] = []
        self._thread = threading.Thread(target=self._publish, daemon=True)

    def _publish(self) -> None:
        while not self._over.wait(self._pause):
            n = len(self.results)
            sec = self._sec + self._spread * self._chance.random()
            self.results.append(self._site.call("step", f"key{n % self._keys}", n, sec, **self._options))

    @property
    def ids(self) -> list[str]:
        return [result.id for result in self.results]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def load(
    site: Site, keys: int = 60, sec: float = 0.02, pause: float = 0.01, spread: float = 0.0, **options: Any
) -> Iterator[Stream]:
    """Publish for as long as the block lasts; ``options`` are ``apply_async``'s.

    Arguments:
        sec: how long each body takes, and up to ``spread`` more.
    """
    stream = Stream(site, keys, sec, pause, options, spread)
    stream.start()
    try:
        until(lambda: len(site.history.runs()) > 20, "the load is on")
        yield stream
    finally:
        stream.stop()
