"""What happened, said once: services emit facts, and this file alone turns them into log lines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from jobsync_celery.core.model import short, spans

logger = logging.getLogger("jobsync_celery")

Listener = Callable[[str, dict[str, Any]], None]

#: Fact -> (log level, line). The facts are a stable interface: log, metrics and listeners use these names.
FACTS: dict[str, tuple[int, str]] = {
    "node_registered": (logging.INFO, "node {name} registered as incarnation {incarnation}"),
    "node_left": (logging.INFO, "node {name} left the cluster"),
    "node_draining": (logging.INFO, "node {name} is draining: it hands its partitions over"),
    "node_resumed": (logging.INFO, "node {name} takes part again"),
    "cannot_consume": (
        logging.ERROR,
        "node {name} has had no connection to the broker for {limit:.0f} s: its partitions are for others",
    ),
    "loop_hangs": (
        logging.ERROR,
        "the event loop of {name} has not turned for {limit:.0f} s: its lease is not renewed until it does;"
        " it is at {where}",
    ),
    "loop_turns": (logging.WARNING, "the event loop of {name} turns again"),
    "node_evicted": (logging.WARNING, "node {victim} (incarnation {incarnation}) was declared dead by {by}"),
    "name_taken": (
        logging.ERROR,
        "coordination refused: another live worker is registered as {name!r} (host {holder_host}, pid"
        " {holder_pid})."
        " Give this worker a name of its own with -n or --node-name. Ordinary queues are still served",
    ),
    "waiting_for_name": (
        logging.WARNING,
        "the name {name!r} is still held by host {holder_host}, pid {holder_pid}: waiting for its lease to end",
    ),
    "store_unavailable": (
        logging.ERROR,
        "the coordination database does not answer ({error}). Ordinary queues are still served;"
        " coordinated tasks wait and resume by themselves",
    ),
    "store_available": (logging.INFO, "the coordination database answers again"),
    "lease_expired": (logging.WARNING, "the lease of {name} ended without renewal: nothing coordinated is started"),
    "lease_resumed": (logging.INFO, "the lease of {name} is renewed: coordinated tasks are started again"),
    "lease_lost": (logging.WARNING, "{name} lost its lease ({reason}): it registers again as a new incarnation"),
    "leader_changed": (logging.INFO, "{name} leads, term {term}"),
    "plan_held_back": (
        logging.INFO,
        "the first plan waits: {nodes} of {minimum_nodes} nodes are here, {waited:.0f} of {wait_on_enter:.0f} s passed",
    ),
    "rebalanced": (logging.INFO, "rebalanced ({reason}): {moved} partitions move, {nodes} nodes, term {term}"),
    "locks_expired": (logging.INFO, "{count} task locks have expired"),
    "cleaned_up": (logging.INFO, "maintenance deleted {rows} rows that were past their retention"),
    "not_vacuumed": (logging.WARNING, "after maintenance a table was not vacuumed: {remark}"),
    "clock_stepped": (
        logging.WARNING,
        "the database's clock was set by {seconds:+.1f} s. Leases are not judged by it alone, but reports and"
        " retentions go by it",
    ),
    "foreign_cluster": (
        logging.ERROR,
        "another cluster uses the queues of {prefix!r} on this broker: its tables are {tables}, ours {ours}. Its nodes"
        " take our messages, and run our keys beside us: give one of the two another queue_prefix or broker",
    ),
    "partitions_taken": (logging.INFO, "took partitions {numbers}"),
    "partitions_released": (logging.INFO, "released partitions {numbers}"),
    "not_released": (
        logging.ERROR,
        "{name} stops without having recorded and handed over everything, for {why}: its lease ends by itself",
    ),
    "guest": (
        logging.WARNING,
        "{name} is a guest of a cluster of nodes of kind {kind!r}: it may ask and set task locks, and no task is its"
        " own. For a cluster of Jobs name another appname",
    ),
    "tasks_not_recorded": (
        logging.ERROR,
        "{count} tasks of {name} were done and could not be recorded: they are given back, and run again",
    ),
    "tasks_overtaken": (
        logging.WARNING,
        "{count} tasks of {name}, {first!r} first, were not recorded as done: its lease had ended, and another node has"
        " taken them over since",
    ),
    "task_failed": (logging.ERROR, "task {task_name}[{task}] is failed: {error}"),
    "misrouted": (
        logging.ERROR,
        "task {task} was forwarded {hops} times, and is forwarded again in {rest:g} s: do all nodes and producers agree"
        " on partitions, total_tokens, hash_function, and the nodes= of the task?",
    ),
    "not_published": (
        logging.ERROR,
        "task {task} cannot be published into {queue} where it belongs, which is tried again every {rest:g} s: {error}."
        " Does the broker take such a message (its size, its properties), and may this worker write there?",
    ),
    "set_aside": (logging.ERROR, "an unreadable message of queue {queue} is set aside in {where}"),
    "errand_failed": (logging.WARNING, "a broker errand failed and is tried again: {error}"),
    "messages_restored": (
        logging.WARNING,
        "{count} messages that a dead worker had fetched are back in their queues",
    ),
    "request_failed": (logging.ERROR, "a claim could not be processed: {error}"),
    "schema_refused": (logging.ERROR, "coordination refused: {error}. Ordinary queues are still served"),
    "listener_failed": (logging.ERROR, "a receiver of {signal} failed: {receiver}: {error}"),
    "listener_slow": (
        logging.WARNING,
        "a receiver of {signal} has not returned for {seconds:.0f} s: {receiver}."
        " Partitions that it is called for, and what comes after it, wait",
    ),
    "observing": (
        logging.INFO,
        "{name} observes {tasks}: they run as ever, and `jobsync observe` tells what coordination would have prevented",
    ),
    "not_observing": (logging.WARNING, "this worker's tasks are not observed, and run as ever: {reason}"),
    "nothing_to_observe": (
        logging.WARNING,
        'no task here has a key, so nothing is observed: name some, as in tasks={{"proj.settle": "account_id"}}',
    ),
    "not_registered": (logging.WARNING, "to be observed, but not among this worker's tasks: {tasks}"),
    "observing_interrupted": (
        logging.WARNING,
        "observations are not written ({error}): tasks run as ever; what memory does not hold is left out, and counted",
    ),
    "observing_resumed": (logging.INFO, "observations are written again; {dropped} runs were left out so far"),
    "observing_stumbled": (logging.ERROR, "observing stumbled and goes on: {error}"),
    "loop_error": (logging.ERROR, "coordination stumbled and goes on: {error}"),
}

#: What concerns one task, one receiver or one program: it is logged, and no event of the cluster.
LOG_ONLY = frozenset(
    (
        "cleaned_up",
        "errand_failed",
        "guest",
        "listener_failed",
        "listener_slow",
        "loop_error",
        "misrouted",
        "not_published",
        "not_vacuumed",
        "request_failed",
        "set_aside",
        "task_failed",
        "tasks_not_recorded",
        "tasks_overtaken",
    )
)
_LONGEST_TEXT = 1000


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a fact for machines: numbers and texts of bounded length, partitions as spans and their count."""
    told: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "numbers":
            told["count"] = len(value)
            value = spans(value)
        told[name] = value if value is None or isinstance(value, (bool, int, float)) else str(value)[:_LONGEST_TEXT]
    return told


