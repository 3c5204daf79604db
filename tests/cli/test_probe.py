"""``probe``, as kubelet and systemd call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from jobsync_celery.__main__ import main
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.vitals import FILE_VARIABLE, NO_LEASE, TAKES_PART, Vitals, VitalsFile


def probe(*words: str, file: Path | None = None) -> Result:
    return CliRunner().invoke(main, ["probe", *words], env={FILE_VARIABLE: None if file is None else str(file)})


def written(path: Path, state: str = TAKES_PART, turned: float = 0.0) -> Path:
    """The file of a worker whose loop turned so many seconds ago."""
    now = boot_clock()
    VitalsFile(str(path)).write(Vitals("w1@host", 7, state, now, now - turned, now + 10))
    return path


def test_the_answer_is_one_line_and_the_exit_status(tmp_path: Path) -> None:
    file = written(tmp_path / "probe", NO_LEASE)
    live, ready = probe("liveness", file=file), probe("readiness", "--file", str(file))
    assert (live.exit_code, ready.exit_code) == (0, 1)
    assert live.stdout.startswith("live: w1@host runs (no lease), its event loop turned 0.0 s ago\n")
    assert ready.stdout == "not ready: w1@host has no lease\n"


def test_the_limit_is_how_long_the_loop_may_stand_still(tmp_path: Path) -> None:
    file = written(tmp_path / "probe", turned=70)
    assert probe("liveness", file=file).stdout == "not live: the event loop of w1@host has not turned for 70 s\n"
    assert probe("liveness", "--limit", "90", file=file).exit_code == 0


def test_a_worker_that_is_starting_is_not_live_yet(tmp_path: Path) -> None:
    done = probe("liveness", file=tmp_path / "none")
    assert (done.exit_code, done.stdout) == (1, f"not live: no worker has written {tmp_path / 'none'} yet\n")


def test_a_probe_can_wait_for_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "probe"
    waiting = subprocess.Popen(
        [sys.executable, "-m", "jobsync_celery", "probe", "readiness", "--wait", "30", "--file", str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    written(path)
    assert waiting.communicate(timeout=30)[0].startswith("ready: w1@host takes part")
    assert waiting.returncode == 0


def test_without_a_file_it_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("{}")
    for done, told in ((probe("liveness"), "no file is named"), (probe("liveness", file=tmp_path / "other"), "is no")):
        assert done.exit_code == 2
        assert done.stderr.startswith("Error: ") and told in done.stderr and done.stderr.count("\n") == 1


def test_json_says_the_same(tmp_path: Path) -> None:
    said = json.loads(probe("readiness", "--json", file=written(tmp_path / "probe")).stdout)
    assert said["well"] is True and said["worker"]["state"] == TAKES_PART
    assert json.loads(probe("readiness", "--json", file=tmp_path / "none").stdout)["worker"] is None


def test_a_probe_loads_neither_celery_nor_the_database_library(tmp_path: Path) -> None:
    program = (
        "import sys, click.testing\n"
        "from jobsync_celery.__main__ import main\n"
        "click.testing.CliRunner().invoke(main, ['probe', 'readiness'])\n"
        "print(sorted({'celery', 'kombu', 'sqlalchemy', 'rich', 'alembic', 'psycopg2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
