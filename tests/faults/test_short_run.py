"""The harness itself, for half a minute on each broker; long runs are ``python -m tests.faults --minutes 30``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobsync_celery.servers import PrivatePostgres, PrivateRabbitMQ, PrivateRedis
from jobsync_celery.servers.process import PrivateServer

_ROOT = Path(__file__).resolve().parents[2]
_SERVERS: dict[str, type[PrivateServer]] = {"redis": PrivateRedis, "rabbitmq": PrivateRabbitMQ}
#: One of each family that takes seconds; the rest is for longer runs.
_ONLY = "kill,pause-group,database-sessions,database-stopped,broker-killed,cut-both-reset,cut-database-deaf,duplicates"
_PATIENCE = 280.0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in _SERVERS])
def test_the_promises_hold_while_everything_breaks(
    broker: str, available: Callable[[type[PrivateServer]], None], tmp_path: Path
) -> None:
    available(PrivatePostgres)
    available(_SERVERS[broker])
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "tests.faults", "--minutes", "0.4", "--seed", "11", "--broker", broker]
    # A process of its own: whatever happens to it, its servers and workers end with it.
    with subprocess.Popen(
        [*command, "--only", _ONLY, "--out", str(out)], cwd=_ROOT, stdout=subprocess.PIPE, text=True
    ) as run:
        try:
            said, _ = run.communicate(timeout=_PATIENCE)
        except BaseException:
            run.terminate()
            raise
    assert run.returncode == 0, said
    result = json.loads(out.read_text())
    assert result["ok"]
    assert result["verdict"]["violations"] == []
    assert result["published"] > 300
    assert result["faults"] >= 4
    assert all(each["hit"] > 0 for each in result["nemeses"].values()), result["nemeses"]
