"""Networks on keras-cv's backbones: results, noise, names of blocks, and published weights."""

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from cli.files import file_digest
from nets import keras_cv_backbones, keras_cv_networks
from nets.keras_cv_backbones import PRESETS, Backbone
from nets.names import block_name
from nets.noise import model_noise
from noisy_student.model import NoisyStudent
from training import architectures, estimates, initial, models
from training.fixres import freeze_blocks
from training.rematerialization import training_pass
from weights import pretrained

TINY = "keras_cv/efficientnetv2_b0"
SIZE, K = 32, 3


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """EfficientNetV2-B0 with two stages of two blocks; mobilenet_v3_small with three blocks."""
    v2 = keras_cv_backbones._efficientnet_v2(SIZE, "2 8 8 1 1 f, 2 8 8 4 2 u")
    monkeypatch.setitem(keras_cv_backbones.BACKBONES, TINY, v2)
    mobile = keras_cv_backbones._mobilenet_v3(
        [1, 3, 3], "8 8 16", "3 3 5", "2 1 2", "1 0 1", hard_from=1
    )
    monkeypatch.setitem(keras_cv_backbones.BACKBONES, "keras_cv/mobilenet_v3_small", mobile)
    monkeypatch.setitem(
        keras_cv_backbones.BACKBONES,
        "keras_cv/resnet18",
        keras_cv_backbones._resnet("ResNetBackbone", (1, 1, 1, 1), "basic_block"),
    )
    monkeypatch.setitem(
        keras_cv_backbones.BACKBONES,
        "keras_cv/densenet121",
        Backbone("DenseNetBackbone", 32, {"stackwise_num_repeats": [2, 2]}),
    )


SMALL = (TINY, "keras_cv/mobilenet_v3_small", "keras_cv/resnet18", "keras_cv/densenet121")


def build(name, seed=1, **settings):
    return models.build(
        {"name": name, **settings},
        K,
        mean=keras_cv_networks.MEAN,
        std=keras_cv_networks.STD,
        seed=seed,
    )


def images(count=2):
    return tf.constant(np.random.default_rng(0).uniform(0, 255, (count, SIZE, SIZE, 3)), tf.float32)


def of_package(name, **options):
    row = keras_cv_backbones.find(name)
    return getattr(keras_cv.models, row.kind)(include_rescaling=True, **row.options, **options)


def test_the_names_are_those_of_the_package():
    """Tests that the names are all of the package's presets of these classes."""
    kinds = {
        row.kind: getattr(keras_cv.models, row.kind)
        for row in keras_cv_backbones.BACKBONES.values()
    }
    weights = {name: kind for kind, cls in kinds.items() for name in cls.presets_with_weights}
    without = {name for cls in kinds.values() for name in cls.presets_without_weights}
    assert {keras_cv_backbones.PREFIX + name for name in without} == set(
        keras_cv_backbones.BACKBONES
    )
    classifiers = {
        name
        for name in keras_cv.models.ImageClassifier.presets_with_weights
        if name.endswith("_classifier")
    }
    assert {name for name in classifiers if "darknet" not in name} | set(weights) == set(PRESETS)
    assert all(
        keras_cv_backbones.find(keras_cv_backbones.of_preset(name)).kind
        == weights.get(name, keras_cv_backbones.find(keras_cv_backbones.of_preset(name)).kind)
        for name in PRESETS
    )


def test_parameters_are_those_that_the_package_states():
    name = "keras_cv/resnet18_v2"
    kind = getattr(keras_cv.models, keras_cv_backbones.find(name).kind)
    stated = kind.presets[name.removeprefix(keras_cv_backbones.PREFIX)]["metadata"]["params"]
    network = build(name)
    whole, trained = estimates.count_parameters({"name": name}, K)
    assert whole == network.count_params()
    assert (
        network.count_params() - network.get_layer("predictions").count_params()
        == stated
        > trained - 513 * K
        > 0
    )


