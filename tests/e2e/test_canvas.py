"""Canvas: chains, groups and chords of coordinated tasks complete, each part once and at its owner."""

import pytest
from celery import chain, chord, group

from e2e.site import Site
from e2e.waiting import until

SHARED = {"workers": ("w1", "w2")}


def test_a_chain_hands_results_from_owner_to_owner(shared: Site) -> None:
    step, add = shared.app.tasks["e2e.step"], shared.app.tasks["e2e.add"]
    keys = [shared.key_of(shared.node(name), "chain") for name in ("w1", "w2")]
    result = chain(step.s(keys[0], 1), add.s(keys[1], 10), add.s(keys[0], 100), add.s(key=keys[1], more=1000)).delay()
    assert result.get(timeout=30) == 1111
    ids = [result.id, result.parent.id, result.parent.parent.id, result.parent.parent.parent.id]
    shared.assert_once(ids)
    shared.assert_at_home(*ids)


def test_a_group_and_a_chord_complete_with_coordinated_and_ordinary_parts(shared: Site) -> None:
    step, plain, total = (shared.app.tasks[f"e2e.{name}"] for name in ("step", "plain", "total"))
    several = group(step.s(f"group{n % 3}", n) for n in range(9)).delay()
    summed = chord([step.s(f"chord{n % 3}", n) for n in range(10)], total.s(key="sum")).delay()
    mixed = chord([plain.s(1), step.s("chord0", 2), plain.s(3)], total.s(key="sum")).delay()
    nested = chord([chain(step.s("nest", 1), shared.app.tasks["e2e.add"].s("nest", 1)) for _ in range(3)], total.s("n"))
    assert several.get(timeout=30) == list(range(9))
    assert (summed.get(timeout=30), mixed.get(timeout=30), nested.delay().get(timeout=30)) == (45, 6, 6)
    ids = [child.id for child in several] + [child.id for child in summed.parent] + [summed.id, mixed.id]
    shared.assert_once(ids)
    shared.assert_at_home(*ids)


def test_links_are_called_once_after_success_and_after_failure(shared: Site) -> None:
    add, heard = shared.app.tasks["e2e.add"], shared.app.tasks["e2e.heard"]
    linked = add.s("linked", 5).set(task_id=f"{shared.prefix}linked")
    good = shared.call("step", "link", 1, link=linked, link_error=heard.s().set(task_id=f"{shared.prefix}unheard"))
    bad = shared.call("fail", "link", link_error=heard.s().set(task_id=f"{shared.prefix}heard"))
    assert good.get(timeout=30) == 1
    with pytest.raises(ValueError, match="as asked"):
        bad.get(timeout=30)
    ids = [f"{shared.prefix}linked", f"{shared.prefix}heard"]
    until(lambda: set(ids) <= shared.history.ended(), "both links were called")
    shared.assert_once(ids)
    shared.assert_at_home(*ids)
    assert shared.history.runs(f"{shared.prefix}unheard") == []
