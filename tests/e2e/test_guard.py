"""``guard`` and ``complete``: what a body commits under its claim."""

from typing import Any

import pytest

from e2e.site import Site
from e2e.waiting import until

TABLE = "CREATE TABLE effect (key text, fence bigint, attempt int)"


@pytest.mark.cluster("w1", "w2")
def test_the_transaction_of_a_hung_and_evicted_worker_rolls_back(celery_setup: Any, site: Site) -> None:
    site.rows(TABLE)
    hung = celery_setup.worker_cluster[0]
    result = site.call("effect", site.key_of(hung.hostname(), "guarded"), "guard", 1.0)
    site.until_begun(result.id)
    hung.freeze()
    until(lambda: len(site.history.runs(result.id)) == 2, "the other node runs it")
    until(lambda: site.claims(result.id)[0]["state"] == "done", "and finishes it")
    assert result.get(timeout=30) == "guard"
    hung.thaw()
    until(lambda: {run.how for run in site.history.runs(result.id)} == {"Fenced", "returned"}, "the first is fenced")
    [claim] = site.settled(result.id)
    assert (claim["state"], claim["attempt"], claim["node"]) == ("done", 2, site.node("w2"))
    assert site.rows("SELECT fence, attempt FROM effect") == [{"fence": claim["fence"], "attempt": 2}]
    site.until_shared("w1", "w2")
    assert [run.attempt for run in site.history.runs(result.id)] == [1, 2]
    assert site.call("step", claim["task_key"], 5).get(timeout=30) == 5
    until(lambda: site.call("plain", 1).get(timeout=30) == 1)
    site.assert_brokers_are_empty()
    assert len(site.history.runs(result.id)) == 2
    assert result.get(timeout=30) == "guard", "the fenced failure did not overwrite the result"


@pytest.mark.cluster("w1")
def test_complete_makes_an_effect_happen_once_though_the_child_dies_after_it(celery_setup: Any, site: Site) -> None:
    site.rows(TABLE)
    once = site.app.tasks["e2e.effect"].delay("once", "complete", die=True)
    guarded = site.app.tasks["e2e.effect"].delay("twice", "guard", die=True)
    plain = site.call("effect", "plain", "complete")
    after = [site.call("step", key, 1) for key in ("once", "twice")]
    assert guarded.get(timeout=30) == "guard"
    assert plain.get(timeout=30) == "complete"
    assert site.results(after) == [1, 1]
    attempts = {row["key"]: row["n"] for row in site.rows("SELECT key, count(*) AS n FROM effect GROUP BY key")}
    assert attempts == {"once": 1, "twice": 2, "plain": 1}
    assert [(c["state"], c["attempt"]) for c in site.settled(once.id, plain.id)] == [("done", 1), ("done", 1)]
    assert len(site.history.runs(once.id)) == 1
    site.assert_serial()
    site.assert_brokers_are_empty()
