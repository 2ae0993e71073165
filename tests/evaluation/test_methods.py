"""Each method's formula on vectors for which it can be worked out by hand."""

import typing

import numpy as np
import pytest

from ray_app.evaluation.inputs import Inputs
from ray_app.evaluation.methods import METHODS, ipcir
from ray_app.evaluation.options import MethodName

BUFFERS = np.empty((1, 2), np.float32), np.empty((1, 2), np.float32)


def inputs(**more) -> Inputs:
    text = np.array([[3, 4], [0, 2]], np.float32)
    proxy = np.array([[1, 0], [0, 0.5]], np.float32)
    return Inputs(text, more.pop("proxy", proxy), more.pop("proxy_term", proxy), **more)


def test_flags_name_every_method():
    assert typing.get_args(MethodName) == tuple(METHODS)


def test_text_and_proxy_are_compared_by_direction():
    assert METHODS["text"].text_vectors(inputs()).tolist() == pytest.approx(np.array([[0.6, 0.8], [0, 1]]))
    assert METHODS["proxy"].proxy_vectors(inputs()).tolist() == [[1, 0], [0, 1]]


def test_text_plus_proxy_by_hand():
    """0.75 · 0.8 + 0.25 · 0.4 = 0.7; at the ends it is one of them, to the last bit."""
    by_text, by_proxy = np.float32([[0.8, 0.1]]), np.float32([[0.4, 0.3]])
    combine = METHODS["text+proxy"].combine
    assert combine(by_text, by_proxy, 0.25, BUFFERS)[0, 0] == pytest.approx(0.7)
    assert combine(by_text, by_proxy, 0.0, BUFFERS).tolist() == by_text.tolist()
    assert combine(by_text, by_proxy, 1.0, BUFFERS).tolist() == by_proxy.tolist()


def test_ipcir_by_hand():
    """max(P) = 1, max(S₀) = 0.5, max(D) = 0.25: s counts twice, d four times.

    r₀ = 2 (0.5, 0) + 4 (0.25, 0.25) + (1, 0) = (3, 1);   r₁ = 2 (0, 0.25) + 4 (0, -1) + (0, 0.5) = (0, -3).
    λ = 0.25, S = 0.8, R = 2: 0.25 · 0.8 + 0.75 · 2 · 0.8 = 1.4.
    """
    reference = np.array([[0.5, 0], [0, 0.25]], np.float32)
    direction = np.array([[0.25, 0.25], [0, -1]], np.float32)
    given = inputs(reference=reference, direction=direction)
    assert ipcir.proxy_vectors(given).tolist() == [[3, 1], [0, -3]]
    left_out = inputs(reference=reference, direction=direction, proxy_term=np.zeros((2, 2), np.float32))
    assert ipcir.proxy_vectors(left_out).tolist() == [[2, 1], [0, -3.5]]
    assert ipcir.text_vectors(given) is given.text
    assert ipcir.combine(np.float32([[0.8, 0]]), np.float32([[2, 0]]), 0.25, BUFFERS)[0].tolist() == pytest.approx(
        [1.4, 0]
    )


def test_ipcir_says_what_it_lacks():
    vectors = np.ones((2, 2), np.float32)
    assert ipcir.missing(inputs()) == "vectors of all reference photos"
    assert "--caption_field" in str(ipcir.missing(inputs(reference=vectors)))
    assert ipcir.missing(inputs(reference=vectors, direction=vectors)) is None
