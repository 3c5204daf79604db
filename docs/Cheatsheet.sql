-- Cheat sheet: the cluster in SQL. The operator guide says what to do about the answers.
--
-- Table names begin with appname, "sync_" by default; with a schema, set the search path first. Everything here may be
-- run at any time. Only what is under "Clean up", "Locks by hand" and "Rights" changes something.

-- == Is all well? ==================================================================================================

-- Active nodes, with the default lease of 15 s. Expected: as many as you run.
SELECT COUNT(*) FROM sync_node
WHERE last_heartbeat > NOW() - INTERVAL '15 seconds';

-- Heartbeat lag. Expected: below twice heartbeat_interval_sec, 10 s by default.
SELECT name, state, NOW() - last_heartbeat AS lag
FROM sync_node WHERE state IN ('live', 'draining') ORDER BY lag DESC;

-- The leader, and whether it changed lately. Expected: not, unless the leader was stopped.
SELECT node, term, since, since > NOW() - INTERVAL '5 minutes' AS changed_lately
FROM sync_leader;

-- Token balance. Expected: each node within 10 % of its share. What is on the move is missing for that moment.
SELECT node, COUNT(*) as tokens,
       ROUND(100.0 * COUNT(*) / SUM(COUNT(*)) OVER (), 1) as pct
FROM sync_token GROUP BY node;

-- Tokens that nobody owns now. Expected: 0.
SELECT c.total_tokens - (SELECT COUNT(*) FROM sync_token) AS unowned FROM sync_cluster c;

-- Rebalance frequency. Expected: one for each worker that came or went, else none.
SELECT COUNT(*) FROM sync_rebalance
WHERE triggered_at > NOW() - INTERVAL '1 hour';

-- == Nodes ==========================================================================================================

-- All of them. State: live, draining, left (waited for until awaited_until), dead (until it is cleaned up), admin (a
-- script that set locks).
SELECT * FROM sync_node ORDER BY created_on;

-- Dead and silent nodes. Expected: none.
SELECT name, state, last_heartbeat, hostname, pid FROM sync_node
WHERE state = 'dead' OR (state IN ('live', 'draining') AND last_heartbeat < NOW() - INTERVAL '15 seconds');

-- What each node has: partitions, running and ended runs.
SELECT n.name, n.state,
       (SELECT COUNT(*) FROM sync_partition p WHERE p.owner_incarnation = n.incarnation) AS partitions,
       (SELECT COUNT(*) FROM sync_claim c WHERE c.incarnation = n.incarnation AND c.state = 'running') AS running,
       (SELECT COUNT(*) FROM sync_claim c WHERE c.incarnation = n.incarnation AND c.state <> 'running') AS ended
FROM sync_node n WHERE n.state IN ('live', 'draining') ORDER BY n.created_on;

-- == Tokens and partitions ==========================================================================================

-- Tokens of each node.
SELECT node, COUNT(*) FROM sync_token GROUP BY node;

-- Tokens of one node. Expected: its share; 0 has an entry in the guide's troubleshooting.
SELECT COUNT(*) FROM sync_token WHERE node = 'worker-01';

