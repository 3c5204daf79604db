"""``celery -A jobsync_celery.demo.app worker``: the app as the demo's worker processes load it."""

from __future__ import annotations

from jobsync_celery.demo.stage import Stage
from jobsync_celery.demo.tasks import demo_app

app = demo_app(Stage.from_environment())
