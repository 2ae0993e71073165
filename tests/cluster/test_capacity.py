"""Capacity: how many actors a cluster can have, what is wrong with a request, and what a run waits for."""

import re

import pytest

from ray_app.cluster import capacity
from ray_app.cluster.autoscaling import Autoscaler
from ray_app.cluster.capacity import Capacity, Finding, PoolWatch, Request
from ray_app.cluster.connection import LivingNode
from ray_app.errors import Refused
from ray_app.progress import Progress

CPU_ADVICE = (
    "connect to a cluster with GPUs (--address), or generate on CPUs with --device cpu or --model_path tiny (without"
    " --gpus_per_actor)"
)


def node(gpus: float = 0, cpus: float = 4, is_head: bool = False) -> LivingNode:
    return LivingNode("id", "w1", cpus, gpus, 8e9, is_head)


def scaler(*types: tuple[float, int], most: int = 10) -> Autoscaler:
    return Autoscaler(types, most, "monitor.log")


@pytest.mark.parametrize(
    ("nodes", "autoscaler", "gpus", "now", "ever"),
    [
        ([], scaler((1, 3)), 1, 0, 3),
        ([], scaler((1, 3)), 0.5, 0, 6),
        ([], scaler((1, 3)), 2, 0, 0),
        ([], scaler((8, 2), (1, 5)), 2, 0, 8),
        ([], scaler((1, 9), (4, 2), most=3), 1, 0, 9),  # the largest first: 4 + 4 + 1
        ([], scaler((1, 3), most=0), 1, 0, 0),
        ([], scaler(), 1, 0, 0),
        ([node(2), node(3)], None, 2, 2, 2),  # each on one node
        ([node(1)], scaler((1, 3)), 1, 1, 3),  # it is one of the three
        ([node(1, is_head=True), node(1)], scaler((1, 3)), 1, 2, 4),  # the head is not
        ([node(4)], scaler((1, 3)), 1, 4, 4),
        ([node(8, cpus=3), node(cpus=2)], scaler((1, 3)), 0, 5, 5),
        ([node(2)], None, 0.4, 4, 4),  # two on each GPU, none on both
        ([node(2)], None, 0.1, 20, 20),
        ([], scaler((2, 3)), 0.4, 0, 12),
    ],
)
def test_how_many_actors_a_cluster_can_have(nodes, autoscaler, gpus, now, ever):
    measured = Capacity(nodes, autoscaler)
    assert (measured.actors_now(gpus), measured.actors_ever(gpus)) == (now, ever)


@pytest.mark.parametrize(("gpus", "lost", "left"), [(1, 1, 2), (1, 3, 0), (0.4, 1, 4), (0, 1, 7), (1, 9, 0)])
def test_how_many_actors_are_left_without_some_gpus(gpus, lost, left):
    assert Capacity([node(2), node(1)]).actors_ever_without(lost, gpus) == left


