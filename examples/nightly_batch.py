"""A nightly batch: everything is published first, and the workers that start then share it evenly, under one plan.

    export DATABASE_URL=postgresql://user:password@localhost/dbname
    export BROKER_URL=redis://localhost:6379/0
    python nightly_batch.py publish 10000
    celery -A nightly_batch worker -n worker-01@%h -l INFO      # and 02 and 03, a terminal each
    python nightly_batch.py shares

The page docs/how-to/nightly-batch.md goes through it.
"""

import os
import sys
import time

from celery import Celery
from sqlalchemy import create_engine, text

from jobsync_celery import CoordinationConfig, JobSync, coordinated

app = Celery("nightly_batch", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_ignore_result = True
database = os.environ.get("DATABASE_URL", "postgresql://postgres@localhost/postgres")
config = CoordinationConfig(url=database, minimum_nodes=3, wait_on_enter=5)
JobSync(app, config)

SHARES = "SELECT node, COUNT(*) FROM sync_claim GROUP BY node"


@app.task
@coordinated(key="account")
def settle(account: int) -> None:
    time.sleep(0.002)  # the night's work


def publish(accounts: int) -> None:
    for account in range(accounts):
        settle.delay(account)


def shares() -> None:
    with create_engine(config.database_url()).connect() as connection:
        for node, runs in connection.execute(text(SHARES)):
            print(f"{node:30} {runs:6}")


def main() -> None:
    match sys.argv[1:]:
        case ["publish", accounts]:
            publish(int(accounts))
        case ["shares"]:
            shares()
        case _:
            sys.exit("nightly_batch.py: publish NUMBER, or shares")


if __name__ == "__main__":
    main()
