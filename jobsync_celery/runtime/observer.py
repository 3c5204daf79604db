"""The thread of an observing worker's main process: takes what runs told, and writes it, some of it a second."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from datetime import timedelta

from jobsync_celery.core.observation import ClockReading, Notebook, Observation, Sight
from jobsync_celery.errors import SchemaOutdated, StoreError, StoreUnavailable
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.recorder import Recorder
from jobsync_celery.store.database import Database, Link
from jobsync_celery.store.maintenance import Maintenance
from jobsync_celery.store.observations import Observations, ObserverIdentity
from jobsync_celery.store.schema import ensure_tables

#: Runs in memory while the database is away: some ten megabytes.
LIMIT = 20_000
#: Rows of one statement.
BATCH = 5000
_READ_SEC = 0.25
_WRITE_SEC = 1.0
#: A run that is about to end is written once instead of twice.
_YOUNG_SEC = 0.5
#: Without news, how often the observer says that it is there: reports take one that is silent for much longer for dead.
_ATTEND_SEC = 5.0
_RETRY_SEC = 5.0
_CLEAN_SEC = 600.0


class Observer:
    """Writes what this worker's runs tell; breaks nothing and holds up nothing when it cannot.

    Arguments:
        retention: seconds that observations are kept. Observers delete older ones themselves, for where tasks are only
            observed nobody else does.
    """

    def __init__(
        self, database: Database, recorder: Recorder, identity: ObserverIdentity, events: Events, retention: float
    ) -> None:
        self._database = database
        self._recorder = recorder
        self._identity = identity
        self._events = events
        self._retention = timedelta(seconds=retention)
        self._store = Observations(database)
        self._maintenance = Maintenance(database)
        self.notebook = Notebook(LIMIT)
        self._link: Link | None = None
        self._number: int | None = None
        self._reading: ClockReading | None = None
        self._seen = 0.0
        self._next_write = self._next_attendance = self._next_cleaning = 0.0
        self._interrupted = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobsync observer", daemon=True)

    def start(self) -> None:
        """Begin to read and write, in a thread of its own."""
        self._thread.start()

    def stop(self, patience: float) -> None:
        """Write what is left, once the pool is gone; wait so many seconds for that at most."""
        if self._thread.ident is not None:
            self._stop.set()
            self._thread.join(patience)

    def tick(self) -> None:
        """Read what there is, and write if it is time."""
        self.read()
        now = boot_clock()
        if now >= self._next_write:
            self._next_write = now + (_WRITE_SEC if self.write() else _RETRY_SEC)

    def read(self) -> None:
        """Take in what runs told, and notice which processes died under theirs."""
        seen = boot_clock()
        gone = {pid for pid in self.notebook.pids if not _alive(pid)}
        self._recorder.read(self.notebook)
        # Who was gone before the pipe was read has no more in it.
        self.notebook.lose(gone, self._seen)
        self._seen = seen

    def write(self, *, everything: bool = False) -> bool:
        """Write what is due, or everything; false if the database did not take it."""
        try:
            self._write(everything)
        except StoreUnavailable as error:
            self._interrupt(error)
            return False
        except StoreError as error:
            self._interrupt(error)
            if isinstance(error, SchemaOutdated):
                self._number = None  # the tables are gone, and made anew
            return False
        if self._interrupted:
            self._interrupted = False
            self._events("observing_resumed", dropped=self.notebook.dropped)
        return True

    def _write(self, everything: bool) -> None:
        link = self._connected()
        while True:
            now = boot_clock()
            page = self.notebook.page(now if everything else now - _YOUNG_SEC, BATCH)
            if page or now >= self._next_attendance:
                if not self._put(link, self._enrolled(link), page):
                    self._number = None  # it was cut off for so long that its row went with what is too old to keep
                    continue
                self._next_attendance = now + _ATTEND_SEC
            if len(page) < BATCH:
                break
            self.read()  # the pipe fills meanwhile
        if now >= self._next_cleaning and not self._clean(link):
            self._next_cleaning = now + _CLEAN_SEC

    def _put(self, link: Link, number: int, page: list[Sight]) -> bool:
        reading = self._read_clock(link)
        new, again = list[Observation](), list[Observation]()
        for sight in page:
            (again if sight.sent or sight.state == "running" else new).append(sight.observation(reading))
            sight.sent = True
        seen = self._seen + reading.offset - reading.error_at(self._seen)
        try:
            if not self._store.write(link, number, seen, self.notebook.dropped, new, again):
                return False
        except StoreUnavailable:
            raise
        except StoreError:
            self.notebook.discard(page)
            raise
        self.notebook.wrote(page)
        return True

    def _read_clock(self, link: Link) -> ClockReading:
        sent = boot_clock()
        database_time = self._store.clock(link)
        reading = ClockReading.of(sent, boot_clock(), database_time)
        self._reading = reading if self._reading is None else self._reading.or_better(reading)
        return self._reading

    def _clean(self, link: Link) -> bool:
        """Delete some of what is past its retention; whether there is more."""
        before = self._maintenance.now(link) - self._retention
        with link.transaction() as tx:
            return self._maintenance.delete(tx, "observations", before, BATCH).deleted == BATCH

    def _connected(self) -> Link:
        if self._link is None:
            self._link = self._database.link(f"jobsync {self._identity.node} observer")
        return self._link

    def _enrolled(self, link: Link) -> int:
        if self._number is None:
            ensure_tables(self._database)
            self._number = self._store.enrol(link, self._identity)
        return self._number

    def _interrupt(self, error: StoreError) -> None:
        if not self._interrupted:
            self._interrupted = True
            self._events("observing_interrupted", error=error)

    def _run(self) -> None:
        while not self._stop.wait(_READ_SEC):
            self._turn()
        self._finish()

    def _turn(self) -> None:
        try:
            self.tick()
        except Exception as error:  # noqa: BLE001 - whatever it is, tasks are not to hear of it
            self._events("observing_stumbled", error=repr(error))
            self._stop.wait(_RETRY_SEC)

    def _finish(self) -> None:
        self.read()
        self.notebook.lose(self.notebook.pids, self._seen)
        if self.write(everything=True) and self._link is not None and self._number is not None:
            with closing(self._link):
                self._store.leave(self._link, self._number)


def _alive(pid: int) -> bool:
    """Whether this process, or a child of it, has not ended; one that nobody has waited for yet has ended, too."""
    if pid == os.getpid():
        return True
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False
