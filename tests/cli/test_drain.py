"""``drain`` and ``undrain``: the order, the wait, and what is said meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from celery import Celery
from command_stage import Cluster, by_url, refused, said

from jobsync_celery import JobSync
from jobsync_celery.errors import NodeUnknown


def row(cluster: Cluster, name: str) -> tuple[str, bool]:
    [found] = cluster.rows("SELECT state, drain_ordered FROM {node} WHERE name = :name", name=name)
    return found[0], found[1]


def test_a_node_is_ordered_to_drain_and_taken_back(cluster: Cluster, database_url: str) -> None:
    cluster.join("two", 3)
    told = said(by_url(database_url, "drain", "one", "--json"))
    assert told == {
        "node": "one",
        "state": "draining",
        "empty": False,
        "partitions": 3,
        "running": 0,
        "others": 1,
    }
    assert row(cluster, "one") == ("draining", True)
    assert by_url(database_url, "drain", "one").stdout == "one drains: 3 partitions and 0 running tasks are left\n"
    assert by_url(database_url, "undrain", "one").stdout == "one takes part again\n"
    assert row(cluster, "one") == ("draining", False)  # it is for the node to go back to live
    done = by_url(database_url, "undrain", "one")
    assert done.exit_code == 1 and "it is draining: it stops, or cannot consume" in done.stdout
    assert "it is live" in by_url(database_url, "undrain", "two").stdout


def test_a_program_does_the_same_with_its_jobsync(cluster: Cluster, database_url: str) -> None:
    app = Celery("proj", broker="memory://", set_as_current=False)
    plugin = JobSync(app, {"url": database_url, "partitions": 4, "total_tokens": 100, "hash_function": "md5"})
    plugin.drain("one")
    assert row(cluster, "one") == ("draining", True)
    assert (plugin.undrain("one"), plugin.undrain("one")) == (True, False)
    with pytest.raises(NodeUnknown, match="'tow'"):
        plugin.drain("tow")


def test_whoever_drains_the_last_node_is_told_what_that_means(cluster: Cluster, database_url: str) -> None:
    done = by_url(database_url, "drain", "one")
    assert done.exit_code == 0 and "no other node is live: the keys of one wait until one is" in done.stdout


def test_whoever_drains_a_silent_node_is_told_that_it_cannot_obey(cluster: Cluster, database_url: str) -> None:
    cluster.join("two", 3)
    cluster.silence("one")
    done = by_url(database_url, "drain", "one")
    assert "one is silent, and cannot obey" in done.stdout and "no other node" not in done.stdout
    assert "no other node is live" in by_url(database_url, "drain", "two").stdout


@pytest.mark.parametrize("word", ["drain", "undrain"])
def test_a_node_that_is_not_there_is_refused_by_name(cluster: Cluster, database_url: str, word: str) -> None:
    assert "no live node is called 'ona': did you mean 'one'?" in refused(by_url(database_url, word, "ona"))
    cluster.bury("two", cluster.join("two"))
    assert "it was declared dead" in refused(by_url(database_url, word, "two"))


@contextmanager
def waiting_for(url: str, name: str) -> Iterator[subprocess.Popen[str]]:
    """``drain NAME --wait``, once it waits."""
    words = [sys.executable, "-m", "jobsync_celery", "drain", name, "--wait", "--url", url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(f"{name} drains: 3 partitions")
        yield process
        assert process.poll() is not None


def test_a_wait_ends_when_nothing_is_left(cluster: Cluster, database_url: str) -> None:
    one = int(cluster.rows("SELECT incarnation FROM {node}")[0][0])
    running = cluster.claim("one", one, "task", "key", 0)
    with waiting_for(database_url, "one") as process:
        assert process.stderr is not None and process.stdout is not None
        with cluster.database.transaction() as tx:
            cluster.store.partitions.release(tx, [0, 1], one)
        assert process.stderr.readline() == "one drains: 1 partition and 1 running task are left\n"
        cluster.end(running)
        with cluster.database.transaction() as tx:
            cluster.store.partitions.release(tx, [2], one)
        assert process.wait(20) == 0
        assert process.stdout.read().startswith("one is empty: it can be stopped, or taken back with undrain\n")


def test_a_wait_that_takes_too_long_or_ends_in_death_is_no_success(cluster: Cluster, database_url: str) -> None:
    done = by_url(database_url, "drain", "one", "--wait", "--timeout", "0")
    assert done.exit_code == 1 and "3 partitions" in done.stdout
    with waiting_for(database_url, "one") as process:
        cluster.bury("one", int(cluster.rows("SELECT incarnation FROM {node}")[0][0]))
        assert process.wait(20) == 1
        assert process.stdout is not None and "was declared dead" in process.stdout.read()