@pytest.mark.parametrize("name", SMALL)
def test_it_computes_what_the_package_computes(name):
    network, package = build(name), of_package(name)
    for source, target in zip(
        keras_cv_networks._weighted(network), keras_cv_networks._weighted(package)
    ):
        target.set_weights(
            [
                w + 0.1 * np.random.default_rng(i).uniform(size=w.shape)
                for i, w in enumerate(source.get_weights())
            ]
        )
        source.set_weights(target.get_weights())
    expected = package(images(), training=False).numpy().mean((1, 2))
    pooled = tf.keras.Model(network.input, network.get_layer("avg_pool").output)
    np.testing.assert_allclose(
        pooled(images()), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", SMALL[:2])
def test_initial_weights_are_a_function_of_the_seed(name):
    first, again, other = build(name), build(name), build(name, seed=2)
    assert all((a.numpy() == b.numpy()).all() for a, b in zip(first.weights, again.weights))
    kernels = [w.numpy() for w in first.trainable_weights if "kernel" in w.name]
    assert all(
        (a != b.numpy()).any()
        for a, b in zip(kernels, [w for w in other.trainable_weights if "kernel" in w.name])
    )
    # keras-cv draws equal kernels for equal shapes.
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)


def test_noise_is_a_function_of_step_and_row():
    network, x = build(TINY, survival_probability=0.3, dropout=0.5), images(8)
    assert not [
        layer
        for layer in keras_cv_networks._parts(network)
        if isinstance(layer, tf.keras.__internal__.layers.BaseRandomLayer)
    ]

    def logits(step, rows):
        with model_noise(7, step, tf.constant(rows), 8):
            return network(tf.gather(x, rows), training=True).numpy()

    for layer in keras_cv_networks._parts(network):  # so that a row's logits are its own
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.trainable = False
    whole = logits(3, range(8))
    np.testing.assert_array_equal(whole, logits(3, range(8)))
    np.testing.assert_allclose(whole[4:], logits(3, range(4, 8)), rtol=1e-4, atol=1e-6)
    assert np.abs(whole - logits(4, range(8))).max() > 1e-4


def test_a_training_continues_to_the_bit(tmp_path):
    x, y = images(8), tf.constant([0, 1, 2, 0, 1, 2, 0, 1])

    def trainer():
        made = NoisyStudent(
            build(TINY, survival_probability=0.5, dropout=0.5), ema_decay=0.9, seed=3
        )
        made.compile(tf.keras.optimizers.SGD(0.1, 0.9))
        made.build_optimizers()
        return made

    def steps(made, count):
        for _ in range(count):
            made.train_step((x, y))

    whole, start, rest = trainer(), trainer(), trainer()
    steps(whole, 4)
    steps(start, 2)
    path = tf.train.Checkpoint(trainer=start).save(str(tmp_path / "c"))
    tf.train.Checkpoint(trainer=rest).restore(path).assert_existing_objects_matched()
    steps(rest, 2)
    for a, b in zip(
        (*whole.model.variables, *whole.ema.shadows), (*rest.model.variables, *rest.ema.shadows)
    ):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("name", SMALL)
def test_blocks_can_be_frozen_and_computed_twice(name):
    network = build(name, batch_norm_momentum=0.5)
    x = images(4)
    plain, again = training_pass(network, False), training_pass(network, True)
    with model_noise(0, 0, tf.range(4), 4):
        np.testing.assert_allclose(again(x), plain(x), rtol=1e-4, atol=1e-5)
    blocks = list(dict.fromkeys(block for layer in network.layers if (block := block_name(layer))))
    freeze_blocks(network, 1)
    kept = [
        w.numpy()
        for layer in network.layers
        if layer.name.startswith(("stem_", f"{blocks[0]}_"))
        for w in layer.weights
    ]
    assert kept and len(kept) < len(network.weights)
    network(x, training=True)
    frozen = [
        w.numpy()
        for layer in network.layers
        if layer.name.startswith(("stem_", f"{blocks[0]}_"))
        for w in layer.weights
    ]
    assert all((a == b).all() for a, b in zip(kept, frozen))
    assert network.trainable_weights and not network.layers[2].trainable


