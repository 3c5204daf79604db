"""Commands of ``celery -A app jobsync``, called in this process."""

from __future__ import annotations

import json
from typing import Any

from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from jobsync_celery.cli.main import jobsync


def ask(app: Celery, *words: str, code: int = 0) -> Any:
    """What a command answers with --json."""
    done = CliRunner().invoke(jobsync, [*words, "--json"], obj=CLIContext(app, no_color=True, workdir=None))
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)
