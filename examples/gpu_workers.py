"""Work for workers with a GPU: one task that prefers them, one that waits for them, and one key that is tied to them.

    export DATABASE_URL=postgresql://user:password@localhost/dbname
    export BROKER_URL=redis://localhost:6379/0
    celery -A gpu_workers worker -n gpu-1@%h -l INFO      # a terminal
    celery -A gpu_workers worker -n cpu-1@%h -l INFO      # another
    python gpu_workers.py                                 # a third: publishes twelve tasks

The page docs/how-to/gpu-workers.md goes through it.
"""

import os
import sys

from celery import Celery
from celery.utils.log import get_task_logger

from jobsync_celery import JobSync, coordinated, current_claim

logger = get_task_logger(__name__)

app = Celery("gpu_workers", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
database = os.environ.get("DATABASE_URL", "postgresql://postgres@localhost/postgres")
jobsync = JobSync(app, {"url": database, "appname": "gpu_", "queue_prefix": "gpu-example-"})
MODELS = [f"model-{number}" for number in range(4)]


@app.task
@coordinated(key="model", nodes=["gpu-%", "%"])
def train(model: str) -> None:
    logger.info("%s trains %s", current_claim().node, model)


@app.task
@coordinated(key="model", nodes="gpu-%")
def render(model: str) -> None:
    logger.info("%s renders %s", current_claim().node, model)


@app.task
@coordinated(key="model")
def score(model: str) -> None:
    logger.info("%s scores %s", current_claim().node, model)


def lock(model: str) -> None:
    jobsync.register_lock(model, "gpu-%", reason="does not fit into the others")


def main() -> None:
    match sys.argv[1:]:
        case []:
            for model in MODELS:
                train.delay(model)
                render.delay(model)
                score.delay(model)
        case ["lock", model]:
            lock(model)
        case ["unlock", model]:
            jobsync.clear_lock(model)
        case _:
            sys.exit("gpu_workers.py: nothing, lock MODEL, or unlock MODEL")


if __name__ == "__main__":
    main()
