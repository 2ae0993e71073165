"""The in-flight tracker's rules: what counts as a death, who is blamed, what is in flight, how long batches take."""

from types import SimpleNamespace

import pytest

from ray_app.work_queue import in_flight
from ray_app.work_queue.in_flight import InFlightTracker, Terms

TERMS = Terms("prompt", "DenoiseTimeout", "--denoise_timeout")

DIED = ("WorkerDied", "Run on its own, this prompt crashed the worker 2 times (crash or out of memory).")
HUNG = ("DenoiseTimeout", "Run on its own, this prompt exceeded the time limit 2 times (--denoise_timeout).")
NODES = {"node-1", "node-2"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The tracker's clock; `now` is set by the test."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(in_flight, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def book(clock: SimpleNamespace) -> InFlightTracker:
    """A tracker that knows worker w1 on node-1, process 11, and w2 on node-2, process 22; both have loaded."""
    book = InFlightTracker(TERMS)
    for worker, node, pid in (("w1", "node-1", 11), ("w2", "node-2", 22)):
        book.loading(worker, node, pid)
        book.loaded(worker)
    return book


def test_a_worker_that_loads_again_without_having_loaded_died_of_it():
    book = InFlightTracker(TERMS)
    book.loading("w1", "node-1", 11)
    assert (book.status(NODES).loads, book.status(NODES).deaths_while_loading) == (0, 0)
    book.loading("w1", "node-1", 12)
    book.loading("w2", "node-1", 13)
    book.loading("w1", "node-1", 14)
    assert (book.status(NODES).loads, book.status(NODES).deaths_while_loading) == (0, 2)


def test_a_worker_that_had_loaded_did_not_die_of_loading():
    book = InFlightTracker(TERMS)
    for pid, loads in ((11, 1), (12, 2)):
        book.loading("w1", "node-1", pid)
        book.loaded("w1")
        assert (book.status(NODES).loads, book.status(NODES).deaths_while_loading) == (loads, 0)


def test_a_batch_is_in_flight_from_its_begin_to_its_end(book, clock):
    assert book.begin("b1", "w1")
    clock.now = 4.0
    assert book.begin("b2", "w2")
    clock.now = 10.0
    assert book.status(NODES).in_flight == [("w1", 10.0), ("w2", 6.0)]
    book.end("b1")
    assert book.status(NODES).in_flight == [("w2", 6.0)]
    book.end("b2")
    assert book.status(NODES).in_flight == []


def test_the_time_of_a_batch_that_waits_begins_with_its_turn(book, clock):
    """What is prepared before has the same limit as what is processed."""
    assert book.begin("b1", "w1")
    assert book.begin("b2", "w1")
    clock.now = 4.0
    assert book.status(NODES).in_flight == [("w1", 4.0), ("w1", 4.0)]
    book.wait_for_turn("b2")
    clock.now = 10.0
    assert book.status(NODES).in_flight == [("w1", 10.0)]
    book.end("b1")
    book.take_turn("b2")
    clock.now = 13.0
    assert book.status(NODES).in_flight == [("w1", 3.0)]
    book.end("b2")
    assert book.status(NODES).median_seconds == 6.5


def test_a_batch_that_waits_when_its_worker_dies_is_a_replay_too(book):
    assert book.begin("b2", "w1")
    book.wait_for_turn("b2")
    assert not book.begin("b2", "w2")


def test_a_batch_that_begins_again_before_it_ended_is_a_replay(book, clock):
    assert book.begin("b1", "w1")
    clock.now = 5.0
    assert not book.begin("b1", "w2")
    assert (book.status(NODES).replays, book.status(NODES).in_flight) == (1, [("w2", 0.0)])
    book.end("b1")
    assert book.begin("b1", "w1")
    assert book.status(NODES).replays == 1


def test_the_median_is_that_of_the_last_1000_batches(book, clock):
    assert book.status(NODES).median_seconds is None
    for seconds in (1.0, 9.0, 2.0):
        book.begin("b1", "w1")
        clock.now += seconds
        book.end("b1")
    assert book.status(NODES).median_seconds == 2.0
    for number in range(1_500):
        book.begin("b1", "w1")
        clock.now += 4.0 if number < 900 else 7.0
        book.end("b1")
    assert book.status(NODES).median_seconds == 7.0  # of the last 1,000, 600 took so long


def test_a_prompt_that_kills_two_workers_alone_is_given_up(book):
    assert [book.begin_alone("b1", "p", worker) for worker in ("w1", "w2", "w1")] == [None, None, DIED]


def test_a_prompt_that_comes_out_is_tried_afresh(book):
    """Another prompt of its batch kills, so it runs alone again and again."""
    for _ in range(5):
        assert book.begin_alone("b1", "harmless", "w1") is None
        book.end_alone("harmless")
    assert [book.begin_alone("b1", "harmless", "w1") for _ in range(3)] == [None, None, DIED]


def test_what_hangs_after_a_prompt_came_out_is_not_blamed_on_it(book):
    assert book.begin_alone("b1", "p", "w1") is None
    book.end_alone("p")
    book.time_out("w1")
    assert [book.begin_alone("b1", "p", "w1") for _ in range(3)] == [None, None, DIED]


def test_prompts_are_blamed_one_by_one(book):
    assert [book.begin_alone("b1", "p", "w1") for _ in range(2)] == [None, None]
    assert book.begin_alone("b1", "q", "w1") is None
    assert book.begin_alone("b1", "p", "w1") == DIED
    assert book.begin_alone("b1", "q", "w1") is None


def test_a_prompt_alone_is_in_flight_in_place_of_its_batch(book, clock):
    book.begin("b1", "w1")
    clock.now = 100.0
    book.begin("b1", "w2")
    clock.now = 130.0
    book.begin_alone("b1", "p", "w2")
    clock.now = 135.0
    assert book.status(NODES).in_flight == [("w2", 5.0)]
    book.end_alone("p")
    book.begin_alone("b1", "q", "w2")
    assert book.status(NODES).in_flight == [("w2", 0.0)]


def test_after_a_prompt_is_given_up_its_batch_is_in_flight_again(book, clock):
    for _ in range(2):
        book.begin_alone("b1", "p", "w1")
    clock.now = 50.0
    assert book.begin_alone("b1", "p", "w2") == DIED
    clock.now = 53.0
    assert book.status(NODES).in_flight == [("w2", 3.0)]


def test_what_timed_out_is_in_flight_no_more_until_it_begins_again(book, clock):
    """Or its worker's successor, which has the same name, would be killed for it."""
    book.begin("b1", "w1")
    book.begin("b2", "w2")
    clock.now = 700.0
    assert book.time_out("w1") == ("node-1", 11)
    assert book.status(NODES).in_flight == [("w2", 700.0)]
    book.loading("w1", "node-2", 33)
    assert book.status(NODES).in_flight == [("w2", 700.0)]
    assert not book.begin("b1", "w1")
    assert book.status(NODES).in_flight == [("w1", 0.0), ("w2", 700.0)]
    assert book.time_out("w1") == ("node-2", 33)


def test_a_prompt_that_hangs_alone_twice_is_given_up_as_such(book):
    for _ in range(2):
        assert book.begin_alone("b1", "p", "w1") is None
        book.time_out("w1")
        assert book.status(NODES).in_flight == []
    assert book.begin_alone("b1", "p", "w1") == HUNG


def test_what_a_dead_node_had_in_flight_has_not_hung(book):
    book.begin("b1", "w1")
    book.begin("b2", "w2")
    assert [worker for worker, _ in book.status({"node-2"}).in_flight] == ["w2"]
    assert book.status(set()).in_flight == []


def test_three_nodes_that_die_with_a_prompt_are_not_held_against_it(book):
    """Two tries more, as of any prompt: it may be what takes all of a node's memory."""
    for _ in range(5):
        assert book.begin_alone("b1", "p", "w1") is None
        book.status({"node-2"})
    assert book.begin_alone("b1", "p", "w1") == DIED


def test_a_batch_that_was_lost_with_its_node_runs_whole_again(book):
    """Three times: it may be what takes all of a node's memory."""
    assert book.begin("b1", "w1")
    for _ in range(3):
        book.status({"node-2"})
        assert book.begin("b1", "w1")
    book.status({"node-2"})
    assert not book.begin("b1", "w1")
    assert not book.begin("b1", "w1")
    assert book.status(NODES).replays == 5


def test_a_batch_whose_worker_died_alone_stays_in_pieces_when_a_node_goes(book):
    book.begin("b1", "w1")
    assert not book.begin("b1", "w2")
    book.status({"node-1"})
    assert not book.begin("b1", "w1")


def test_nodes_that_are_gone_are_known_before_anybody_looks(clock):
    alive = {"node-1", "node-2"}
    book = InFlightTracker(TERMS, lambda: alive)
    book.loading("w1", "node-1", 11)
    book.loading("w2", "node-2", 22)
    assert book.begin("b1", "w1")
    assert book.begin("b2", "w2")
    alive.remove("node-1")
    assert book.begin("b1", "w2")
    assert not book.begin("b2", "w2")


def test_what_workers_have_to_say_is_told_once(book):
    for line in ("disk is full", "disk is full", "other"):
        book.notice(line, line)
    assert book.status(NODES).notices == ["disk is full", "other"]
    book.notice("another disk is full", "disk is full")
    book.notice("last", "last")
    assert book.status(NODES).notices == ["last"]
    book.notice("at the end", "at the end")
    assert book.finish() == (0, ["at the end"])
    assert book.finish() == (0, [])
    for number in range(1_000):
        book.notice(f"line {number}", f"topic {number}")
    assert len(book.finish()[1]) < 100
