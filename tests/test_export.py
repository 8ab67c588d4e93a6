import numpy as np
import pytest
import tensorflow as tf

from amdim_tf.encoder import Encoder
from amdim_tf.export import export_encoder
from amdim_tf.views import center, normalize

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    encoder = Encoder(image_size=64, ndf=8, nrkhs=64, ndepth=1)
    export_encoder(encoder, MEAN, STD, folder / "1")
    assert [path.name for path in folder.iterdir()] == ["1"]
    return encoder, folder / "1"


def test_signatures_give_what_the_encoder_gives(exported):
    encoder, folder = exported
    loaded = tf.saved_model.load(str(folder))
    assert set(loaded.signatures) == {"serving_default", "normalized"}
    generator = np.random.default_rng(0)
    for shape in ((64, 64), (100, 80)):
        images = generator.integers(0, 256, (3, *shape, 3), dtype=np.uint8)
        prepared = normalize(center(images, 64), MEAN, STD)
        expected = encoder(prepared)
        served = loaded.signatures["serving_default"](images=tf.constant(images))
        assert set(served) == {"f1"}
        np.testing.assert_allclose(served["f1"], expected["f1"], atol=1e-5)
        features = loaded.signatures["normalized"](images=prepared)
        for name in ("f1", "f5", "f7"):
            np.testing.assert_allclose(features[name], expected[name], atol=1e-5)


def test_weights_are_stored_once(exported):
    encoder, folder = exported
    stored = tf.train.list_variables(str(folder / "variables" / "variables"))
    count = sum(
        int(np.prod(shape)) for name, shape in stored if not name.startswith("_CHECKPOINTABLE")
    )
    assert count == encoder.count_params()


def test_wrong_shapes_are_refused(exported):
    loaded = tf.saved_model.load(str(exported[1]))
    for shape in ((2, 32, 32, 3), (2, 64, 64, 1)):
        with pytest.raises((tf.errors.InvalidArgumentError, TypeError)):
            loaded.signatures["normalized"](images=tf.zeros(shape))


def test_a_version_is_not_overwritten(exported):
    encoder, folder = exported
    before = (folder / "saved_model.pb").read_bytes()
    with pytest.raises(OSError):
        export_encoder(encoder, MEAN, STD, folder)
    assert (folder / "saved_model.pb").read_bytes() == before
