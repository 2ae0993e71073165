"""AP@k, Recall@k, overlap: computed by hand, by scikit-learn where its definition is the same, and by plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from ray_app.evaluation import metrics


def test_average_precision_by_hand():
    """Hits at ranks 1, 3 and 6: precision there is 1/1, 2/3 and 3/6.

    Of 4 right images: AP@5 = (1 + 2/3) / 4, AP@10 = (1 + 2/3 + 1/2) / 4. Of 7: AP@5 = (1 + 2/3) / 5.
    """
    best = np.array([[10, 11, 12, 13, 14, 15, 16, 17, 18, 19]])
    few = metrics.find_hits(best, np.array([[10, 12, 15, 99]]))
    assert metrics.average_precision(few, np.array([4]), 5) == pytest.approx([100 * (1 + 2 / 3) / 4])
    assert metrics.average_precision(few, np.array([4]), 10) == pytest.approx([100 * (1 + 2 / 3 + 1 / 2) / 4])
    many = metrics.find_hits(best, np.array([[10, 12, 15, 96, 97, 98, 99]]))
    assert metrics.average_precision(many, np.array([7]), 5) == pytest.approx([100 * (1 + 2 / 3) / 5])


def test_padding_is_no_right_image():
    best = np.array([[3, 0], [1, 2]])
    hits = metrics.find_hits(best, np.array([[3, -1], [2, 1]]))
    assert hits.tolist() == [[True, False], [True, True]]


def test_recall_is_of_the_one_target():
    best = np.array([[4, 5, 6], [4, 5, 6], [4, 5, 6]])
    target = np.array([4, 6, 9])
    assert metrics.recall(best, target, 1).tolist() == [100, 0, 0]
    assert metrics.recall(best, target, 3).tolist() == [100, 100, 0]


def test_overlap_counts_common_images_in_any_order():
    assert metrics.overlap(np.array([[1, 2, 3, 4]]), np.array([[4, 9, 1, 8]])).tolist() == [50]


def test_cosine_by_hand():
    """(3, 4) and (4, 3): 24 / 25."""
    assert metrics.cosine(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])) == pytest.approx([96])


rankings = st.permutations(range(30)).map(np.array)
right_images = st.sets(st.integers(0, 29), min_size=1, max_size=20)


@given(rankings, right_images)
def test_average_precision_of_the_whole_gallery_is_that_of_scikit_learn(best, relevant):
    """Down to the last image, and with no more right images than k, both divide by the number of right images."""
    is_right = np.isin(np.arange(30), list(relevant))
    scores = np.empty(30)
    scores[best] = np.arange(30, 0, -1)
    hits = metrics.find_hits(best[None], np.array([sorted(relevant)]))
    own = metrics.average_precision(hits, np.array([len(relevant)]), 30)
    assert own == pytest.approx([100 * average_precision_score(is_right, scores)])


@given(st.lists(rankings, min_size=2, max_size=5), st.data(), st.sampled_from([1, 5, 10]))
def test_recall_is_the_top_k_accuracy_of_scikit_learn(lists, data, k):
    best = np.stack(lists)
    targets = np.array([data.draw(st.integers(0, 29)) for _ in best])
    scores = np.empty(best.shape)
    np.put_along_axis(scores, best, np.arange(30, 0, -1)[None], axis=1)
    expected = top_k_accuracy_score(targets, scores, k=k, labels=np.arange(30))
    assert metrics.recall(best, targets, k).mean() == pytest.approx(100 * expected)


@given(rankings, right_images, st.sampled_from(metrics.CUTOFFS))
def test_average_precision_at_k_is_the_formula(best, relevant, k):
    total, found = 0.0, 0
    for rank, image in enumerate(best[:k], 1):
        if image in relevant:
            found += 1
            total += found / rank
    hits = metrics.find_hits(best[None], np.array([sorted(relevant)]))
    own = metrics.average_precision(hits, np.array([len(relevant)]), k)
    assert own == pytest.approx([100 * total / min(k, len(relevant))])