def test_settings_of_batch_norm_reach_every_layer():
    network = keras_cv_networks.KerasCVNetwork(
        TINY,
        num_classes=K,
        mean=keras_cv_networks.MEAN,
        std=keras_cv_networks.STD,
        sync_batch_norm=True,
        batch_norm_momentum=0.5,
    )
    norms = [
        layer
        for layer in keras_cv_networks._parts(network)
        if isinstance(layer, tf.keras.layers.BatchNormalization)
    ]
    assert len(norms) > 6 and all(
        layer.synchronized and not layer.fused and layer.momentum == 0.5 for layer in norms
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"name": "keras_cv/resnet51"},
            (
                r"^model\.name: keras-cv has no backbone 'keras_cv/resnet51' .*; did you mean"
                r" keras_cv/resnet\d+\?"
            ),
        ),
        ({"name": "keras_cv/x"}, r"known: keras_cv/efficientnetv2_b0, "),
        (
            {"name": "keras_cv/resnet18", "survival_probability": 0.8},
            r"model: survival_probability: keras_cv/resnet18 has no stochastic depth",
        ),
        (
            {"name": TINY, "width": 0.5},
            r"model\.width: keras_cv/efficientnetv2_b0 has no such setting",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(model, message):
    with pytest.raises(InputError, match=message):
        models.builder(model)


def test_the_table_names_them():
    assert architectures.find(TINY).title(TINY) == "EfficientNetV2 (efficientnetv2_b0 of keras-cv)"


def close(actual, expected):
    """Asserts that two arrays agree; sums near 0 within what the largest one's rounding allows."""
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


class TestPublishedWeights:
    """Files that keras-cv itself writes, in the folder where a user would put them."""

    PRESET, NAME = "mobilenet_v3_small_imagenet", "keras_cv/mobilenet_v3_small"

    @pytest.fixture(autouse=True)
    def home(self, tmp_path, monkeypatch):
        tf.keras.utils.set_random_seed(0)  # keras-cv's own initializers have no seed
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setattr(keras_cv_backbones, "PRESETS", (*PRESETS, f"{self.PRESET}_classifier"))

    def write(self, preset, layer):
        from keras_cv.src.utils.preset_utils import save_to_preset

        save_to_preset(layer, str(keras_cv_networks.folder(preset)))

    def test_a_backbone(self):
        package, network = of_package(self.NAME), build(self.NAME)
        before = network.get_layer("predictions").get_weights()
        self.write(self.PRESET, package)
        keras_cv_networks.load_preset(network, self.PRESET)
        pooled = tf.keras.Model(network.input, network.get_layer("avg_pool").output)
        close(pooled(images()), package(images()).numpy().mean((1, 2)))
        assert all(
            (a == b).all() for a, b in zip(before, network.get_layer("predictions").get_weights())
        )

    def test_a_classifier(self):
        package, network = (
            keras_cv.models.ImageClassifier(of_package(self.NAME), K),
            build(self.NAME),
        )
        self.write(f"{self.PRESET}_classifier", package)
        keras_cv_networks.load_preset(network, f"{self.PRESET}_classifier")
        np.testing.assert_allclose(tf.nn.softmax(network(images())), package(images()), rtol=1e-4)

    def test_a_training_starts_from_a_backbone(self):
        package = of_package(self.NAME)
        self.write(self.PRESET, package)
        begin = pretrained.find(f"keras_cv/{self.PRESET}", {"name": "b0", "dropout": 0.5})
        assert begin.spec.architecture == {"name": self.NAME, "dropout": 0.5}
        assert not begin.keeps_head(["a", "b", "c"])
        held = keras_cv_networks.folder(self.PRESET)
        files = {name: file_digest(held / name) for name in ("config.json", "model.weights.h5")}
        assert begin.source == {"weights": f"keras_cv/{self.PRESET}", "sha256": files}
        network = build(self.NAME)
        before = network.get_layer("predictions").get_weights()
        initial.start(network, begin, begin.load(), ["a", "b", "c"])
        pooled = tf.keras.Model(network.input, network.get_layer("avg_pool").output)
        close(pooled(images()), package(images()).numpy().mean((1, 2)))
        kernel = network.get_layer("predictions").get_weights()[0]
        np.testing.assert_array_equal(kernel, initial.NEW_HEAD * before[0])

    def test_a_preview_downloads_nothing(self):
        found = pretrained.preview(f"keras_cv/{self.PRESET}", {"name": "b0"})
        assert found == ({"name": self.NAME}, f"keras_cv/{self.PRESET}")
        with pytest.raises(
            InputError,
            match=r"^--init=keras_cv/resnet50_imagenett: .*; did you mean resnet50_imagenet\?",
        ):
            pretrained.preview("keras_cv/resnet50_imagenett", {"name": "b0"})

    def test_both_files_are_downloaded_where_keras_cv_finds_them(self, tmp_path, monkeypatch):
        import kagglehub

        asked = []
        monkeypatch.setattr(
            kagglehub, "model_download", lambda *asks: asked.append(asks) or str(tmp_path / asks[1])
        )
        assert keras_cv_networks.fetch(self.PRESET) == (
            tmp_path / "config.json",
            tmp_path / "model.weights.h5",
        )
        assert {handle for handle, _ in asked} == {
            "keras/mobilenetv3/keras/mobilenet_v3_small_imagenet/2"
        }

    def test_weights_of_another_network(self):
        self.write(self.PRESET, of_package(self.NAME, alpha=2.0))
        with pytest.raises(
            InputError,
            match=(
                r"mobilenet_v3_small_imagenet of keras-cv do not fit keras_cv_mobilenet_v3_small"
                r" with 3 classes"
            ),
        ):
            keras_cv_networks.load_preset(build(self.NAME), self.PRESET)

    def test_no_such_weights(self):
        with pytest.raises(
            InputError,
            match=(
                r"keras-cv has no published weights 'resnet50_imagenett'; did you mean"
                r" resnet50_imagenet\?"
            ),
        ):
            keras_cv_networks.load_preset(build(self.NAME), "resnet50_imagenett")

    def test_another_normalization(self):
        network = models.build({"name": self.NAME}, K, mean=(1.0,) * 3, std=(2.0,) * 3, seed=0)
        with pytest.raises(
            InputError,
            match=(
                r"expect mean \(0\.0, 0\.0, 0\.0\) and std \(255\.0, 255\.0, 255\.0\), not \(1\.0"
            ),
        ):
            keras_cv_networks.load_preset(network, self.PRESET)

    def test_without_a_network_one_line_says_where_the_files_are_from_and_go(self, monkeypatch):
        import kagglehub

        def refused(handle, path):
            raise ConnectionError("no route")

        monkeypatch.setattr(kagglehub, "model_download", refused)
        with pytest.raises(
            InputError,
            match=rf"^--init=keras_cv/{self.PRESET}: .*: ConnectionError: no route\. "
            r"Download config",
        ):
            pretrained.find(f"keras_cv/{self.PRESET}", {"name": "b0"})  # before the first stage
        with pytest.raises(InputError) as caught:
            keras_cv_networks.load_preset(build(self.NAME), self.PRESET)
        assert (
            str(caught.value)
            == "weights mobilenet_v3_small_imagenet of keras-cv: ConnectionError: no route."
            " Download config.json and model.weights.h5 from"
            " https://www.kaggle.com/models/keras/mobilenetv3/keras/mobilenet_v3_small_imagenet/2"
            f" and put them into {keras_cv_networks.folder(self.PRESET)}"
        )
