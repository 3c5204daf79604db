"""The application of the demo, as a user would write it: accounts that are credited, each credit exactly once."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, signals
from sqlalchemy import BigInteger, Column, Engine, Integer, MetaData, Table, Text, create_engine, func, insert, select
from sqlalchemy.orm import Session

from jobsync_celery import CoordinationConfig, JobSync, coordinated, current_claim
from jobsync_celery.demo.records import History, Record, What
from jobsync_celery.demo.stage import Stage
from jobsync_celery.errors import Fenced
from jobsync_celery.runtime.clock import boot_clock


class Ledger:
    """The application's own table. Nothing in it keeps a credit from being there twice: only the claim does."""

    def __init__(self, url: str, appname: str) -> None:
        self._url = url
        self._engine: Engine | None = None
        self.table = Table(
            f"{appname}demo_ledger",
            MetaData(),
            Column("n", Integer),
            Column("account", Text),
            Column("node", Text),
            Column("fence", BigInteger),
        )

    def open(self, **_: Any) -> None:
        """Make this process's engine: in a pool child after the fork, for connections must not be shared."""
        self._engine = create_engine(self._url, pool_size=1, max_overflow=0, pool_use_lifo=True)

    def session(self) -> Session:
        """A session on this process's engine."""
        if self._engine is None:
            self.open()
        return Session(self._engine)

    def create(self) -> None:
        """Create the table."""
        with self.session() as session, session.begin():
            self.table.create(session.connection())

    def drop(self) -> None:
        """Drop the table, if it is there."""
        with self.session() as session, session.begin():
            self.table.drop(session.connection(), checkfirst=True)

    def credits(self) -> list[int]:
        """The number of each credit, once for every time it is there."""
        with self.session() as session:
            return list(session.scalars(select(self.table.c.n)))

    def count(self) -> int:
        """How many credits there are."""
        with self.session() as session:
            return session.scalar(select(func.count()).select_from(self.table)) or 0

    def close(self) -> None:
        """Close the connections."""
        if self._engine is not None:
            self._engine.dispose()


def demo_app(stage: Stage) -> Celery:
    """The Celery app, for the workers and for the publisher; ``app.ledger`` is its table."""
    app = Celery("demo", broker=stage.broker, set_as_current=False)
    app.conf.update(
        task_default_queue=f"{stage.prefix}ordinary",
        task_ignore_result=True,
        # The broker may be shared with other Celery applications: take no part in their remote control, and on
        # Redis, where all share the table of fetched messages, keep one of our own.
        worker_enable_remote_control=False,
        broker_transport_options={"global_keyprefix": stage.prefix} if stage.on_redis else {"confirm_publish": True},
        broker_connection_retry_on_startup=True,
    )
    config = CoordinationConfig(
        url=stage.database,
        appname=stage.appname,
        queue_prefix=stage.prefix,
        heartbeat_interval_sec=stage.heartbeat_interval_sec,
        heartbeat_timeout_sec=stage.heartbeat_timeout_sec,
    )
    JobSync(app, config)
    app.ledger = ledger = Ledger(config.database_url(), stage.appname)
    signals.worker_process_init.connect(ledger.open, weak=False)
    history = History(stage.history)

    @app.task(name="demo.credit")
    @coordinated(key="account")
    def credit(account: str, n: int, seconds: float) -> None:
        """Credit an account once; the two records are for the judge."""
        claim: Any = current_claim()

        def write(what: What, at: float) -> None:
            history.append(Record(what, at, n, account, claim.node, claim.fence, os.getpid(), claim.partition))

        write("start", boot_clock())
        time.sleep(seconds)
        try:
            with ledger.session() as session, session.begin():
                session.execute(insert(ledger.table).values(n=n, account=account, node=claim.node, fence=claim.fence))
                claim.complete(session)
                finished = boot_clock()  # with the commit the key is free for the next task
        except Fenced:
            write("fenced", boot_clock())
            raise
        write("done", finished)

    return app
