"""Customers whose data lies in a region: their tasks run there, elsewhere only if they may, else they wait.

    export DATABASE_URL=postgresql://user:password@localhost/dbname
    export BROKER_URL=redis://localhost:6379/0
    celery -A regions worker -n eu-1@%h -l INFO      # a terminal
    celery -A regions worker -n us-1@%h -l INFO      # another
    python regions.py                                # a third: one task for each customer

The page docs/how-to/data-in-regions.md goes through it.
"""

import os

from celery import Celery
from celery.utils.log import get_task_logger

from jobsync_celery import JobSync, coordinated, current_claim

logger = get_task_logger(__name__)

REASON = "data region"
CUSTOMERS = {
    "customer-1": ["eu-%", "us-%"],  # in Europe; from America while nobody is there
    "customer-2": ["us-%", "eu-%"],
    "customer-3": ["eu-%"],  # its data may not leave Europe: rather late than elsewhere
}


def regional(jobsync: JobSync) -> None:
    """Lock who is in the list, and only then unlock who is not any more: nobody is without a lock in between."""
    jobsync.register_locks_bulk([(customer, nodes, REASON) for customer, nodes in CUSTOMERS.items()])
    for lock in jobsync.list_locks():
        if lock.reason == REASON and lock.key not in CUSTOMERS:
            jobsync.clear_lock(lock.key)


app = Celery("regions", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
database = os.environ.get("DATABASE_URL", "postgresql://postgres@localhost/postgres")
config = {"url": database, "appname": "regions_", "queue_prefix": "regions-example-"}
jobsync = JobSync(app, config, lock_provider=regional)


@app.task
@coordinated(key="customer")
def bill(customer: str) -> None:
    logger.info("%s bills %s", current_claim().node, customer)


def main() -> None:
    for customer in CUSTOMERS:
        bill.delay(customer)


if __name__ == "__main__":
    main()
