"""What the statements of the operator guide and of the cheat sheet answer on a healthy cluster with some load.

A statement without an entry here fails, and so does an entry without a statement.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from pages.reader import Rows

#: Judges the answer of a cluster of these nodes.
Judge = Callable[[Rows, set[str]], bool]


def anything(rows: Rows, nodes: set[str]) -> bool:
    """Whether it ran, which says all: it changes something, or its answer depends on what was done before."""
    return True


def nothing(rows: Rows, nodes: set[str]) -> bool:
    return rows == []


def as_many_as_nodes(rows: Rows, nodes: set[str]) -> bool:
    return rows == [{"count": len(nodes)}]


def each_node(rows: Rows, nodes: set[str]) -> bool:
    """A row for each node, scripts left aside; with a recent heartbeat, where it is told."""
    rows = [row for row in rows if row["state"] != "admin"]
    late = datetime.now(timezone.utc) - timedelta(seconds=10)
    beats = [row["last_heartbeat"] for row in rows if "last_heartbeat" in row]
    named = [row.get("name") or row.get("node") for row in rows]
    return sorted(map(str, named)) == sorted(nodes) and all(beat > late for beat in beats)


def every_node_has_some(rows: Rows, nodes: set[str]) -> bool:
    return {row["node"] for row in rows} == nodes and all(row["count"] > 0 for row in rows)


def balanced(rows: Rows, nodes: set[str]) -> bool:
    """Each within a tenth of its share, or a partition of it where that is more."""
    counts = [row.get("tokens") or row["count"] for row in rows]
    share = 10_000 / len(nodes)
    room = max(share / 10, 10_000 / 64 + 1)
    return (
        {row["node"] for row in rows} == nodes
        and sum(counts) == 10_000
        and all(abs(count - share) <= room for count in counts)
    )


def little_lag(rows: Rows, nodes: set[str]) -> bool:
    return {row["name"] for row in rows} == nodes and all(row["lag"] < timedelta(seconds=10) for row in rows)


def a_young_leader(rows: Rows, nodes: set[str]) -> bool:
    """This cluster is minutes old, so its leader changed lately."""
    return len(rows) == 1 and rows[0]["node"] in nodes and rows[0]["changed_lately"] is True


def few_plans(rows: Rows, nodes: set[str]) -> bool:
    """One for each node that came or went, at most: those that are here, and as many that were."""
    return len(rows) == 1 and 1 <= rows[0]["count"] <= 4 * len(nodes)


def the_plans(rows: Rows, nodes: set[str]) -> bool:
    """Nodes came and went in good order; where beat runs it may be the first to see it."""
    return bool(rows) and {row["trigger_reason"] for row in rows} <= {"initial", "membership", "backstop", "task locks"}


def ends_of_each_node(rows: Rows, nodes: set[str]) -> bool:
    return {row["node"] for row in rows if row["state"] == "done"} == nodes


def one_share(rows: Rows, nodes: set[str]) -> bool:
    """worker-01 has what it should."""
    return abs(rows[0]["count"] - 10_000 / len(nodes)) <= 10_000 / 64 + 1


def all_is_owned(rows: Rows, nodes: set[str]) -> bool:
    return rows == [{"unowned": 0}]


def has_all_columns(rows: Rows, nodes: set[str]) -> bool:
    """One row, and nothing in it is unknown."""
    return len(rows) == 1 and None not in rows[0].values()


def some(rows: Rows, nodes: set[str]) -> bool:
    return bool(rows)


#: Beginning of a statement, blanks evened out -> how its answer is judged. The longest that fits counts.
ANSWERS: dict[str, Judge] = {
    "SELECT * FROM sync_node ORDER BY created_on": each_node,
    "SELECT node, COUNT(*) FROM sync_token GROUP BY node": balanced,
    "SELECT node, COUNT(*) FROM sync_claim GROUP BY node": every_node_has_some,
    "SELECT COUNT(*) FROM sync_node WHERE last_heartbeat >": as_many_as_nodes,
    "SELECT node, COUNT(*) as tokens,": balanced,
    "SELECT name, state, NOW() - last_heartbeat AS lag": little_lag,
    "SELECT COUNT(*) FROM sync_rebalance WHERE triggered_at >": few_plans,
    "SELECT node, term, since,": a_young_leader,
    "SELECT partition_id, target, owner,": nothing,
    "SELECT task_id, origin, retries, task_key, node, attempt, state FROM sync_claim": nothing,  # was lost
    "SELECT l.task_id, l.node_patterns,": nothing,
    "SELECT task_key, task_name, task_id, node, attempt, fence,": nothing,  # runs any more
    "SELECT node, state, COUNT(*) FROM sync_claim": ends_of_each_node,
    "SELECT triggered_at, trigger_reason, leader_node, term,": the_plans,
    "SELECT COUNT(*) FROM sync_token WHERE node = 'worker-01'": one_share,
    "SELECT task_id, origin, retries, node, attempt, state, created_on, finished_on": some,
    "SELECT triggered_at, trigger_reason, nodes_before,": the_plans,
    "SELECT * FROM sync_lock l LEFT JOIN sync_node n": nothing,
    "SELECT task_id, node, attempt, created_on FROM sync_claim WHERE task_key = '42'": nothing,
    "DELETE FROM sync_rebalance": anything,
    "DELETE FROM sync_node": anything,
    "DELETE FROM sync_lock": anything,
    "DELETE FROM sync_claim": anything,
    "DELETE FROM sync_audit": anything,
    "VACUUM ANALYZE sync_": anything,
    "GRANT ": anything,
    "UPDATE sync_lock SET expires_at": anything,
    "SELECT c.total_tokens - (SELECT COUNT(*)": all_is_owned,
    "SELECT name, state, last_heartbeat, hostname, pid FROM sync_node WHERE state = 'dead'": nothing,
    "SELECT n.name, n.state, (SELECT COUNT(*)": each_node,
    "SELECT node, assigned_at, version FROM sync_token WHERE token_id = 42": has_all_columns,
    "SELECT task_name, task_key, task_id, node, attempt, reason, finished_on": nothing,
    "SELECT date_trunc('minute', finished_on)": some,
    "SELECT node, COUNT(*) FROM sync_audit": nothing,
    "SELECT date_trunc('day', triggered_at)": some,
    "SELECT task_id, node_patterns, reason, created_by,": nothing,
    "SELECT cluster_id, kind, total_tokens,": has_all_columns,
    "SELECT relname, pg_size_pretty(": some,
}


def judge_of(statement: str) -> str:
    """The entry that judges a statement."""
    even = " ".join(statement.split())
    fitting = [start for start in ANSWERS if even.startswith(start)]
    assert fitting, f"nothing says what is expected of {statement!r}"
    return max(fitting, key=len)
