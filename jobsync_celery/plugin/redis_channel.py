"""A Redis channel that cannot lose a message to SIGKILL: popping and recording it are one step on the server.

kombu pops with BRPOP and records the message in `unacked` one round trip later; a worker killed in between loses it.
Here one script does both, for as many messages as there is prefetch credit. It never blocks: when all queues are empty
it reads every key, so that the server (CLIENT TRACKING) reports the next push to any. To kombu's poller that looks like
a BRPOP in flight: `_in_poll` is set. What is stored has kombu's format, so ordinary workers can share the server.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import cache
from itertools import chain
from queue import Empty
from time import monotonic, time
from types import SimpleNamespace
from typing import Any, NamedTuple

import redis
from kombu.connection import Connection
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils import json as kombu_json
from kombu.utils.scheduling import priority_cycle

from jobsync_celery.plugin.redis_scripts import PUT_BACK, TAKE
from jobsync_celery.runtime.events import Events

stock: Any = kombu_redis  #: kombu is untyped
loads: Any = kombu_json.loads
local_qos: Any = virtual.QoS  #: knows what this process has in hand, and not the server
logger = logging.getLogger(__name__)
#: Heard by the log only: a channel belongs to a connection, and knows no app.
_events = Events()

BATCH = 64  #: most messages taken in one round trip
IDLE_POLL = 0.05  #: seconds between looks at empty queues on a server without CLIENT TRACKING
SET_ASIDE = "unacked_undecodable"  #: list that keeps messages without a readable delivery tag


class Taken(NamedTuple):
    """A message not in its queue; to be put back to the heads of `keys`. Without a tag it was never recorded."""

    tag: str
    raw: str | bytes
    keys: list[str]
    queue: str = ""
    score: str = ""  #: limits putting back to the delivery recorded under it


class SafeQoS(stock.QoS):
    """kombu's acknowledgements, not recording again what the script has recorded."""

    def append(self, message: Any, delivery_tag: Any) -> None:
        """Note a delivered message; on the server too, unless it was taken by the script."""
        if str(delivery_tag) == self.channel.delivering:
            local_qos.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Give everything in hand back in the order it was fetched; kombu turns that round."""
        give_back(self.channel, list(self._delivered))


class SafePoller(stock.MultiChannelPoller):
    """kombu's poller, for channels whose wait can end without a message."""

    loop: Any = None
    tick: Any = None  #: timer that turns an idle event loop on a server without tracking
    polling = False

    def poll_often(self, reason: object = None) -> None:
        """Look every `IDLE_POLL` seconds from now on: this server does not report pushes."""
        if not self.polling:
            logger.warning("Redis does not report pushes (%s): looking every %s s", reason, IDLE_POLL)
        self.polling = True
        if self.loop is not None and self.tick is None:
            self.tick = self.loop.call_repeatedly(IDLE_POLL, lambda: None)  # each turn calls on_poll_start

    def close(self) -> None:
        """Stop looking and polling."""
        if self.tick is not None:
            self.tick.cancel()
        super().close()

    def on_poll_start(self) -> None:
        """Ask for messages wherever there is credit and no wait."""
        for channel in self._channels:
            channel.end_overdue_wait()
        super().on_poll_start()

    def on_readable(self, fileno: int) -> None:
        """Read an answer or a report; raises Empty when no message came of it."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == "BRPOP" and not channel._in_poll and fileno not in self._paused_brpop:
            channel.discard_reports()  # of a push to a queue that the next take will look at anyway
            raise Empty()
        super().on_readable(fileno)

    def get(self, callback: Callable[..., Any], timeout: float | None = None) -> None:
        """Deliver what is there, without an event loop; raises Empty after the next look at the latest."""
        longest = IDLE_POLL if self.polling else 1.0
        super().get(callback, longest if timeout is None else min(timeout, longest))


class SafeChannel(stock.Channel):
    """Delivers a message only after the step that took it has also recorded it as unacknowledged."""

    QoS = SafeQoS
    _in_poll: Any = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.delivering: str | None = None  #: tag of the recorded message being delivered now
        self._batch: deque[Taken] = deque()
        self._asked: list[tuple[str, str]] = []  #: (queue, key) by key number of the script in flight
        self._no_ack: set[str] = set()
        self._waiting = False  #: `_in_poll` stands for a wait; no answer is due
        self._stale = False  #: queues or keys changed since the script looked
        self._session: Any = None  #: socket that knows the script, with tracking set up if possible
        self._tracking, self._script = True, ""
        super().__init__(*args, **kwargs)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> None:
        """Consume `queue` from the next turn of the loop on."""
        (self._no_ack.add if no_ack else self._no_ack.discard)(queue)
        super().basic_consume(queue, no_ack, *args, **kwargs)
        self._stale = True

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop consuming: on return nothing more of the queue is delivered, and what was on its way is back."""
        if self._tag_to_queue.get(consumer_tag) in self.active_fanout_queues:
            super().basic_cancel(consumer_tag)
        elif self.connection:
            self._basic_cancel(consumer_tag)
            self._settle()

    def close(self) -> None:
        """Give back what was on its way, then what is unacknowledged."""
        if not self.closed:  # Celery closes some channels twice
            try:
                self._settle()
            except self.connection_errors:
                logger.debug("connection lost before messages could be given back", exc_info=True)
        super().close()

    def _settle(self) -> None:
        """End the take or wait in flight; what it took goes back to the heads of its queues."""
        if self._in_poll and not self._waiting:
            self._read_answer()
        self._in_poll = self._waiting = False
        undelivered, self._batch = self._batch, deque()
        _put_back(self, undelivered)

    def end_overdue_wait(self) -> None:
        """Let the next turn ask again, if queues changed or the last look is long ago."""
        pause = (self.brpop_timeout or 1) if self._tracking else IDLE_POLL
        if self._waiting and (self._stale or monotonic() - (self._brpop_sent_at or 0) >= pause):
            self._in_poll = self._waiting = False
            self._flush_brpop_reauth()

    def _brpop_start(self, timeout: float | None = None) -> None:
        if not (queues := self._queue_cycle.consume(len(self.active_queues))):
            return
        connection, prefix = self.client.connection, self.global_keyprefix
        self._set_up(connection)
        self._asked = [(name, prefix + self._q_for_pri(name, pri)) for pri in self.priority_steps for name in queues]
        record = "".join("01"[self.ack_emulation and queue not in self._no_ack] for queue in queues)
        names = (prefix + name for name in (self.unacked_key, self.unacked_index_key, SET_ASIDE))
        limit = min(self.qos.can_consume_max_estimate() or BATCH, BATCH)  # None: unlimited
        fair = int(not isinstance(self._queue_cycle, priority_cycle))
        args = [*(key for _, key in self._asked), limit, len(queues), fair, repr(time()), *names, record]
        self._stale = self._waiting = False
        self._in_poll, self._brpop_sent_at = connection, monotonic()
        connection.send_command("EVALSHA", self._script, len(self._asked), *args, check_health=False)

    def _set_up(self, connection: Any) -> None:
        """Make a new session know the script and report pushes; without reports, look often instead."""

        def ask(*command: str) -> Any:
            connection.send_command(*command, check_health=False)
            return connection.read_response()

        if self._session is not None and self._session is connection._sock:
            return
        self._script = ask("SCRIPT", "LOAD", TAKE)
        try:
            if str(connection.get_protocol()) != "3":
                raise redis.ResponseError("needs protocol 3")
            ask("CLIENT", "TRACKING", "ON", "NOLOOP")
            connection._parser.set_invalidation_push_handler(self._on_report)
            self._tracking = True
        except redis.ResponseError as refused:
            self._tracking = False
            self.connection.cycle.poll_often(refused)
        self._session = connection._sock

    def _on_report(self, report: Any) -> None:
        self._stale = True

    def discard_reports(self) -> None:
        """Read what the server sent unasked; a lost connection is set up again at the next take."""
        try:
            self._read_reports(self.client.connection)
        except self.connection_errors:
            self.client.connection.disconnect()

    def _read_reports(self, connection: Any) -> None:
        while connection._sock is not None and connection.can_read(timeout=0):
            connection.read_response(push_request=True)

    def _brpop_read(self, **options: Any) -> bool:
        try:
            self._read_reports(self.client.connection) if self._waiting else self._read_answer()
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = self._waiting = False
        if self._batch:
            self._flush_brpop_reauth()
            return self._deliver_batch()
        self._waiting = not self._stale
        self._in_poll = self._waiting and self.client.connection
        raise Empty()

    def _read_answer(self) -> None:
        connection, self._in_poll = self._in_poll, False
        try:
            found = self.client.parse_response(connection, "EVALSHA")
        except redis.exceptions.NoScriptError:
            found, self._session, self._stale = [], None, True
        for at, tag, raw in zip(found[::3], found[1::3], found[2::3], strict=True):
            queue, key = self._asked[abs(at) - 1]
            if at > 0:
                self._batch.append(Taken(tag.decode(), raw, [key], queue))
            else:
                _events("set_aside", queue=queue, where=SET_ASIDE)
        if not found:  # the wait for the next push begins, and a report may already be in the buffer
            self._read_reports(connection)

    def _deliver_batch(self) -> bool:
        try:
            while self._batch:
                taken = self._batch.popleft()
                self._queue_cycle.rotate(taken.queue)
                self.delivering = taken.tag or None
                self.connection._deliver(loads(taken.raw), taken.queue)
        finally:
            self.delivering = None
            if self._batch:  # a callback failed
                self._settle()
        return True


