"""The table of networks, and networks that a user's own function builds."""

from __future__ import annotations

import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from cli.errors import InputError
from data.preprocessing import Preprocessing
from serving import card
from serving.signatures import Classifier
from training import architectures, estimates, fixres, model_dir, models, smoke
from training.rematerialization import training_pass

MODULE = """
import tensorflow as tf
layers = tf.keras.layers

def network(num_classes, size=None, cls=tf.keras.Model, **dense):
    images = layers.Input((size, size, 3))
    x = layers.GlobalAveragePooling2D()(images)
    return cls(images, layers.Dense(num_classes, **dense)(x))

def plain(num_classes, width=1, **options):
    assert not {"name", "filters"} & set(options)
    return network(num_classes)

def bare(num_classes):
    return network(num_classes)

def sized(num_classes, image_size=None):
    return network(num_classes, image_size)

def no_classes(classes):
    return network(classes)

def fails(num_classes):
    raise ValueError("two\\nlines")

def subclassed(num_classes):
    return type("Own", (tf.keras.Model,), {})()

def nothing(num_classes): pass
def softmax(num_classes): return network(num_classes, activation="softmax")
def other_classes(num_classes): return network(num_classes + 1)
def half(num_classes): return network(num_classes, dtype="float16")
def gray(num_classes): return tf.keras.Sequential([\
layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(num_classes)])
def penalized(num_classes): return network(num_classes, kernel_regularizer="l2")

def convolutional(num_classes):
    return tf.keras.Sequential([\
layers.Input((8, 8, 3)), layers.Conv2D(num_classes, 1), layers.GlobalAveragePooling2D()])

value = 3
"""


@pytest.fixture(autouse=True)
def own_nets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_nets.py").write_text(MODULE, encoding="utf-8")
    (folder / "own_broken.py").write_text("import own_missing_dependency", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)


def build(
    function: str,
    settings: dict | None = None,
    image_size: int | None = None,
    sync_batch_norm: bool = False,
) -> tf.keras.Model:
    architecture = {"name": f"own_nets:{function}", **(settings or {})}
    common = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "seed": 0}
    return models.build(
        architecture, 4, **common, sync_batch_norm=sync_batch_norm, image_size=image_size
    )


def test_every_row_names_what_is_there() -> None:
    for family in architectures.TABLE:
        assert family.sizes and all(architectures.find(name) is family for name in family.sizes)
        for reference in (
            family.builder,
            family.check,
            family.parameters,
            family.activations,
            family.warning,
        ):
            assert reference is None or architectures.load(reference)


@pytest.mark.parametrize("name", [name for family in architectures.TABLE for name in family.sizes])
def test_a_dry_run_and_a_smoke_run_of_every_row(name: str) -> None:
    model = ConfigDict({"name": name, "width": None, "depth": None})
    smoke._shrink(model)
    models.builder(model.to_dict())
    if architectures.find(name).parameters:
        assert estimates.count_parameters(model.to_dict(), 10) < estimates.count_parameters(
            {"name": name}, 10
        )
        assert estimates.activations(model.to_dict(), 32, 4, 4, False)


def test_parameters_of_fixed_blocks_are_not_trained() -> None:
    model = {"name": "lite0", "width": 0.3, "depth": 0.5}
    network = models.build(model, 4, mean=(0.0,) * 3, std=(1.0,) * 3, seed=0)
    for count in (0, 1, 5):
        fixres.freeze_blocks(network, count)
        counted = estimates.count_parameters(model, 4, frozen_blocks=count)
        assert counted == estimates.parameters_of(network) and counted.trained < counted.all
        assert str(counted) == f"{counted.all:,} parameters ({counted.trained:,} trained)"
    shallow, deep = (estimates.activations(model, 32, 4, 4, False, count) for count in (1, 5))
    assert shallow and deep and deep < shallow < estimates.activations(model, 32, 4, 4, False)


def test_advice_for_small_images() -> None:
    assert (
        models.warning({"name": "b0", "strides": None}, 64)
        == "note: b0 halves images of 64 pixels five times, so few pixels are left; set "
        "model.strides to keep more, as image_folder.py:small does"
    )
    assert models.warning({"name": "b0"}, 65) is None
    for architecture in (
        {"name": "b0", "stem_stride": 1},
        {"name": "wrn_28_2"},
        {"name": "module:function"},
    ):
        assert models.warning(architecture, 8) is None


@pytest.mark.parametrize("name", ["wrn_27_2", "wrn_28"])
def test_a_name_that_no_network_of_the_family_has_is_refused_before_building(name: str) -> None:
    with pytest.raises(InputError, match="no Wide ResNet"):
        models.builder({"name": name})