class Events:
    """Where facts are emitted; thread-safe. Listeners must not block and never break the emitter.

    Arguments:
        lines: what the log says of some facts, where that is something else than for a worker.
    """

    def __init__(self, lines: Mapping[str, str] | None = None) -> None:
        self._lines = lines or {}
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call ``listener(fact, fields)`` for every fact from now on, in the thread that emits it."""
        self._listeners.append(listener)

    def line(self, fact: str, fields: Mapping[str, Any]) -> str:
        """What the log says of a fact."""
        shown = {name: _shown(name, value) for name, value in fields.items()}
        return self._lines.get(fact, FACTS[fact][1]).format(**shown)

    def __call__(self, fact: str, **fields: Any) -> None:
        """Emit one fact of :data:`FACTS`."""
        structured = {"jobsync_event": fact, "jobsync": plain(fields)}
        logger.log(FACTS[fact][0], "jobsync: %s", self.line(fact, fields), extra=structured)
        for listener in self._listeners:
            try:
                listener(fact, fields)
            except Exception:  # a user's listener: its errors are its own
                logger.exception("jobsync: a listener failed on %s", fact)


def _shown(name: str, value: Any) -> Any:
    """A field for people."""
    if name == "incarnation" and value:
        return short(value)
    return spans(value) if name == "numbers" else value