class SafeTransport(stock.Transport):
    """kombu's Redis transport with `SafeChannel`."""

    Channel = SafeChannel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = SafePoller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let the event loop drive this transport."""
        super().register_with_event_loop(connection, loop)
        self.cycle.loop = loop
        if self.cycle.polling:
            self.cycle.poll_often()


# Without it, `Connection.info()`, `as_uri()` and so `celery inspect stats` would show the class.
Connection.resolve_aliases[SafeTransport] = SafeTransport.driver_type  # type: ignore[index]


@cache
def safe_transport(transport_cls: type) -> type:
    """The transport for the consuming connection; one without a safe variant (Sentinel, not Redis) unchanged."""
    if transport_cls is stock.Transport:
        return SafeTransport
    if issubclass(transport_cls, stock.Transport) and not issubclass(transport_cls, SafeTransport):
        logger.warning("%s has no safe variant: a killed worker may lose a message", transport_cls.__name__)
    return transport_cls


def restore_unacked(channel: Any, queues: Collection[str], keep: Collection[str]) -> int:
    """Put what others fetched from `queues` and never acknowledged back to the heads, oldest first; how many.

    The tags in `keep` stay, and what is fetched from now on. Nodes may do this at once, and beside the sweep.
    """
    client, unacked, index = server_of(channel)
    scores = {tag.decode(): score for tag, score in client.zrange(index, 0, -1, withscores=True)}
    lookup, entries = cache(channel._lookup), dict[str, bytes]()
    for field, entry in client.hscan_iter(unacked, count=500):
        if (tag := field.decode()) not in keep:
            _, exchange, routing_key = loads(entry)
            if routing_key in queues or not set(queues).isdisjoint(lookup(exchange, routing_key)):
                entries[tag] = entry
    oldest_first = sorted((scores.get(tag, 0.0), tag, entry) for tag, entry in entries.items())
    return _put_back(channel, [_restorable(channel, tag, entry, repr(score)) for score, tag, entry in oldest_first])


def give_back(channel: Any, tags: Sequence[str]) -> None:
    """Put messages of this channel back to the heads of their queues; `tags` are oldest first, and so popped."""
    client, unacked, _ = server_of(channel)
    entries = zip(tags, client.hmget(unacked, list(tags)) if tags else (), strict=True)
    _put_back(channel, [_restorable(channel, tag, entry) for tag, entry in entries if entry])
    for tag in tags:
        local_qos.ack(channel.qos, tag)


def server_of(channel: Any) -> tuple[Any, str, str]:
    """A client that leaves keys as they are (kombu's prefixes only some), and where messages are recorded."""
    names = (channel.global_keyprefix + name for name in (channel.unacked_key, channel.unacked_index_key))
    return redis.Redis(connection_pool=channel.pool), *names


def _restorable(channel: Any, tag: str, entry: bytes, score: str = "") -> Taken:
    """What kombu would push for an entry of `unacked`: marked as redelivered, to its priority."""
    pushed: dict[str, str] = {}
    channel._do_restore_message(*loads(entry), SimpleNamespace(rpush=pushed.__setitem__))
    keys = [channel.global_keyprefix + key for key in pushed]
    return Taken(str(tag), next(iter(pushed.values()), ""), keys, score=score)


def _put_back(channel: Any, oldest_first: Collection[Taken]) -> int:
    """Move the items that are still unacknowledged to the heads, in one step; how many. Without keys they stay."""
    items = [[m.tag, m.score, m.raw, len(m.keys), *m.keys] for m in reversed(list(oldest_first)) if m.keys]
    client, *records = server_of(channel)
    return int(client.eval(PUT_BACK, 0, *records, *chain(*items))) if items else 0