-- Who owns a token. (token_for(key), or task_to_token(id) of a Job, tell a key's.)
SELECT node, assigned_at, version FROM sync_token WHERE token_id = 42;

-- Where plan and owner differ. Expected: nothing, but for a moment.
SELECT partition_id, target, owner, assigned_at
FROM sync_partition WHERE owner IS DISTINCT FROM target;

-- == Runs ===========================================================================================================

-- Runs of each node, over all that are remembered.
SELECT node, COUNT(*) FROM sync_claim GROUP BY node;

-- The same by state.
SELECT node, state, COUNT(*) FROM sync_claim GROUP BY node, state ORDER BY node, state;

-- What runs now, longest first.
SELECT task_key, task_name, task_id, node, attempt, fence, created_on
FROM sync_claim WHERE state = 'running' ORDER BY created_on;

-- Is a key running? Its other tasks wait for that.
SELECT task_id, node, attempt, created_on FROM sync_claim
WHERE task_key = '42' AND state = 'running';

-- What became of a key's runs.
SELECT task_id, origin, retries, node, attempt, state, created_on, finished_on
FROM sync_claim WHERE task_key = '42' ORDER BY created_on DESC LIMIT 50;

-- Runs that were lost and run again. Expected: those of workers that were killed.
SELECT task_id, origin, retries, task_key, node, attempt, state
FROM sync_claim WHERE attempt > 1 ORDER BY created_on DESC LIMIT 50;

-- Runs that failed for good within the last hour.
SELECT task_name, task_key, task_id, node, attempt, reason, finished_on
FROM sync_claim WHERE state = 'failed' AND finished_on > NOW() - INTERVAL '1 hour' ORDER BY finished_on DESC;

-- Runs per minute.
SELECT date_trunc('minute', finished_on) AS minute, COUNT(*) FROM sync_claim
WHERE finished_on > NOW() - INTERVAL '1 hour' GROUP BY minute ORDER BY minute;

-- What programs that are no workers have done today (Job.write_audit).
SELECT node, COUNT(*) FROM sync_audit WHERE date = CURRENT_DATE GROUP BY node;

-- == Plans ==========================================================================================================

-- The latest.
SELECT triggered_at, trigger_reason, leader_node, term, nodes_before, nodes_after, tokens_moved, duration_ms
FROM sync_rebalance ORDER BY triggered_at DESC LIMIT 20;

-- Why there were so many in the last hour.
SELECT triggered_at, trigger_reason, nodes_before, nodes_after FROM sync_rebalance
WHERE triggered_at > NOW() - INTERVAL '1 hour' ORDER BY triggered_at;

-- Who led, day by day.
SELECT date_trunc('day', triggered_at) AS day, leader_node, term, COUNT(*) AS plans
FROM sync_rebalance GROUP BY day, leader_node, term ORDER BY day DESC, term DESC;

-- == Task locks =====================================================================================================

-- All of them.
SELECT task_id, node_patterns, reason, created_by, created_at, expires_at FROM sync_lock ORDER BY created_at;

-- Keys that wait, since no live node matches any of their patterns. Expected: none.
SELECT l.task_id, l.node_patterns, l.created_by, l.expires_at
FROM sync_lock l JOIN sync_partition p USING (partition_id)
WHERE p.caretaker OR p.target IS NULL;

-- Orphans: locks whose creator is gone. They are in force.
SELECT * FROM sync_lock l
LEFT JOIN sync_node n ON l.created_by = n.name
WHERE n.name IS NULL;

-- == The cluster ====================================================================================================

-- What all its processes have to agree on.
SELECT cluster_id, kind, total_tokens, partitions, hash_function, lock_partitions, created_on FROM sync_cluster;

-- How large the tables are.
SELECT relname, pg_size_pretty(pg_total_relation_size(oid)) AS size, reltuples::bigint AS about_rows
FROM pg_class WHERE relkind = 'r' AND relname LIKE 'sync\_%' ORDER BY pg_total_relation_size(oid) DESC;

-- == Clean up: what jobsync.maintenance and `celery -A proj jobsync cleanup` do =====================================

-- Old rebalance history.
DELETE FROM sync_rebalance
WHERE triggered_at < NOW() - INTERVAL '30 days';

-- Dead nodes.
DELETE FROM sync_node
WHERE last_heartbeat < NOW() - INTERVAL '7 days';

-- Ended claims. Keep them for at least twice the broker's redelivery time.
DELETE FROM sync_claim
WHERE state <> 'running' AND finished_on < NOW() - INTERVAL '1 day';

-- Old audit.
DELETE FROM sync_audit
WHERE created_on < NOW() - INTERVAL '30 days';

-- Vacuum. sync_token is a view: PostgreSQL skips it with a warning.
VACUUM ANALYZE sync_node;
VACUUM ANALYZE sync_token;
VACUUM ANALYZE sync_lock;
VACUUM ANALYZE sync_claim;

-- == Locks by hand: they act at once ================================================================================

-- Locks that have expired; the leader clears them by itself.
DELETE FROM sync_lock WHERE expires_at <= NOW();

-- Orphans.
DELETE FROM sync_lock
WHERE created_by NOT IN (SELECT name FROM sync_node);

-- Let a lock expire tomorrow.
UPDATE sync_lock SET expires_at = NOW() + INTERVAL '1 day' WHERE task_id = 'model-7';

-- == Rights ========================================================================================================

-- What a role that is not the tables' owner, here worker, needs at run time.
GRANT USAGE ON SCHEMA public TO worker;
GRANT SELECT ON sync_schema, sync_token TO worker;
GRANT SELECT, UPDATE ON sync_cluster, sync_leader TO worker;
GRANT SELECT, INSERT, UPDATE ON sync_partition TO worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON sync_node, sync_claim, sync_lock, sync_rebalance, sync_audit TO worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON sync_profile, sync_sighting, sync_observer, sync_observation TO worker;
GRANT USAGE ON SEQUENCE sync_incarnation_seq, sync_fence_seq TO worker;
