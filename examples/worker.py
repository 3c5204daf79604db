"""A worker with a node name, as the operator guide starts it.

    export DATABASE_URL=postgresql://user:password@localhost/dbname
    export BROKER_URL=redis://localhost:6379/0        # the default; amqp://... for RabbitMQ
    python worker.py --node-name worker-01

Start as many as you like, each with a name of its own: they share the keys by themselves. SIGTERM stops one.
What else is given goes to Celery: python worker.py --node-name worker-01 --concurrency 4
"""

import argparse
import os
import sys
import time

from celery import Celery

from jobsync_celery import CoordinationConfig, JobSync, coordinated, current_claim
from jobsync_celery.errors import SettingsError

app = Celery("worker", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))


@app.task
@coordinated(key="account_id")
def settle(account_id, amount):
    claim = current_claim()
    print(f"{claim.node} settles {amount} of account {account_id}, fence {claim.fence}")
    time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Start one worker of the cluster.", epilog="The rest goes to Celery.")
    parser.add_argument("--node-name", required=True, help="a name that no other worker has, for instance worker-01")
    arguments, rest = parser.parse_known_args()
    url = os.environ.get("DATABASE_URL")
    if not url:
        sys.exit(
            "worker.py: no database is named: it holds the cluster's tables. Write\n"
            "    export DATABASE_URL=postgresql://user:password@localhost/dbname"
        )
    try:
        JobSync(app, CoordinationConfig(url=url, appname=os.environ.get("APPNAME", "sync_")))
    except SettingsError as error:
        sys.exit(f"worker.py: {error}")
    name = arguments.node_name
    app.worker_main(["worker", "--node-name", name, "-n", f"{name}@%h", "--loglevel", "INFO", *rest])


if __name__ == "__main__":
    main()
