"""The fence in the user's own transaction: it commits only while the claim is still ours.

Two statements. The first looks and cannot fail, since an error would abort the user's transaction: is this the
right database, and may the claim be locked here? The second locks or ends the claim, in the same transaction.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import TextClause, text

from jobsync_celery.core.model import Run
from jobsync_celery.errors import Fenced, StoreError
from jobsync_celery.store.database import Database
from jobsync_celery.store.failures import met_a_newer_row
from jobsync_celery.store.handles import Handle, handle_of

_LOOK = text(
    "SELECT current_database(), current_user, to_regclass(:claims) IS NOT NULL,"
    " coalesce(has_any_column_privilege(to_regclass(:claims), 'SELECT')"
    " AND has_any_column_privilege(to_regclass(:claims), 'UPDATE'), false),"
    # A standby cannot give a transaction id, and asking it would be an error.
    " CASE WHEN CAST(current_setting('transaction_read_only') AS boolean) THEN NULL ELSE txid_current() END"
)


class Guard:
    """Checks and ends claims on a connection that belongs to the user.

    Arguments:
        claim_table: the claim table as SQL writes it.
        timeline: the function that tells the server's timeline, likewise; without it a claim that a failover lost is
            not told from one of another cluster.
        database: where to ask whether a claim is lost when the user's transaction has a snapshot too old to tell.
            Without it that is a serialization failure, as it also is when nobody answers.
    """

    def __init__(self, claim_table: str, timeline: str | None = None, database: Database | None = None) -> None:
        self._table = claim_table
        self._database = database
        self._newer_timeline = None if timeline is None else text(f"SELECT {timeline}() > CAST(:timeline AS bigint)")
        run = "task_id = :task_id AND origin = :origin AND retries = :retries"
        self._running = text(
            f"SELECT EXISTS (SELECT FROM {claim_table} WHERE {run} AND fence = :fence AND state = 'running')"  # noqa: S608
            " OR pg_is_in_recovery()"  # a standby may be behind
        )
        # In autocommit every statement is a transaction of its own, with another id: nothing is touched then.
        mine = f"{run} AND fence = :fence AND state = 'running' AND txid_current() = :transaction"
        # The table's name is a validated, quoted identifier.
        known = f"EXISTS (SELECT FROM {claim_table} WHERE {run})"
        answer = f"SELECT txid_current() = :transaction, EXISTS (SELECT FROM mine), {known}"  # noqa: S608
        self._hold = text(f"WITH mine AS (SELECT fence FROM {claim_table} WHERE {mine} FOR UPDATE) {answer}")  # noqa: S608
        self._complete = text(
            f"WITH mine AS (UPDATE {claim_table} SET state = 'done', finished_on = clock_timestamp()"  # noqa: S608
            f" WHERE {mine} RETURNING fence) {answer}"
        )

    def hold(self, given: Any, run: Run, fence: int) -> None:
        """Lock the claim until the user's transaction ends.

        Arguments:
            given: what :func:`handle_of` knows, connected to the coordination database, in a transaction.

        Raises:
            Fenced: the claim is no longer ours; the transaction must not commit.
            StoreError: this can guard nothing (another database, no transaction, ...). Nothing was changed, and the
                transaction can be used further.
        """
        self._execute(given, self._hold, run, fence)

    def complete(self, given: Any, run: Run, fence: int) -> None:
        """Record the run as done in the user's transaction; raises like :meth:`hold`."""
        self._execute(given, self._complete, run, fence)

    def _execute(self, given: Any, statement: TextClause, run: Run, fence: int) -> None:
        handle = handle_of(given)
        where, transaction = self._look(handle)
        params = {**run._asdict(), "fence": fence, "transaction": transaction}
        lost = f"the claim of task {run.task_id} (fence {fence}) was lost: this transaction must not commit"
        try:
            same_transaction, held, known = handle.row(statement, params)
        except Exception as error:
            # Not only the end of the claim writes its row anew, but also who waits for its key.
            if met_a_newer_row(error) and self._is_lost(run, fence):
                raise Fenced(lost) from error
            raise  # a lock timeout, for instance, is the user's to judge
        if not same_transaction:
            raise StoreError(f"no transaction is open, so there is nothing to guard: {handle.begin}")
        if not known:
            if self._failed_over(handle, fence):
                raise Fenced(f"{lost}, and the database has failed over since")
            raise StoreError(
                f"{where} knows no claim of task {run.task_id}: it belongs to another cluster than the one"
                " CoordinationConfig names, or this transaction's snapshot is older than the claim"
            )
        if not held:
            raise Fenced(lost)

    def _is_lost(self, run: Run, fence: int) -> bool:
        """Whether the claim has certainly ended, asked beside the user's transaction."""
        if self._database is None:
            return False
        try:
            with self._database.transaction("jobsync guard") as tx:
                return not tx.execute(self._running, {**run._asdict(), "fence": fence}).scalar_one()
        except StoreError:
            return False

    def _failed_over(self, handle: Handle, fence: int) -> bool:
        """Whether the server is on a later timeline than the claim's: it may have lost the commit that granted it."""
        if self._newer_timeline is None:
            return False
        return bool(handle.row(self._newer_timeline, {"timeline": fence >> 40})[0])

    def _look(self, handle: Handle) -> tuple[str, int]:
        """The database as messages name it, and the id of the user's transaction."""
        name, role, exists, may_lock, transaction = handle.row(_LOOK, {"claims": self._table})
        where = f"database {name!r}"
        if not exists:
            raise StoreError(
                f"{where} shows no table {self._table} to this connection: guard() and complete() need the database"
                " that CoordinationConfig names, and its schema on the search path; elsewhere let the other side"
                " compare claim.fence"
            )
        if transaction is None:
            raise StoreError(
                f"this transaction on {where} is read-only, by its own settings or because the server is a standby:"
                " guard() and complete() lock a row on the primary"
            )
        if not may_lock:
            raise StoreError(
                f"role {role!r} may not lock claims in {where}: run GRANT SELECT, UPDATE ON {self._table} TO {role}"
            )
        return where, transaction
