import numpy as np
import pytest

from amdim_tf import datasets, protocols
from amdim_tf.errors import InputError


def blobs(count, classes, seed, spread=0.3):
    """Features (count,8) around one random direction per class."""
    centers = np.random.default_rng(0).normal(size=(classes, 8))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    features = centers[labels] + spread * generator.normal(size=(count, 8))
    return features.astype("float32"), labels


def test_separable_features_are_separated():
    train, test = blobs(600, 5, 1), blobs(200, 5, 2)
    accuracy = protocols.measure(train, test, 5, seed=0)
    assert set(accuracy) == {"linear", "mlp", "knn"} and min(accuracy.values()) > 0.95
    assert protocols.measure(train, test, 5, seed=0) == accuracy
    shuffled = np.random.default_rng(3).permutation(train[1])
    assert max(protocols.measure((train[0], shuffled), test, 5, seed=0).values()) < 0.45


def test_neighbours_know_only_the_classes_they_have_seen():
    features, labels = blobs(50, 3, 1)
    scores = protocols.knn((features, labels + 2), (features, labels + 2), classes=6)
    assert scores.shape == (50, 6) and (scores[:, [0, 1, 5]] == 0).all()
    np.testing.assert_allclose(scores.sum(1), 1)


def test_report_by_hand():
    labels = np.repeat([0, 1, 2, 3], 25)
    scores = np.zeros((100, 6))
    predicted = np.where(np.arange(100) % 5 == 0, 5, labels)  # every fifth image is taken for 5
    scores[np.arange(100), predicted] = 2
    scores[np.arange(100), labels] += 1
    report, confusion = protocols.report(scores, labels, [*"abcdef"])
    assert report["top1"] == 0.8 and report["top5"] == 1.0
    assert report["per_class"] == dict.fromkeys("abcd", 0.8) | {"e": 0, "f": 0}
    np.testing.assert_array_equal(confusion[:4, 5], 5)
    assert confusion.sum() == 100
    low, high = report["interval"]
    # The binomial deviation of 80 of 100 is 0.04.
    assert low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.02)
    assert high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.02)


def test_top_k():
    scores, labels = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), np.array([1, 0])
    assert [protocols.top(scores, labels, k) for k in (1, 2, 3)] == [0, 0.5, 1]


def test_balanced_subsets_are_fixed_and_leave_no_class_empty():
    split = datasets.photo_patches().train
    subset = protocols.balanced_subset(split, 0.1, 14)
    counts = np.bincount(subset.labels())
    assert (counts == int(0.1 * split.size / 14)).all() and subset.size == counts.sum()
    again = protocols.balanced_subset(split, 0.1, 14)
    for (ours, _), (theirs, _) in zip(subset.examples, again.examples, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match="at least 0.0034 of 4139.*label_fraction=0.002.*class 0"):
        protocols.balanced_subset(split, 0.002, 14)
