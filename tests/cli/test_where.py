"""``where`` and ``why``: for one key or task, the answer and its reason."""

from __future__ import annotations

from collections.abc import Iterator

import kombu
import pytest
from celery import Celery
from command_stage import SHAPE, Cluster, at_terminal, by_app, by_url, refused, said

from jobsync_celery import JobSync, coordinated
from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.runtime.task_locks import LockRequest, TaskLocks
from jobsync_celery.store.outcomes import Ending

TOKENS = TokenMap(SHAPE.total_tokens, SHAPE.partitions, SHAPE.hash_function)


def key_in(partition: int, n: int = 0) -> str:
    """The nth key of a partition."""
    return [key for key in map(str, range(200)) if TOKENS.partition_for(key) == partition][n]


@pytest.fixture
def one(cluster: Cluster) -> int:
    """The incarnation of the node that has the partitions 0 to 2."""
    return int(cluster.rows("SELECT incarnation FROM {node}")[0][0])


def lock(cluster: Cluster, key: str, *patterns: str) -> None:
    with cluster.database.transaction() as tx:
        TaskLocks(cluster.store, SHAPE).set(tx, [LockRequest(key, patterns, "a GPU is needed")], "script")


def test_a_key_is_where_its_hash_says(cluster: Cluster, database_url: str) -> None:
    key = key_in(1)
    done = by_url(database_url, "where", key)
    assert done.exit_code == 0
    head, hashed, owner, *_ = done.stdout.splitlines()
    assert head == f"{key}: one; token {TOKENS.token(key)}, partition 1"
    assert "by its hash: md5 of the key, modulo 100" in hashed and "one has had partition 1 since" in owner
    assert "name it with celery -A" in done.stdout
    told = said(by_url(database_url, "where", key, "--json"))
    assert (told["owner"], told["partition"], told["by"], told["state"], told["running"]) == (
        "one",
        1,
        "hash",
        "owned",
        None,
    )


def test_a_locked_key_is_where_its_lock_says(cluster: Cluster, database_url: str) -> None:
    key = key_in(1)
    lock(cluster, key, "gpu%", "on%")
    told = said(by_url(database_url, "where", key, "--json"))
    assert (told["by"], told["partition"]) == ("lock", 4)
    assert told["lock"] == {"patterns": ["gpu%", "on%"], "reason": "a GPU is needed", "created_by": "script"}
    assert "by its task lock to 'gpu%', then 'on%', set by script (a GPU is needed)" in told["why"][0]


def test_a_key_whose_lock_nobody_matches_waits_and_is_told_so(cluster: Cluster, database_url: str) -> None:
    lock(cluster, "key", "gpu%")
    done = by_url(database_url, "where", "key")
    assert done.exit_code == 1
    assert done.stdout.startswith("key: no node that matches;") and "no live node matches the lock" in done.stdout


def test_a_key_that_moves_says_from_where_and_to_whom(cluster: Cluster, database_url: str, one: int) -> None:
    cluster.join("two")
    with cluster.database.transaction() as tx:
        cluster.store.partitions.assign(tx, {1: "two"})
    done = by_url(database_url, "where", key_in(1))
    assert done.exit_code == 1
    assert "partition 1 is moving: one has it still, two is to take it (planned " in done.stdout
    with cluster.database.transaction() as tx:
        cluster.store.partitions.release(tx, [1], one)
    done = by_url(database_url, "where", key_in(1))
    assert "nobody just now" in done.stdout and "nobody has partition 1 just now: two is to take it" in done.stdout
    assert "there is no plan for it" in by_url(database_url, "where", key_in(3)).stdout


def test_a_key_of_a_node_whose_lease_has_ended_says_so(cluster: Cluster, database_url: str) -> None:
    cluster.silence("one")
    done = by_url(database_url, "where", key_in(0))
    assert done.exit_code == 1 and "one has partition 0, but its lease has ended" in done.stdout


def test_what_runs_and_ran_of_a_key_is_shown(cluster: Cluster, database_url: str, one: int) -> None:
    cluster.end(cluster.claim("one", one, "first", key_in(0), 0))
    cluster.claim("one", one, "second", key_in(0), 0)
    shown = at_terminal(database_url, "where", key_in(0))
    assert "proj.settle second runs at one, for" in shown
    assert "recent claims:" in shown and "first" in shown


@pytest.mark.parametrize("key", ["", "x" * 256, "a\0b"])
def test_what_can_be_no_key_is_refused(cluster: Cluster, database_url: str, key: str) -> None:
    assert "a key must" in refused(by_url(database_url, "where", key))


