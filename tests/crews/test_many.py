"""A large cluster, with the settings that the operator guide gives for it: fifty thousand tokens on twelve nodes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import psycopg2
import pytest
from e2e.waiting import until

from jobsync_celery import CoordinationConfig, Job
from jobsync_celery.core.tokens import TokenMap

NODES, TOKENS = 12, 50_000
LARGE: dict[str, Any] = {"total_tokens": TOKENS, "heartbeat_interval_sec": 3}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def jobs(module_database_url: str) -> Iterator[list[Job]]:
    """Twelve in this process that came together."""
    config = CoordinationConfig(url=module_database_url, minimum_nodes=NODES, **LARGE)
    jobs = [Job(f"node-{number:02}", coordination_config=config) for number in range(NODES)]
    with ExitStack() as stack, ThreadPoolExecutor(NODES) as threads:
        for job in threads.map(lambda job: job.__enter__(), jobs):
            stack.callback(leave, job)
        yield jobs


def leave(job: Job) -> None:
    if job.state != "left":
        job.__exit__(None, None, None)


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def test_twelve_nodes_share_fifty_thousand_tokens_evenly_by_one_plan(jobs: list[Job], module_database_url: str) -> None:
    counts = dict(rows(module_database_url, "SELECT node, count(*) FROM sync_token GROUP BY node"))
    assert counts == {job.node_name: len(job.my_tokens) for job in jobs}
    assert sum(counts.values()) == TOKENS
    assert all(abs(count - TOKENS / NODES) <= 0.1 * TOKENS / NODES for count in counts.values()), counts
    history = "SELECT nodes_after, tokens_moved FROM sync_rebalance"
    assert rows(module_database_url, history) == [(NODES, TOKENS)], "one plan, which is one transaction"


def test_each_token_is_one_node_s_and_the_view_says_whose(jobs: list[Job], module_database_url: str) -> None:
    tokens = TokenMap(TOKENS, 1, "double_sha256")
    view = dict(rows(module_database_url, "SELECT token_id, node FROM sync_token"))
    assert {token: job.node_name for job in jobs for token in job.my_tokens} == view
    for number in range(200):
        owners = [job.node_name for job in jobs if job.can_claim_task(number)]
        assert owners == [view[tokens.token(str(number))]]


def test_one_that_leaves_gives_its_share_to_the_others_and_nothing_else_moves(
    jobs: list[Job], module_database_url: str
) -> None:
    *others, leaver = jobs
    before = {job.node_name: job.my_tokens for job in others}
    share = len(leaver.my_tokens)
    leave(leaver)
    counts = dict(rows(module_database_url, "SELECT node, count(*) FROM sync_token GROUP BY node"))
    assert leaver.node_name not in counts
    plans = "SELECT tokens_moved FROM sync_rebalance ORDER BY id"
    until(lambda: rows(module_database_url, plans) == [(TOKENS,), (share,)], "the leader has made a plan of it")
    until(lambda: sum(len(job.my_tokens) for job in others) == TOKENS, "they have it")
    assert all(before[job.node_name] <= job.my_tokens for job in others)