@pytest.mark.parametrize("function", ["plain", "bare", "sized"])
def test_a_function_of_the_user_gets_what_it_takes(function: str) -> None:
    assert build(function, image_size=8).output_shape == (None, 4)
    assert estimates.count_parameters({"name": f"own_nets:{function}"}, 4) == (16, 16)
    assert card.network({"name": f"own_nets:{function}", "width": (1, 2)}) == f"own_nets:{function}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_missing:f", "there is no module own_missing; install it into the environment"),
        ("own_nets.sub:f", "there is no module own_nets"),
        (
            "own_broken:f",
            (
                "its module fails, ModuleNotFoundError: No module named 'own_missing_dependency'"
                " .line 1 of .*own_broken.py"
            ),
        ),
        ("own_nets:missing", "own_nets has no function missing"),
        ("own_nets:value", "own_nets has no function value"),
        ("own_nets:no_classes", r"takes no num_classes\. It must"),
        ("own nets:f", "no architecture 'own nets:f'; known: b0, .* or package.module:function"),
    ],
)
def test_a_reference_that_cannot_be_used(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        models.builder({"name": name})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "fails",
            r"model.name: own_nets:fails fails, ValueError: two lines \(line 24 of .*own_nets.py\)",
        ),
        ("nothing", "returns a NoneType; it must return a functional or sequential"),
        ("subclassed", "returns a Own; it must return a functional or sequential"),
        ("gray", r"returns a model of float32 \(None, 8, 8, 1\); it must take float32 images"),
        (
            "other_classes",
            r"returns a model that gives float32 \(None, 5\); it must give float32 logits \(B, 4\)",
        ),
        ("half", r"gives float16 \(None, 4\); it must give float32"),
        ("softmax", "own_nets:softmax: the network ends in probabilities"),
        ("penalized", "has its own losses"),
    ],
)
def test_a_network_that_breaks_the_contract(function: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(function)
    assert "\n" not in str(caught.value)


def test_settings_that_a_function_does_not_take() -> None:
    with pytest.raises(
        InputError,
        match=(
            r"^model.depth, model.seed, model.strides: own_nets:bare has no such settings; set them"
            r" to None"
        ),
    ):
        build("bare", {"depth": 0.5, "strides": (1, 2), "seed": 3})
    with pytest.raises(
        InputError, match=r"own_nets:bare takes no sync_batch_norm; set sync_batch_norm=False"
    ):
        build("bare", sync_batch_norm=True)


def test_a_network_of_one_size() -> None:
    with pytest.raises(
        InputError, match="own_nets:sized takes images of 8×8 pixels only; they are 16×16"
    ):
        build("sized", {"image_size": 8}, image_size=16)
    model = ConfigDict({"name": "own_nets:sized", "image_size": 8})
    smoke._shrink(model)
    assert model.image_size == 32


def test_what_needs_names_of_blocks_says_so() -> None:
    model = build("plain")
    with pytest.raises(
        InputError, match=r"frozen_blocks=1: .* has 0 blocks; name the layers of a block block1a_"
    ):
        fixres.freeze_blocks(model, 1)
    with pytest.raises(
        InputError, match=r"rematerialize: .* has no blocks; name the layers of a block block1a_"
    ):
        training_pass(model, True)


def test_the_export_needs_a_dense_classifier() -> None:
    spec = model_dir.ModelSpec(
        {"name": "own_nets:convolutional"}, Preprocessing(image_size=8), ("a", "b")
    )
    with pytest.raises(
        InputError, match=r"its last layer with weights is conv2d.*; the export needs a Dense layer"
    ):
        Classifier(spec.build(), spec)


def test_a_model_directory_of_before_with_small_images(tmp_path) -> None:
    spec = model_dir.ModelSpec(
        {"name": "b0", "width": 0.1, "small_images": True}, Preprocessing(image_size=8), ("a", "b")
    )
    plain = model_dir.ModelSpec(
        {"name": "own_nets:plain", "width": [2, 3]}, Preprocessing(image_size=8), ("a", "b")
    )
    for read, written in (
        ({"name": "b0", "width": 0.1, "strides": [1, 1, 1, 2, 1, 2, 1]}, spec),
        (plain.architecture, plain),
    ):
        model_dir.save(
            tmp_path, tf.keras.Sequential([tf.keras.layers.Dense(2, input_shape=(3,))]), written
        )
        assert model_dir.read_spec(tmp_path).architecture == read
