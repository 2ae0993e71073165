"""The ledger: who is blamed for a death, and for how long what hangs is waited for."""

from ray_app.ledger import ALONE_TRIES, NODES_EXCUSED, Ledger


def ledger_with_a_prompt_alone() -> Ledger:
    """A worker died with batch b; another draws its prompt p alone."""
    ledger = Ledger()
    ledger.loading("w", "node-1", 7)
    assert ledger.begin("b", "w")
    assert not ledger.begin("b", "w")
    assert ledger.begin_alone("b", "p", "w") is None
    return ledger


def test_a_prompt_that_kills_alone_is_given_up():
    ledger = ledger_with_a_prompt_alone()
    for _ in range(ALONE_TRIES - 1):
        ledger.status({"node-1"})
        assert ledger.begin_alone("b", "p", "w") is None
    given_up = ledger.begin_alone("b", "p", "w")
    assert given_up is not None
    assert given_up[0] == "WorkerDied"


def test_a_node_that_goes_is_not_held_against_the_prompt_but_not_for_ever():
    ledger = ledger_with_a_prompt_alone()
    tries = 0
    while ledger.status({"node-2"}) and ledger.begin_alone("b", "p", "w") is None:
        tries += 1
    assert tries == NODES_EXCUSED + ALONE_TRIES - 1


def test_what_a_dead_node_had_in_flight_is_not_taken_for_hung():
    ledger = ledger_with_a_prompt_alone()
    assert [worker for worker, _ in ledger.status({"node-1", "node-2"}).in_flight] == ["w"]
    assert ledger.status({"node-2"}).in_flight == []
