"""``observe``: what coordination would have prevented, in a sentence, in columns, and from apps that only observe."""

from __future__ import annotations

from contextlib import closing

import pytest
from celery import Celery
from command_stage import Cluster, at_terminal, by_app, by_url, refused, said

from jobsync_celery import JobSync
from jobsync_celery.cli.main import jobsync
from jobsync_celery.store.database import Database
from jobsync_celery.store.schema import ensure_tables


def observing(url: str) -> Celery:
    app = Celery("proj", broker="memory://", set_as_current=False)
    JobSync(app, {"url": url, "mode": "observe", "tasks": {"proj.settle": "account_id"}})
    return app


def test_an_overlap_is_told_in_a_sentence_with_the_two_runs(cluster: Cluster, database_url: str) -> None:
    cluster.observe("one", "two")
    cluster.execute("UPDATE {observation} SET task_id = 'of-' || task_id")
    cluster.observe("one", key=None)
    done = by_url(database_url, "observe")
    assert done.exit_code == 1, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("the last 24 h; observed since ") and lines[0].endswith("times are good to 1.0 ms")
    assert lines[1] == (
        "Coordination would have prevented 1 run of 1 key from beginning while another of the key was running (together"
        " for 2.0s at most); 1 key ran on several workers, and each would have stayed with one."
    )
    assert lines[3].split() == ["proj.settle", "3", "1", "2", "2.0s", "1", "0", "0", "1"]
    assert lines[6].split() == ["42", "proj.settle", "2", "2", "2.0s", "2"]
    assert lines[7].startswith("42: of-id-0 on one from ") and "of-id-1 on two" in lines[7]
    shown = at_terminal(database_url, "observe")
    assert "proj.settle" in shown and "spread keys" in shown


def test_without_an_overlap_nothing_is_prevented_and_all_is_well(cluster: Cluster, database_url: str) -> None:
    cluster.observe("one", key="1")
    cluster.observe("two", key="2")
    cluster.execute("UPDATE {observation} SET task_id = task_key")
    done = by_url(database_url, "observe")
    assert done.exit_code == 0
    assert "prevented nothing: no two runs of a key overlapped, and none was done twice." in done.stdout
    assert by_url(database_url, "observe", "--since", "0.001").exit_code == 2


def test_where_nothing_was_observed_it_says_what_to_write(cluster: Cluster, database_url: str) -> None:
    done = by_url(database_url, "observe")
    assert done.exit_code == 2 and 'mode="observe"' in done.stdout and not done.stderr
    assert said(by_url(database_url, "observe", "--json"))["tasks"] == []


def test_a_task_that_was_not_observed_is_refused_by_name(cluster: Cluster, database_url: str) -> None:
    cluster.observe("one", "two")
    line = refused(by_url(database_url, "observe", "--task", "proj.setle"))
    assert line.endswith("no run of the task 'proj.setle' was observed; did you mean 'proj.settle'?")
    [task] = said(by_url(database_url, "observe", "--task", "proj.settle", "--keys", "0", "--json"))["tasks"]
    assert task["runs"] == 2


def test_an_app_that_only_observes_has_a_report_and_a_clean_up_and_no_cluster(database_url: str) -> None:
    app = observing(database_url)
    assert "no worker has started there yet" in refused(by_app(app, "observe"))
    ensure_tables(Database(database_url))
    assert by_app(app, "observe").exit_code == 2
    with closing(Database(database_url).link("test")) as link:
        link.statement(Database(database_url).sql("INSERT INTO {observer} (node, seen_on) VALUES ('w', '2000-01-01')"))
    done = by_app(app, "cleanup", "--json")
    assert done.exit_code == 0 and said(done)["cleaned"]["observers"] == {"kept_for": 172800, "rows": 1, "left": False}


@pytest.mark.parametrize("name", sorted(set(jobsync.commands) - {"observe", "cleanup", "locks", "probe"}))
def test_every_other_command_says_that_nobody_owns_a_key(name: str) -> None:
    words = {"where": ["1"], "why": ["1"], "drain": ["n"], "undrain": ["n"], "schema": ["show"]}
    done = by_app(observing("postgresql://nobody@127.0.0.1:1/none"), name, *words.get(name, []))
    assert "the app 'proj' is only observed (mode=\"observe\")" in refused(done)
