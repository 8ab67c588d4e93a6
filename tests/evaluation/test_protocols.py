"""Protocols on features that are made here, against values by hand and the brute force."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from amdim_tf.config import load_config
from amdim_tf.errors import InputError
from amdim_tf.evaluation import neighbours
from amdim_tf.evaluation.classifiers import fit_on_features, predictions
from amdim_tf.evaluation.evaluation import Settings
from amdim_tf.evaluation.features import Features
from amdim_tf.evaluation.fractions import balanced_places
from amdim_tf.evaluation.predictions import Predictions, interval, rank
from amdim_tf.evaluation.protocols.knn import knn
from amdim_tf.evaluation.rows import measure_row


def blobs(count, classes, seed, spread=0.3):
    """Features (count,8) around one random direction per class."""
    centers = np.random.default_rng(0).normal(size=(classes, 8))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    features = centers[labels] + spread * generator.normal(size=(count, 8))
    return Features(features.astype("float32"), labels)


def random_features(count, width, seed):
    values = np.random.default_rng(seed).standard_normal((count, width), "float32")
    return Features(values, np.zeros(count, int))


@pytest.mark.long
def test_separable_features_are_separated():
    train, test, config = blobs(600, 5, 1), blobs(200, 5, 2), load_config("photo_patches")
    accuracy = measure_row(train, test, 5, config)
    assert set(accuracy) == {"linear", "mlp", "knn"} and min(accuracy.values()) > 0.95
    assert measure_row(train, test, 5, config) == accuracy
    shuffled = Features(train.values, np.random.default_rng(3).permutation(train.labels))
    assert max(measure_row(shuffled, test, 5, config).values()) < 0.45


@pytest.mark.parametrize("count", [2, 255, 257, 513])
def test_no_batch_of_the_classifiers_has_one_image(count):
    """Batch norm makes numbers of it that are not finite, which no accuracy may come from."""
    train, test = blobs(count, 3, 1), blobs(200, 3, 2)
    found = fit_on_features(train, test, 3, load_config("photo_patches"))
    assert set(found) == {"linear", "mlp"}
    if count > 2:
        assert min(each.accuracy() for each in found.values()) > 0.9


def test_too_few_images_to_learn_from_are_refused():
    test = blobs(10, 3, 2)
    for protocol in (
        lambda train: knn(train, test, 3),
        lambda train: fit_on_features(train, test, 3, load_config("photo_patches")),
    ):
        with pytest.raises(InputError, match="two or more labelled images.*Received: 1"):
            protocol(blobs(1, 3, 1))


def test_logits_that_are_not_finite_give_no_accuracy():
    labels, best = np.array([0, 1, -1]), {name: np.zeros((3, 2), int) for name in ("linear", "mlp")}
    finite = np.array([[True, True], [True, False], [False, False]])
    with pytest.raises(InputError, match="classifier mlp must give finite.* 1 of 2 test images"):
        predictions([(labels, best, finite)])
    found = predictions([(labels, best, finite | True)])
    assert found["mlp"].accuracy() == 0.5 and len(found["mlp"].labels) == 2
    with pytest.raises(InputError, match="test images to measure by. Received: none"):
        predictions([(labels - 2, best, finite)])


def test_neighbours_are_those_of_the_brute_force(monkeypatch):
    for name, value in (("BLOCK", 300), ("QUERIES", 64), ("QUERY_BYTES", 4 * 32 * 150)):
        monkeypatch.setattr(neighbours, name, value)
    known, queries = random_features(2000, 32, 0), random_features(400, 32, 1)
    places, cosines = neighbours.nearest(known, queries, 10)
    index = NearestNeighbors(n_neighbors=10, metric="cosine").fit(known.values)
    distances, expected = index.kneighbors(queries.values)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-5)
    assert (places == expected).mean() > 0.999  # others are equal cosines, to rounding

    votes = Features(known.values, np.random.default_rng(2).integers(0, 7, 2000))
    expected = KNeighborsClassifier(10, metric="cosine").fit(votes.values, votes.labels)
    scores = expected.predict_proba(queries.values)
    ranked = knn(votes, queries, 7).ranked
    assert (ranked[:, 0] == scores.argmax(1)).mean() > 0.995
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    voted = np.take_along_axis(scores, order, 1) > 0
    assert (ranked == np.where(voted, order, -1)).mean() > 0.995

    def by_temperature(distances):
        return np.exp((1 - distances) / 0.07)

    weighted = KNeighborsClassifier(20, weights=by_temperature, metric="cosine")
    scores = weighted.fit(votes.values, votes.labels).predict_proba(queries.values)
    found = knn(votes, queries, 7, 20)
    assert found.neighbours == 20
    assert (found.weighted.ranked[:, 0] == scores.argmax(1)).mean() > 0.995
    assert (found.weighted.ranked[:, 0] != found.ranked[:, 0]).any()
    report, _ = found.report(list("abcdefg"))
    assert report["top1"] == found.accuracy() != report["weighted"]["top1"]


def test_of_equal_cosines_the_earlier_comes_first(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 3)
    values = np.float32([[0, 0], [1, 0], [2, 0], [0, 1], [3, 0], [-1, 0], [5, 0]])
    known = Features(values, np.zeros(7, int))
    places, cosines = neighbours.nearest(known, Features(np.float32([[4, 0]]), np.zeros(1, int)), 7)
    assert places.tolist() == [[1, 2, 4, 6, 0, 3, 5]]
    np.testing.assert_allclose(cosines, [[1, 1, 1, 1, 0, 0, -1]], atol=1e-6)


def test_of_equal_votes_the_smaller_class_comes_first_and_none_without_a_vote():
    values = np.float32([[1, 0.01 * i] for i in range(4)])
    known = Features(values, np.array([4, 2, 4, 2]))
    found = knn(known, Features(values[:1], np.array([3])), 6)
    assert found.ranked.tolist() == [[2, 4, -1, -1, -1]]
    # The class 3 got no vote, so it is not among the first five.
    assert found.accuracy(5) == 0


def test_more_neighbours_than_images():
    known = Features(np.eye(4, dtype="float32"), np.zeros(4, int))
    assert knn(known, known, 2).neighbours == 4
    with pytest.raises(InputError, match="knn must be at most the 4 labelled images"):
        knn(known, known, 2, 20)
    with pytest.raises(InputError, match="knn must be at least 1"):
        Settings(neighbours=0)


def test_features_of_images_without_label_do_not_count():
    values, labels = np.arange(12, dtype="float32").reshape(6, 2), np.array([0, -1, 1, 2, -1, 1])
    features = Features(values, labels)
    assert len(features) == 4 and features.labels.tolist() == [0, 1, 2, 1]
    assert features.block(1, 3).tolist() == [[4, 5], [6, 7]]
    part = features.within(np.array([1, 2, 5]))
    assert part.labels.tolist() == [1, 1] and part.at([1]).tolist() == [[10, 11]]
    mean, deviation = features.moments()
    np.testing.assert_allclose(mean, values[[0, 2, 3, 5]].mean(0))
    np.testing.assert_allclose(deviation, values[[0, 2, 3, 5]].std(0), rtol=1e-6)


def test_report_by_hand():
    labels = np.repeat([0, 1, 2, 3], 25)
    predicted = np.where(np.arange(100) % 5 == 0, 5, labels)  # every fifth image is taken for 5
    ranked = np.stack([predicted, np.where(predicted == 5, labels, 4)], 1)
    found, confusion = Predictions(labels, ranked).report([*"abcdef"])
    assert found["top1"] == 0.8 and found["top5"] == 1.0
    assert found["per_class"] == dict.fromkeys("abcd", 0.8) | {"e": None, "f": None}
    np.testing.assert_array_equal(confusion[:4, 5], 5)
    assert confusion.sum() == 100
    low, high = found["interval"]
    # The binomial deviation of 80 of 100 is 0.04.
    assert low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.02)
    assert high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.02)
    assert interval(np.array([True])) == [1, 1]


def test_ranks_are_by_score_and_then_by_number():
    scores = np.float32([[3, 2, 1], [1, 2, 3], [2, 7, 7]])
    assert rank(scores).numpy().tolist() == [[0, 1, 2], [2, 1, 0], [1, 2, 0]]
    found = Predictions(np.array([1, 0, 1]), rank(scores).numpy())
    assert [found.accuracy(k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_balanced_places_are_fixed_and_leave_no_class_empty():
    labels = np.random.default_rng(0).integers(0, 14, 4139)
    labels[:5] = -1
    places = balanced_places(labels, 0.1, 14)
    counts = np.bincount(labels[places])
    assert (counts == int(0.1 * 4139 / 14)).all() and (np.diff(places) > 0).all()
    np.testing.assert_array_equal(places, balanced_places(labels, 0.1, 14))
    with pytest.raises(InputError, match="at least 0.0034 of 4139.*label_fraction=0.002.*class 0"):
        balanced_places(labels, 0.002, 14)


def test_a_fraction_of_unequal_classes_has_its_number_of_images():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 5, 30]))
    for fraction, counts in ((0.9, [86, 5, 30]), (0.1, [4, 4, 4]), (1 / 3, [20, 5, 20])):
        places = balanced_places(labels, fraction, 3)
        np.testing.assert_array_equal(np.bincount(labels[places]), counts)
