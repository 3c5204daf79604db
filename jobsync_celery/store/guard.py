"""The fence in the user's own transaction: it commits only while the claim is still ours."""

from __future__ import annotations

from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError

from jobsync_celery.core.model import Run
from jobsync_celery.errors import Fenced, StoreError


class Guard:
    """Checks and ends claims on a connection that belongs to the user.

    Arguments:
        claim_table: the claim table as SQL writes it.
    """

    def __init__(self, claim_table: str) -> None:
        mine = "WHERE task_id = :task_id AND origin = :origin AND retries = :retries AND fence = :fence"
        # The table's name is a validated, quoted identifier.
        self._hold = text(f"SELECT fence FROM {claim_table} {mine} AND state = 'running' FOR UPDATE")  # noqa: S608
        self._complete = text(
            f"UPDATE {claim_table} SET state = 'done', finished_on = clock_timestamp() {mine} AND state = 'running'"  # noqa: S608
            " RETURNING fence"
        )

    def hold(self, session: Any, run: Run, fence: int) -> None:
        """Lock the claim until the transaction of ``session`` ends.

        Arguments:
            session: a SQLAlchemy Session or Connection to the coordination database.

        Raises:
            Fenced: the claim is no longer ours; the transaction must not commit.
            StoreError: the session is connected to another database.
        """
        self._execute(session, self._hold, run, fence)

    def complete(self, session: Any, run: Run, fence: int) -> None:
        """Record the run as done in the transaction of ``session``; raises like :meth:`hold`."""
        self._execute(session, self._complete, run, fence)

    def _execute(self, session: Any, statement: TextClause, run: Run, fence: int) -> None:
        try:
            row = session.execute(statement, {**run._asdict(), "fence": fence}).first()
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) == "42P01":
                raise StoreError(
                    "this session is connected to a database without the claim table: guard() and complete() need"
                    " the database that CoordinationConfig names"
                ) from error
            raise  # a serialization failure, for instance, is the user's to retry
        if row is None:
            raise Fenced(f"the claim of task {run.task_id} (fence {fence}) was lost: this transaction must not commit")
