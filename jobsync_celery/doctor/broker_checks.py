"""Checks of the broker, its queues, and messages that are in the wrong ones."""

from __future__ import annotations

from collections.abc import Iterator

from celery import Celery

from jobsync_celery.doctor.case import Case
from jobsync_celery.doctor.finding import Checks, Finding, problem, risk
from jobsync_celery.doctor.words import listed, many, span

checks = Checks()

#: What Celery takes on Redis, and RabbitMQ, unless they are told otherwise.
_VISIBILITY_SEC = 3600.0
CONSUMER_TIMEOUT_SEC = 1800.0
#: A foreign mark is found within so long, or the other cluster is gone.
_FOREIGN_SEC = 600.0
#: More partition queues on each worker cost Redis more than half of its rate.
_MOST_QUEUES_ON_REDIS = 128


@checks("foreign-cluster", "cluster")
def foreign_cluster(case: Case) -> Iterator[Finding]:
    """Another cluster consumes the same queues."""
    for each in case.seen.seen("foreign_cluster", within=_FOREIGN_SEC):
        yield problem(
            "another cluster uses our queues",
            f"its tables are {each.subject}, ours {each.detail.get('ours')}; {each.node} found its mark"
            f" {span(each.age)} ago",
            cause="two clusters have one broker and one queue_prefix. Each takes messages of the other, and their nodes"
            " run the same keys beside each other",
            fix="give one of them another queue_prefix, or a broker or virtual host of its own",
        )


@checks("coordinated-elsewhere", "cluster")
def coordinated_elsewhere(case: Case) -> Iterator[Finding]:
    """Coordinated messages come by ordinary queues, or by the wrong partition's."""
    found: dict[tuple[str, bool], list[str]] = {}
    for each in case.seen.seen("misplaced"):
        ordinary = each.detail.get("partition") is None
        line = f"{each.subject}: {each.times} times, last {span(each.age)} ago, published by {each.detail.get('by')}"
        found.setdefault(("ordinary" if ordinary else "partition", ordinary), []).append(line)
    for (_, ordinary), lines in found.items():
        if ordinary:
            yield risk(
                "coordinated tasks come by ordinary queues",
                *lines[:5],
                cause="they were published with queue=, by a producer without JobSync, or before the plugin was there."
                " Workers with JobSync send them on; others would just run them",
                fix="publish without queue=; give producers JobSync(app), or CoordinationConfig(tasks=…) where they do"
                " not have the code",
            )
        else:
            yield problem(
                "messages come by other partitions' queues than their keys'",
                *lines[:5],
                cause="their producer has other total_tokens, partitions or hash_function than the cluster, or they are"
                " from before a reshape",
                fix="give producers the cluster's settings: jobsync schema show",
            )


@checks("coordinated-waiting-elsewhere", "app", "broker")
def coordinated_waiting_elsewhere(case: Case) -> Iterator[Finding]:
    """Coordinated messages wait in an ordinary queue."""
    for queue, tasks in case.the_broker.coordinated.items():
        yield risk(
            f"coordinated tasks wait in {queue}",
            f"{listed(tasks)} are among its first messages",
            cause="they were published with queue=, by a producer without JobSync, or before the plugin was there",
            fix="have a worker with JobSync consume that queue: it sends them on; give producers JobSync(app)",
        )


@checks("queue-unconsumed", "app", "broker")
def queue_unconsumed(case: Case) -> Iterator[Finding]:
    """Messages wait in a queue that nobody consumes."""
    left = [each for each in case.the_broker.queues if each.waiting and each.consumed is False]
    # Redis does not tell who consumes, and a worker that is busy may not have answered.
    make = risk if case.the_broker.kind == "redis" else problem
    for each in left:
        yield make(
            f"nobody consumes {each.name}",
            f"{many(each.waiting or 0, 'message')} wait in it",
            cause="no worker that answers has it among its -Q queues; or it is of a partition that there is no more,"
            " and a producer has still the former number of them",
            fix=f"start a worker with -Q {each.name}; what lies in queues of former partitions goes where it belongs by"
            " running jobsync schema reshape again",
        )


