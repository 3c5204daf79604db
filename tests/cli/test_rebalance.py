"""``rebalance``: what would move, and why; and that it moves."""

from __future__ import annotations

from command_stage import Cluster, at_terminal, by_url, refused, said


def targets(cluster: Cluster) -> list[str]:
    return [row[0] for row in cluster.rows("SELECT target FROM {partition} ORDER BY partition_id")]


def test_a_dry_run_says_what_would_move_from_where_to_where_and_why(cluster: Cluster, database_url: str) -> None:
    cluster.join("two", 3)
    before = targets(cluster)
    told = said(by_url(database_url, "rebalance", "--dry-run", "--json"))
    assert told["dry_run"] is True and told["tokens_moved"] == 25
    [move] = told["moves"]
    assert (move["from"], move["to"], move["why"]) == ("one", "two", "balance: from 3 to 2 partitions")
    shown = at_terminal(database_url, "rebalance", "--dry-run")
    assert shown.startswith("1 partition of 4 would move, with 25 of 100 tokens")
    assert "1 (0)" in shown and "balance: from 3 to 2 partitions" in shown
    assert targets(cluster) == before


def test_a_dry_run_without_a_node_shows_what_its_loss_would_cost(cluster: Cluster, database_url: str) -> None:
    cluster.join("two", 3)
    told = said(by_url(database_url, "rebalance", "--dry-run", "--without", "one", "--json"))
    assert {(move["from"], move["to"], move["why"]) for move in told["moves"]} == {
        ("one", "two", "planned without its node")
    }
    assert len(told["moves"]) == 3
    assert "3 (0-2)" in by_url(database_url, "rebalance", "--dry-run", "--without", "one").stdout
    assert "did you mean 'two'?" in refused(by_url(database_url, "rebalance", "--dry-run", "--without", "tow"))
    assert "jobsync drain one" in refused(by_url(database_url, "rebalance", "--without", "one"))


def test_a_rebalance_is_written_under_the_leaders_rules(cluster: Cluster, database_url: str) -> None:
    cluster.join("two", 3)
    done = by_url(database_url, "rebalance")
    assert done.exit_code == 0 and done.stdout.startswith("1 partition of 4 move")
    assert sorted(targets(cluster)) == ["one", "one", "two", "two"]
    assert cluster.rows("SELECT trigger_reason, leader_node FROM {rebalance}") == [("requested", "one")]
    assert by_url(database_url, "rebalance").stdout.startswith("nothing moved")


def test_what_waits_for_a_name_is_told_and_moves_when_nobody_is_to_wait(cluster: Cluster, database_url: str) -> None:
    cluster.leave("two", cluster.join("two", 3), grace=300)
    [wait] = said(by_url(database_url, "rebalance", "--dry-run", "--json"))["waiting"]
    assert (wait["node"], wait["partitions"]) == ("two", 1)
    for words in ((), ("--dry-run",)):
        shown = at_terminal(database_url, "rebalance", *words)
        assert shown.startswith("nothing ") and "for two to return: --no-wait" in shown
    assert len(said(by_url(database_url, "rebalance", "--dry-run", "--no-wait", "--json"))["moves"]) == 1
    assert targets(cluster)[3] == "two" and "it has left; what waits" in refused(by_url(database_url, "drain", "two"))
    assert by_url(database_url, "rebalance", "--no-wait").stdout.startswith("1 partition of 4 move")
    assert targets(cluster) == ["one"] * 4 and cluster.rows("SELECT name FROM {node}") == [("one",)]


def test_the_first_plan_is_the_leaders_own(database_url: str) -> None:
    cluster = Cluster(database_url)
    cluster.join("one")
    for words in ((), ("--dry-run",)):
        assert "there is no plan yet" in refused(by_url(database_url, "rebalance", *words))