@pytest.fixture
def app(cluster: Cluster, database_url: str, redis_url: str, queue_prefix: str) -> Iterator[Celery]:
    app = Celery("proj", broker=redis_url, set_as_current=False)
    shape = {"partitions": 4, "total_tokens": 100, "hash_function": "md5"}
    JobSync(app, {"url": database_url, "queue_prefix": queue_prefix, **shape})

    @app.task(shared=False, name="proj.settle")
    @coordinated(key="account")
    def settle(account: str) -> None:
        """Not run here."""

    @app.task(shared=False, name="proj.render")
    @coordinated(key="account", nodes="gpu%")
    def render(account: str) -> None:
        """Not run here."""

    yield app
    app.close()


@pytest.mark.redis
def test_an_app_tells_the_queue_and_how_much_waits_there(app: Celery, queue_prefix: str) -> None:
    for _ in range(3):
        app.tasks["proj.settle"].delay(key_in(2))
    told = said(by_app(app, "where", key_in(2), "--json"))
    assert (told["queue"], told["waiting_in_queue"]) == (f"{queue_prefix}002", 3)
    assert said(by_app(app, "where", key_in(1), "--json"))["waiting_in_queue"] == 0
    done = by_app(app, "where", key_in(2))
    assert "3 messages of this partition wait in its queue" in done.stdout
    assert "declared with nodes=, and so in partitions of their own: proj.render" in done.stdout
    kombu.Connection(app.conf.broker_url).default_channel.queue_delete(f"{queue_prefix}002")


def test_a_broker_that_does_not_answer_is_no_error(cluster: Cluster, database_url: str) -> None:
    app = Celery("proj", broker="redis://:secret@127.0.0.1:1/0", set_as_current=False)
    JobSync(app, {"url": database_url, "partitions": 4, "total_tokens": 100, "hash_function": "md5"})
    done = by_app(app, "where", key_in(0))
    assert done.exit_code == 0 and "the broker does not answer" in done.stdout and "secret" not in done.output


# -- why --------------------------------------------------------------------------------------------------------------


def test_a_task_that_runs_or_ran_is_told_where(cluster: Cluster, database_url: str, one: int) -> None:
    first = cluster.claim("one", one, "task", "key", 0)
    done = by_url(database_url, "why", "task")
    assert done.exit_code == 0 and done.stdout.startswith("proj.settle task of key key runs at one, for")
    cluster.end(first)
    assert "was done at one" in by_url(database_url, "why", "task").stdout


def test_a_task_that_failed_is_told_why(cluster: Cluster, database_url: str, one: int) -> None:
    cluster.end(cluster.claim("one", one, "task", "key", 0), "failed")
    cluster.execute("UPDATE {claim} SET reason = 'lost 3 times'")
    done = by_url(database_url, "why", "task")
    assert done.exit_code == 0 and "failed at one" in done.stdout and done.stdout.endswith(": lost 3 times\n")


def test_a_task_that_waits_for_another_of_its_key_is_told_for_which(
    cluster: Cluster, database_url: str, one: int
) -> None:
    key = key_in(0)
    waits = cluster.claim("one", one, "waits", key, 0)
    cluster.end(waits, "lost")
    cluster.claim("one", one, "runs", key, 0)
    done = by_url(database_url, "why", "waits")
    assert done.exit_code == 1
    assert f"proj.settle waits of key {key} was lost, and is to be run again" in done.stdout
    assert "its key is taken: proj.settle runs runs at one" in done.stdout


def test_a_task_without_a_claim_is_told_what_it_may_wait_for(cluster: Cluster, database_url: str, one: int) -> None:
    done = by_url(database_url, "why", "unknown")
    assert done.exit_code == 1
    assert "no claim of this task" in done.stdout and "Only the broker could tell" in done.stdout
    cluster.claim("one", one, "runs", key_in(0), 0)
    assert "its key is taken: proj.settle runs" in by_url(database_url, "why", "unknown", "--key", key_in(0)).stdout
    assert "nothing holds it up in the database" in by_url(database_url, "why", "unknown", "--key", key_in(1)).stdout
    assert "there is no plan for it" in by_url(database_url, "why", "unknown", "--key", key_in(3)).stdout


def test_a_task_whose_node_died_is_told_so(cluster: Cluster, database_url: str, one: int) -> None:
    cluster.claim("one", one, "task", "key", 0)
    cluster.execute("UPDATE {node} SET state = 'dead'")
    done = by_url(database_url, "why", "task")
    assert done.exit_code == 1 and "that node is gone" in done.stdout


def test_every_claim_of_a_task_is_listed(cluster: Cluster, database_url: str, one: int) -> None:
    first: Ending = cluster.claim("one", one, "task", "key", 0)
    cluster.end(first, "retried")
    assert "asked for a retry, which has not begun yet" in by_url(database_url, "why", "task").stdout
    cluster.claim("one", one, "task", "key", 0, retries=1)
    told = said(by_url(database_url, "why", "task", "--json"))
    assert (told["state"], told["waits"]) == ("running", False)
    assert [(each["retries"], each["state"]) for each in told["claims"]] == [(0, "retried"), (1, "running")]
    assert "retry 1" in by_url(database_url, "why", "task").stdout.splitlines()[0]
