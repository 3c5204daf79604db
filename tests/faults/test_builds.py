"""The harness finds every build with a protection switched off, and nothing in the product on the same schedules."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobsync_celery.servers import PrivatePostgres, PrivateRedis
from jobsync_celery.servers.process import PrivateServer
from tests.faults.builds import BUILDS

_ROOT = Path(__file__).resolve().parents[2]
#: The product is played on RabbitMQ as well, with other schedules, by ``.ci/run``.
_BROKER = "redis"
_PATIENCE = 280.0
_SWITCH_ALL_OFF = """
from jobsync_celery.store.database import Database
from jobsync_celery.store.guard import Guard
from jobsync_celery.store.store import Store
from tests.faults.builds import BUILDS
for build in BUILDS.values():
    build.switch_off()
Store(Database("postgresql://nowhere"))
Guard("sync_claim")
"""


def test_every_protection_is_where_its_build_looks_for_it() -> None:
    subprocess.run([sys.executable, "-c", _SWITCH_ALL_OFF], cwd=_ROOT, check=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.redis
@pytest.mark.parametrize("name", BUILDS)
def test_a_build_without_a_protection_is_found(
    name: str, available: Callable[[type[PrivateServer]], None], tmp_path: Path
) -> None:
    result = _played(available, tmp_path, "--build", name, "--rounds", str(BUILDS[name].rounds))
    assert result["build"] == name
    assert not result["ok"]
    promises = {violation["promise"] for violation in result["verdict"]["violations"]}
    assert promises >= BUILDS[name].serves, result["verdict"]["violations"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.redis
def test_the_product_gets_through_the_same_schedules(
    available: Callable[[type[PrivateServer]], None], tmp_path: Path
) -> None:
    nemeses = {build.nemesis for build in BUILDS.values()}
    result = _played(available, tmp_path, "--only", ",".join(sorted(nemeses)), "--rounds", "1")
    assert result["build"] is None
    assert result["ok"], result
    assert result["nemeses"].keys() == nemeses


def _played(available: Callable[[type[PrivateServer]], None], folder: Path, *options: str) -> dict[str, Any]:
    """The report of one round."""
    available(PrivatePostgres)
    available(PrivateRedis)
    out = folder / "result.json"
    command = [sys.executable, "-m", "tests.faults", "--minutes", "2", "--seed", "1"]
    # A process of its own: whatever happens to it, its servers and workers end with it.
    with subprocess.Popen(
        [*command, "--broker", _BROKER, "--out", str(out), *options], cwd=_ROOT, stdout=subprocess.PIPE, text=True
    ) as run:
        try:
            said, _ = run.communicate(timeout=_PATIENCE)
        except BaseException:
            run.terminate()
            raise
    assert out.exists(), said
    result: dict[str, Any] = json.loads(out.read_text())
    return result