@pytest.mark.parametrize(
    ("request_", "nodes", "autoscaler", "finding"),
    [
        (Request(1), [node(2)], None, None),
        (Request(1), [node()], scaler((1, 3)), None),
        (Request(1, (1, 2)), [node(2)], None, None),
        (Request(1, (1, 3)), [node(2)], scaler((1, 3)), None),
        (
            Request(1),
            [node()],
            None,
            Finding(
                "--gpus_per_actor 1: the largest node has 0 GPUs, and no autoscaler can add a larger one; "
                + CPU_ADVICE,
                True,
            ),
        ),
        (
            Request(1),
            [node()],
            scaler((1, 3), most=0),
            Finding(
                "--gpus_per_actor 1: the largest node has 0 GPUs, and the autoscaler can add nodes with at most 0; "
                + CPU_ADVICE,
                True,
            ),
        ),
        (
            Request(4),
            [node(2)],
            None,
            Finding(
                "--gpus_per_actor 4: the largest node has 2 GPUs, and no autoscaler can add a larger one; use"
                " --gpus_per_actor 1",
                True,
            ),
        ),
        (
            Request(2),
            [node()],
            scaler((1, 3)),
            Finding(
                "--gpus_per_actor 2: the largest node has 0 GPUs, and the autoscaler can add nodes with at most 1; use"
                " --gpus_per_actor 1",
                True,
            ),
        ),
        (
            Request(2),
            [node(2)],
            None,
            Finding(
                "--gpus_per_actor 2: an actor uses one GPU, the others would be idle; use --gpus_per_actor 1", False
            ),
        ),
        (
            Request(1, (3, 3)),  # more nodes may join
            [node(2)],
            None,
            Finding(
                "--num_workers 3: with --gpus_per_actor 1 the cluster has room for 2 actors at most; use"
                " --num_workers 2, or add nodes",
                False,
            ),
        ),
        (
            Request(0.5, (1, 9)),  # the limit may be raised while it runs
            [node(2)],
            scaler((1, 3)),
            Finding(
                "--num_workers 1:9: with --gpus_per_actor 0.5 the cluster has room for 6 actors at most, counting the"
                " nodes that its autoscaler can add; use --num_workers 1:6, or raise max_workers in the cluster's"
                " configuration",
                False,
            ),
        ),
        (
            Request(1, (4, 8)),
            [node()],
            scaler((1, 3)),
            Finding(
                "--num_workers 4:8: with --gpus_per_actor 1 the cluster has room for 3 actors at most, counting the"
                " nodes that its autoscaler can add; use --num_workers 3, or raise max_workers in the cluster's"
                " configuration",
                True,
            ),
        ),
        (
            Request(0, (9, 9)),
            [node()],
            None,
            Finding("--num_workers 9: each actor reserves one CPU, and the cluster has 4; use --num_workers 4", False),
        ),
    ],
)
def test_what_is_wrong_with_a_request(request_, nodes, autoscaler, finding):
    measured = Capacity(nodes, autoscaler)
    assert list(measured.check(request_)) == ([finding] if finding else [])
    if finding and finding.prevents_run:
        with pytest.raises(Refused, match=f"^{re.escape(finding.text)}$"):
            measured.choose_pool_size(request_, batches=100)
    else:
        measured.choose_pool_size(request_, batches=100)


def test_a_pool_is_as_large_as_requested_or_possible_and_no_larger_than_the_batches():
    choose = Capacity([node()], scaler((1, 3))).choose_pool_size
    assert choose(Request(1), 100) == 3
    assert choose(Request(1, (1, 2)), 100) == 2
    assert choose(Request(1, (1, 8)), 100) == 8
    assert choose(Request(1), 2) == 2
    assert choose(Request(0, (2, 5)), 100) == 5
    assert choose(Request(0), 100) == 4
    assert Capacity([node(cpus=0)]).choose_pool_size(Request(0), 100) == 1


def test_the_line_says_what_it_waits_for_and_after_ten_minutes_where_to_look(monkeypatch, capsys):
    now, places, actors = [0.0], [0], [0]
    monkeypatch.setattr(capacity.time, "monotonic", lambda: now[0])
    pool = PoolWatch(4, lambda: actors[0], lambda: places[0], scaler((1, 4)))
    shown = Progress(100, 0)
    now[0] = 40
    assert shown.describe(pool.state()) == "0 of 4 GPU workers up, waiting for the autoscaler, 40 s"
    for now[0] in (601, 611):
        assert shown.describe(pool.state()).startswith("0 of 4 GPU workers up, waiting")
    assert len(re.findall(r"no GPU worker came in 10 minutes: .* in monitor.log", capsys.readouterr().err)) == 1
    places[0] = 1
    assert shown.describe(pool.state()) == "1 of 4 GPU workers up, loading the model, 611 s"
    actors[0], now[0] = 1, 3_600
    shown.add(10, 0)
    assert "10 of 100 images" in shown.describe(pool.state())
    assert shown.describe(pool.state()).endswith("1 actors up")
    places[0], actors[0], now[0] = 0, 0, 3_620  # taken away: the minutes with an actor do not count
    assert shown.describe(pool.state()) == "10 of 100 images, 0 of 4 GPU workers up, waiting for the autoscaler, 20 s"
    assert capsys.readouterr().err == ""


def test_a_run_without_an_autoscaler_waits_for_nothing():
    state = PoolWatch(2, lambda: 0, lambda: 0, None).state()
    assert (state.up, state.requested, state.waiting_for) == (0, 2, None)
