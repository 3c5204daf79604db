"""Events: facts are a closed list, said once, and listeners cannot break who emits them."""

from __future__ import annotations

import json
import logging
from string import Formatter
from typing import Any

import pytest

from jobsync_celery.runtime.events import FACTS, LOG_ONLY, Events, plain


def fields_of(fact: str) -> dict[str, Any]:
    names = {name for _, name, _, _ in Formatter().parse(FACTS[fact][1]) if name}
    return {name: [1] if name == "numbers" else 1 for name in names}


def test_what_is_only_logged_is_a_fact() -> None:
    assert set(FACTS) > LOG_ONLY


def test_an_unknown_fact_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        Events()("no_such_fact")


def test_a_fact_without_its_fields_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        Events()("node_left")


@pytest.mark.parametrize("fact", list(FACTS))
def test_every_fact_becomes_one_log_line_of_its_level(fact: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "jobsync_celery"):
        Events()(fact, **fields_of(fact))
    (record,) = caplog.records
    assert record.levelno == FACTS[fact][0] and record.getMessage().startswith("jobsync: ")
    assert vars(record)["jobsync_event"] == fact
    assert set(json.loads(json.dumps(vars(record)["jobsync"]))) >= set(fields_of(fact))


def test_the_fields_of_a_record_are_plain_values_of_bounded_length() -> None:
    told = plain({"error": ValueError("x" * 5000), "numbers": [1, 2, 3], "count": 7, "term": None, "waited": 0.5})
    assert json.loads(json.dumps(told)) == told
    assert told == {"error": "x" * 1000, "numbers": "1-3", "count": 3, "term": None, "waited": 0.5} | {"count": 7}


def test_partitions_are_named_in_spans(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "jobsync_celery"):
        Events()("partitions_taken", numbers=[0, 1, 2, 5, 7, 8])
        Events()("partitions_released", numbers=[])
    assert [record.getMessage() for record in caplog.records] == [
        "jobsync: took partitions 0-2, 5, 7-8",
        "jobsync: released partitions ",
    ]


def test_a_log_line_can_be_another_where_a_fact_means_something_else(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "jobsync_celery"):
        Events({"node_left": "{name} is gone"})("node_left", name="a")
    assert caplog.messages == ["jobsync: a is gone"]
    assert Events({"node_left": "{name} is gone"}).line("node_left", {"name": "a"}) == "a is gone"


def test_a_listener_hears_the_fact_and_its_fields() -> None:
    events, heard = Events(), []
    events.listen(lambda fact, fields: heard.append((fact, fields)))
    events("node_left", name="a")
    assert heard == [("node_left", {"name": "a"})]


def test_a_failing_listener_breaks_neither_the_emitter_nor_the_next_listener(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events, heard = Events(), []

    def fail(*_: object) -> None:
        raise RuntimeError("a user's")

    events.listen(fail)
    events.listen(lambda fact, _: heard.append(fact))
    events("node_left", name="a")
    assert heard == ["node_left"]
    assert "a listener failed on node_left" in caplog.text
