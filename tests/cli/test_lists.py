"""``nodes``, ``tokens``, ``history`` and ``claims``: lists, and their filters."""

from __future__ import annotations

import pytest
from command_stage import Cluster, by_url, refused, said


def test_nodes_lists_dead_ones_too_and_who_leads(cluster: Cluster, database_url: str) -> None:
    cluster.bury("two", cluster.join("two"))
    told = said(by_url(database_url, "nodes", "--json"))
    assert told["leader"] == "one"
    assert [(each["name"], each["state"]) for each in told["nodes"]] == [("one", "live"), ("two", "dead")]


def test_tokens_shows_who_has_and_who_should_have(cluster: Cluster, database_url: str) -> None:
    told = said(by_url(database_url, "tokens", "--json"))
    assert told["total_tokens"] == 100
    assert [(each["first_token"], each["last_token"]) for each in told["partitions"]] == [
        (0, 24),
        (25, 49),
        (50, 74),
        (75, 99),
    ]
    assert [each["state"] for each in told["partitions"]] == ["owned"] * 3 + ["free"]
    done = by_url(database_url, "tokens")
    assert done.exit_code == 1 and done.stdout.startswith("100 tokens in 4 partitions: 3 owned, 1 free\n")
    cluster.join("two", 3)
    assert by_url(database_url, "tokens").exit_code == 0
    done = by_url(database_url, "tokens", "--node", "two")
    assert done.stdout.startswith("25 tokens in 1 partition: 1 owned\n")
    cluster.join("three")
    assert by_url(database_url, "tokens", "--node", "three").stdout == "0 tokens in 0 partitions\n"
    assert refused(by_url(database_url, "tokens", "--node", "tow")).endswith("did you mean 'two'?")


def test_history_lists_the_latest_plans_first(cluster: Cluster, database_url: str) -> None:
    assert by_url(database_url, "history").stdout == "nothing has moved yet\n"
    for term in (1, 2, 3):
        cluster.plan("one", term, tokens=10 * term)
    told = said(by_url(database_url, "history", "--limit", "2", "--json"))
    assert [(each["term"], each["tokens_moved"]) for each in told["rebalances"]] == [(3, 30), (2, 20)]
    assert by_url(database_url, "history", "--limit", "0").exit_code == 2


@pytest.fixture
def busy(cluster: Cluster) -> Cluster:
    one = int(cluster.rows("SELECT incarnation FROM {node}")[0][0])
    two = cluster.join("two", 3)
    for number, state in enumerate(("done", "failed", "lost", "retried")):
        cluster.end(cluster.claim("one", one, f"task-{state}", f"key{number}", 0), state)
    cluster.claim("two", two, "task-running", "key", 3)
    return cluster


def ids(database_url: str, *words: str) -> list[str]:
    return [each["task_id"] for each in said(by_url(database_url, "claims", *words, "--json"))["claims"]]


def test_claims_lists_what_runs_first_and_then_the_latest(busy: Cluster, database_url: str) -> None:
    assert ids(database_url) == ["task-running", "task-retried", "task-lost", "task-failed", "task-done"]
    assert ids(database_url, "--limit", "2") == ["task-running", "task-retried"]
    assert [ids(database_url, f"--{state}") for state in ("running", "failed", "lost")] == [
        ["task-running"],
        ["task-failed"],
        ["task-lost"],
    ]
    assert ids(database_url, "--node", "two") == ["task-running"]
    assert ids(database_url, "--key", "key1") == ["task-failed"]
    assert ids(database_url, "--node", "two", "--failed") == []


def test_claims_of_what_is_unknown_are_refused_by_name(busy: Cluster, database_url: str) -> None:
    assert "no such node, and no claims of one: 'three'" in refused(by_url(database_url, "claims", "--node", "three"))
    assert "no claims of the key 'nobody'" in refused(by_url(database_url, "claims", "--key", "nobody"))
    assert by_url(database_url, "claims", "--key", "key", "--lost").stdout == "no lost claims\n"


def test_old_claims_are_left_out_if_asked_for_but_never_those_that_run(busy: Cluster, database_url: str) -> None:
    busy.execute("UPDATE {claim} SET created_on = created_on - interval '2 hours'")
    assert ids(database_url, "--since", "1") == ["task-running"]
    assert len(ids(database_url, "--since", "3")) == 5


def test_a_claim_shows_that_its_node_is_gone(busy: Cluster, database_url: str) -> None:
    busy.execute("UPDATE {node} SET state = 'dead' WHERE name = 'two'")
    [claim] = said(by_url(database_url, "claims", "--running", "--json"))["claims"]
    assert claim["node_gone"] is True
