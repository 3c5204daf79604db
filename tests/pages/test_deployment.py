"""What examples/kubernetes, examples/systemd and examples/celery_multi start, stop and restart, run for real."""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.waiting import until

from jobsync_celery.cli.main import jobsync
from pages import systemctl
from pages.reader import Reader
from pages.snippets import ROOT, snippets

pytestmark = [pytest.mark.redis, pytest.mark.slow]

GUIDE = ROOT / "docs" / "OPERATOR_GUIDE.md"
KUBERNETES = ROOT / "examples" / "kubernetes"
SYSTEMD = ROOT / "examples" / "systemd"
MULTI = ROOT / "examples" / "celery_multi"
PROBES = "probe" in jobsync.commands
TASKS = 120


@pytest.fixture
def files() -> dict[str, list[dict[str, Any]]]:
    """The manifests, by the names of their files."""
    return {path.stem: list(yaml.safe_load_all(path.read_text())) for path in KUBERNETES.glob("*.yaml")}


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    return dict(container)


def states(operator: Reader) -> dict[str, str]:
    return {row["name"]: row["state"] for row in operator.ask("SELECT name, state FROM sync_node")}


def incarnations(operator: Reader) -> dict[str, int]:
    return {row["name"]: row["incarnation"] for row in operator.ask("SELECT name, incarnation FROM sync_node")}


def somebody_died(operator: Reader) -> None:
    """A node of another machine is dead, so the cluster is degraded until its row is cleaned up."""
    operator.ask("INSERT INTO sync_node (name, state, last_heartbeat) VALUES ('elsewhere', 'dead', clock_timestamp())")


def gave_up(worker: str) -> str:
    """All that a script of the examples says then."""
    return (
        f"gave up after 2 s: {worker} is not back, or the cluster is not stable (degraded); the rest is left as it is\n"
    )


def shares(operator: Reader) -> dict[str, int]:
    there = operator.ask("SELECT to_regclass('sync_partition') AS it")[0]["it"]
    rows = operator.ask("SELECT owner, count(*) FROM sync_partition GROUP BY owner") if there else []
    return {row["owner"]: row["count"] for row in rows}


def publish(operator: Reader) -> None:
    operator.python(f"import worker, proj\nfor number in range({TASKS}): worker.settle.delay(number % 20, number)")


def all_done_once(operator: Reader) -> None:
    """Every task has one claim, done, and none was lost after it had begun."""
    done = "SELECT count(*) FILTER (WHERE state = 'done') AS done, sum(lost_runs) AS lost FROM sync_claim"
    operator.until(done, lambda rows: rows[0]["done"] == TASKS)
    assert operator.ask(done) == [{"done": TASKS, "lost": 0}]


def test_the_guide_quotes_the_examples() -> None:
    quoted = {each.kind: each.text.strip() for each in snippets(GUIDE) if each.kind in ("yaml", "ini")}
    assert quoted["yaml"] == (KUBERNETES / "worker-deployment.yaml").read_text().strip()
    assert quoted["ini"] == (SYSTEMD / "worker@.service").read_text().strip()


def test_manifests_agree_with_each_other(files: dict[str, list[dict[str, Any]]]) -> None:
    [deployment], [service, stateful] = files["worker-deployment"], files["worker-statefulset"]
    [budget], [beat] = files["disruption-budget"], files["beat"]
    assert stateful["spec"]["template"] == deployment["spec"]["template"]
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [each["spec"]["selector"]["matchLabels"] for each in (deployment, stateful, budget)]
    assert [*selectors, service["spec"]["selector"]] == [labels] * 4
    assert beat["spec"]["replicas"] == 1 and beat["spec"]["strategy"] == {"type": "Recreate"}
    assert container_of(beat)["image"] == container_of(deployment)["image"]


def test_what_kubernetes_would_run_runs(operator: Reader, files: dict[str, list[dict[str, Any]]]) -> None:
    container = container_of(files["worker-deployment"][0])
    operator.environment |= in_here(container, operator)
    worker = operator.begin(container["command"])
    beat = container_of(files["beat"][0])["command"]
    schedule = str(operator.folder / "schedule")
    started = operator.start([schedule if word == "/tmp/beat-schedule" else word for word in beat], "beat")
    operator.see(started, "beat: Starting")
    if PROBES:
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            until(lambda name=name: passes(operator, container[name]), f"the {name} passes")
    for command in re.findall(r"kubectl exec worker-0 -- (.*)", (KUBERNETES / "README.md").read_text()):
        operator.run(shlex.split(command.replace("@worker-0", f"@{socket.gethostname()}")))
    assert list(states(operator).values()) == ["draining"]
    operator.stop(worker, started)


def in_here(container: dict[str, Any], operator: Reader) -> dict[str, str]:
    """The container's environment, with a folder of the test's own."""
    return {each["name"]: each["value"].replace("/tmp", str(operator.folder)) for each in container["env"]}