@checks("visibility-timeout", "app", "cluster", "broker")
def visibility_timeout(case: Case) -> Iterator[Finding]:
    """On Redis, tasks took so long that their messages were delivered again while they ran."""
    limit = visibility_of(case.the_app)
    if case.the_broker.kind == "redis" and (long := _longer(case, limit)):
        yield risk(
            f"tasks take longer than Redis waits for their end: {span(limit)}",
            *long,
            cause="after visibility_timeout Redis delivers a message again. A coordinated task does not run again for"
            " that, but an ordinary one with acks_late does",
            fix="set broker_transport_options['visibility_timeout'] above the longest task, countdown and eta, and"
            " claim_retention to twice that at least",
        )


@checks("consumer-timeout", "cluster", "broker")
def consumer_timeout(case: Case) -> Iterator[Finding]:
    """On RabbitMQ, tasks took so long that it closes the channel which holds their messages."""
    if case.the_broker.kind == "amqp" and (long := _longer(case, CONSUMER_TIMEOUT_SEC)):
        yield risk(
            "tasks take longer than RabbitMQ waits for their acknowledgement",
            *long,
            cause=f"after its consumer_timeout ({span(CONSUMER_TIMEOUT_SEC)} unless it was set) RabbitMQ closes the"
            " channel of a consumer that has not acknowledged, and delivers again what it held",
            fix="set consumer_timeout in rabbitmq.conf above the longest task, countdown and eta; or if it is, leave"
            " this",
        )


def visibility_of(app: Celery) -> float:
    """How long Redis waits for the end of a task of this app, in seconds."""
    options = app.conf.broker_transport_options or {}
    return float(options.get("visibility_timeout") or _VISIBILITY_SEC)


def _longer(case: Case, limit: float) -> list[str]:
    longest = case.seen.examination.longest
    return [f"{each.task_name} took {span(each.seconds)}" for each in longest if each.seconds > limit]


@checks("broker-heartbeat", "app", "broker")
def broker_heartbeat(case: Case) -> Iterator[Finding]:
    """RabbitMQ notices a worker that hangs too late."""
    conf = case.the_app.conf
    if case.the_broker.kind == "amqp" and conf.broker_heartbeat and (conf.broker_heartbeat_checkrate or 0) < 2:
        yield risk(
            "the broker's heartbeat is checked too seldom",
            f"broker_heartbeat_checkrate is {conf.broker_heartbeat_checkrate}",
            cause="Celery sends a heartbeat only when it looks, so with less than two looks in an interval RabbitMQ"
            " closes connections that are well",
            fix="leave broker_heartbeat_checkrate at 2 or more",
        )


@checks("redis-evicts", "app", "broker")
def redis_evicts(case: Case) -> Iterator[Finding]:
    """Redis may throw queues away when its memory is full."""
    policy = case.the_broker.eviction
    if policy is not None and policy != "noeviction":
        yield problem(
            "Redis may throw messages away",
            f"its maxmemory-policy is {policy}",
            cause="it was set up as a cache: when memory is full it deletes keys, and a queue is one",
            fix="set maxmemory-policy noeviction, or give the cache a Redis of its own",
        )


@checks("too-many-partitions", "app", "cluster", "broker")
def too_many_partitions(case: Case) -> Iterator[Finding]:
    """On Redis, each worker consumes so many queues that it slows down."""
    status = case.seen.status
    nodes = sum(share.node.state == "live" for share in status.live)
    if case.the_broker.kind == "redis" and nodes and status.partitions / nodes > _MOST_QUEUES_ON_REDIS:
        yield risk(
            "each worker consumes very many queues of Redis",
            f"{many(status.partitions, 'partition')} for {many(nodes, 'node')}",
            cause="kombu asks Redis for all queues of a worker at once, and beyond some hundred that costs more than"
            " half of the rate",
            fix="have about 10 partitions for each node: stop the cluster, jobsync schema reshape --partitions N, and"
            " the settings; or use RabbitMQ, where queues cost nothing",
        )
