"""A worker's connections to the database lead into a black hole: nothing overlaps, and nobody waits for an answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from urllib.parse import urlsplit

import pytest
from faults import black_hole
from faults.proxy import PASS, Exchange, Mode, Proxy

from e2e import calls
from e2e.history import overlaps
from e2e.load import load
from e2e.site import Site, with_port
from e2e.waiting import until
from jobsync_celery import CoordinationConfig

#: libpq takes at least so long to connect.
CONNECT = 2.0
#: How often the client's own limit is looked at.
TICK = 0.5
#: What a loaded machine may add.
SLACK = 2.0


@pytest.fixture
def way(site: Site) -> Iterator[Proxy]:
    """One worker's way to the database."""
    exchange = Exchange()
    proxy = Proxy(exchange, urlsplit(site.database_url).port or 0)
    yield proxy
    proxy.close()
    exchange.close()


@contextmanager
def swallowed(way: Proxy, how: str) -> Iterator[None]:
    """A proxy that passes nothing on, though its TCP acknowledges."""
    way.set(Mode(how))
    try:
        yield
    finally:
        way.set(PASS)


def hole(way: Proxy, how: str) -> AbstractContextManager[None]:
    if how != "packets":
        return swallowed(way, how)
    if reason := black_hole.missing():
        pytest.skip(f"left out, {reason}")
    return black_hole.black_hole(way.port)


@pytest.mark.parametrize("how", ["stall", "drop", "packets"])
@pytest.mark.cluster(conf={"e2e_mortal": True})
def test_a_black_hole_before_the_database_overlaps_nothing_and_holds_no_thread_up(
    site: Site, way: Proxy, how: str
) -> None:
    lasts = hole(way, how)
    site.worker("w1")
    url = with_port(site.database_url, way.port) + "?sslmode=disable&gssencmode=disable"
    cut = site.worker("w2", jobsync={"url": url}, conf={"e2e_calls": str(site.folder / "calls")})
    site.until_shared("w1", "w2")
    with load(site, sec=0.05, pause=0.02) as stream:
        mortal = site.call("mortal", site.key_of(cut.hostname(), "mortal"), 0, 60.0)
        site.until_begun(mortal.id)
        with lasts:
            site.until_shared("w1")
            last = max(run.began for run in site.history.runs() if run.host == cut.hostname())
            until(lambda: len(site.history.runs(mortal.id)) == 2, "its key runs elsewhere")
        site.until_shared("w1", "w2")
        until(lambda: any(run.began > last and run.host == cut.hostname() for run in site.history.runs()), "it is back")
    site.until_ended(*stream.ids, mortal.id)
    site.assert_serial()
    assert not overlaps(site.history.runs())
    assert {claim["state"] for claim in site.settled(*stream.ids, mortal.id)} == {"done"}
    assert "the coordination database does not answer" in cut.logs()
    site.assert_brokers_are_empty()
    config = CoordinationConfig(**site.settings()["jobsync"])
    longest = calls.longest(site.folder / "calls")
    assert TICK < longest < CONNECT + config.statement_timeout + config.connect_timeout + TICK + SLACK