def passes(operator: Reader, probe: dict[str, Any]) -> bool:
    try:
        operator.run(probe["exec"]["command"])
    except AssertionError:
        return False
    return True


@pytest.fixture
def systemd(operator: Reader) -> Reader:
    """A machine with the units and the script of the examples, and the project in a folder."""
    stand_in = operator.folder / "bin" / "systemctl"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} {systemctl.__file__} "$@"\n')
    stand_in.chmod(0o755)
    (operator.folder / ".venv").mkdir()
    (operator.folder / ".venv" / "bin").symlink_to(os.path.dirname(sys.executable))
    operator.environment |= {
        "PATH": f"{stand_in.parent}:{operator.environment['PATH']}",
        "PROJ": str(operator.folder),
        "UNIT": str(SYSTEMD / "worker@.service"),
        **({"PROBE": "yes"} if PROBES else {}),
    }
    return operator


def test_workers_of_systemd_are_drained_and_restarted_in_turn_under_load(systemd: Reader) -> None:
    restart = str(SYSTEMD / "rolling-restart.sh")
    for number in ("01", "02"):
        systemd.run(["systemctl", "restart", f"worker@{number}"])
    until(lambda: shares(systemd) == {"worker-01": 32, "worker-02": 32}, "both have started")
    before = systemd.ask("SELECT name, incarnation FROM sync_node")
    publish(systemd)
    said = systemd.run([restart, "--drain", "01", "02"]).splitlines()
    assert said == ["worker-01 is empty: it can be stopped, or taken back with undrain", "worker-01 is back"] + [
        line.replace("01", "02") for line in said[:2]
    ]
    after = systemd.ask("SELECT name, incarnation FROM sync_node")
    assert shares(systemd) == {"worker-01": 32, "worker-02": 32}
    assert states(systemd) == {"worker-01": "live", "worker-02": "live"}
    assert not {row["incarnation"] for row in before} & {row["incarnation"] for row in after}
    all_done_once(systemd)


def test_a_node_that_is_dead_elsewhere_ends_a_rolling_restart_in_time(systemd: Reader) -> None:
    for number in ("01", "02"):
        systemd.run(["systemctl", "restart", f"worker@{number}"])
    until(lambda: shares(systemd) == {"worker-01": 32, "worker-02": 32}, "both have started")
    before = incarnations(systemd)
    somebody_died(systemd)
    systemd.environment |= {"LIMIT": "2"}
    said = systemd.run(["sh", "-c", f"{SYSTEMD / 'rolling-restart.sh'} 01 02 2>&1"], status=1)
    assert said == gave_up("worker-01")
    until(lambda: incarnations(systemd).get("worker-01", 0) > before["worker-01"], "worker-01 is back, if late")
    assert incarnations(systemd)["worker-02"] == before["worker-02"]


def test_the_unit_of_beat_starts_one(operator: Reader) -> None:
    (operator.folder / "beat").mkdir()
    command = systemctl.service((SYSTEMD / "beat.service").read_text())["ExecStart"].replace("%S", str(operator.folder))
    words = systemctl.expanded(command, "")
    operator.see(operator.start(words, "beat"), "beat: Starting")
    operator.stop()


def test_workers_of_celery_multi_are_started_restarted_under_load_and_stopped(operator: Reader) -> None:
    workers = str(MULTI / "workers.sh")
    operator.environment |= {"WORKERS": "worker-05 worker-06"}
    operator.run([workers, "start"])
    assert sorted(shares(operator).values()) == [32, 32]
    before = operator.ask("SELECT incarnation FROM sync_node")
    publish(operator)
    operator.environment |= {"WORKERS": "worker-06"}  # one for both: the script takes its time
    operator.run([workers, "restart"])
    assert sorted(shares(operator).values()) == [32, 32]
    assert len([row for row in operator.ask("SELECT incarnation FROM sync_node") if row in before]) == 1
    all_done_once(operator)
    first, second = (f"{worker}@{socket.gethostname()}" for worker in ("worker-05", "worker-06"))
    there = incarnations(operator)
    somebody_died(operator)
    operator.environment |= {"WORKERS": "worker-05 worker-06", "LIMIT": "2"}
    assert operator.run(["sh", "-c", f"{workers} restart 2>&1 >restarted.log"], status=1) == gave_up("worker-05")
    until(lambda: incarnations(operator).get(first, 0) > there[first], "worker-05 is back, if late")
    assert incarnations(operator)[second] == there[second]
    operator.ask("DELETE FROM sync_node WHERE name = 'elsewhere'")
    operator.run([workers, "stop"])
    assert states(operator) == {} and list(Path(operator.folder).glob("*.pid")) == []
    assert operator.run([workers, "sleep"], status=2) == ""
