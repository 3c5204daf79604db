"""The smallest app: tasks with one account_id never run at the same time, whatever the number of workers.

In this folder, with a Redis and a PostgreSQL at the addresses below::

    celery -A proj worker -n one@%h                                     # as many as you like, named one, two, ...
    python -c "import proj; [proj.settle.delay(n % 7, n) for n in range(100)]"
    celery -A proj jobsync status
"""

from celery import Celery

from jobsync_celery import JobSync, coordinated

app = Celery("proj", broker="redis://localhost:6379/0")
app.conf.jobsync = {"url": "postgresql://postgres@localhost/postgres"}
JobSync(app)


@app.task
@coordinated(key="account_id")
def settle(account_id, amount):
    print(f"account {account_id}: {amount}")
