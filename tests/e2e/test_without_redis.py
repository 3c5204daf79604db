"""On RabbitMQ nobody needs the client library of Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.site import Site


@pytest.mark.cluster(conf={"result_backend": "rpc://"})
@pytest.mark.parametrize("broker_url", [pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)], indirect=True)
def test_a_worker_on_rabbitmq_does_without_the_package_redis(site: Site, tmp_path: Path) -> None:
    imports = tmp_path / "imports"
    imports.mkdir()
    (imports / "redis.py").write_text("raise ModuleNotFoundError(\"No module named 'redis'\", name='redis')\n")
    worker = site.worker("w1", path=str(imports))
    site.until_shared("w1")
    tasks = site.many(20, keys=5)
    site.settled(*[task.id for task in tasks])
    worker.stop()
    assert {claim["state"] for claim in site.claims()} == {"done"} and len(site.claims()) == 20
    assert "Traceback" not in worker.logs()
