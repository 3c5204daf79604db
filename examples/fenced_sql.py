"""A fence in another SQL database: it keeps the largest fence of each row and refuses whoever comes with a smaller one.

    python fenced_sql.py        # shows it, in an SQLite of its own; PostgreSQL takes the same statement

The database knows nothing of the cluster. So it refuses a late write only once a newer run has written the row.
"""

import os
import sqlite3
from contextlib import closing

from celery import Celery

from jobsync_celery import JobSync, coordinated, current_claim
from jobsync_celery.errors import Fenced

app = Celery("fenced_sql", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
JobSync(app, {"url": os.environ.get("DATABASE_URL", "postgresql://postgres@localhost/postgres")})

TABLE = "CREATE TABLE IF NOT EXISTS balance (account INTEGER PRIMARY KEY, amount INTEGER, fence BIGINT NOT NULL)"
WRITE = """
    INSERT INTO balance (account, amount, fence) VALUES (:account, :amount, :fence)
    ON CONFLICT (account) DO UPDATE SET amount = excluded.amount, fence = excluded.fence
    WHERE balance.fence <= excluded.fence
"""


@app.task
@coordinated(key="account")
def settle(account: int, amount: int) -> None:
    with closing(connect("balance.db")) as connection:
        write(connection, account, amount, current_claim().fence)


def write(connection: sqlite3.Connection, account: int, amount: int, fence: int) -> None:
    """Set the balance unless a newer run has: one statement compares and writes."""
    with connection:
        done = connection.execute(WRITE, {"account": account, "amount": amount, "fence": fence})
    if not done.rowcount:
        raise Fenced(f"account {account}: a newer run than {fence} has written")


def connect(file: str) -> sqlite3.Connection:
    connection = sqlite3.connect(file)
    connection.execute(TABLE)
    return connection


def main() -> None:
    with closing(connect(":memory:")) as connection:
        write(connection, 1, 100, fence=7)
        write(connection, 1, 110, fence=7)  # one run may write twice
        write(connection, 1, 200, fence=8)  # the run that took over
        try:
            write(connection, 1, 120, fence=7)  # the hung worker wakes up
        except Fenced as error:
            print("refused:", error)
        print("kept:", connection.execute("SELECT amount, fence FROM balance").fetchone())


if __name__ == "__main__":
    main()
