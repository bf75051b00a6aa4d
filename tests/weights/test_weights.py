"""Published weights in and out: files in each true format, made here.

The tests also cover what is said of files that do not fit.
"""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from cli.errors import InputError
from data.preprocessing import Preprocessing
from efficientnet import EfficientNet
from efficientnet.architectures import ARCHITECTURES, round_repeats
from training import model_dir
from weights import export_weights, import_weights, names, weight_files

# Of Keras 2.15 or of tf-keras.
keras_efficientnet = sys.modules[tf.keras.applications.EfficientNetB0.__module__]
SMALL = {"name": "b0", "width": 0.25, "depth": 0.5}  # 10 blocks, two of them in stage 6
CLASSES = 5


def spec(classes: int = CLASSES, **architecture: object) -> model_dir.ModelSpec:
    return model_dir.ModelSpec(
        {**SMALL, **architecture}, Preprocessing(image_size=32), tuple(map(str, range(classes)))
    )


def random_values(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Makes values around 1, so that variances are positive."""
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}


def release_shapes(
    width: float, depth: float, classes: int, lite: bool = False
) -> dict[str, tuple[int, ...]]:
    """Lists the variables that the release's graph creates, in its order.

    This is a second account of the names, written from the release's numbering by calls.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    calls: dict[str, int] = {}

    def create(scope: str, layer: str, **variables: tuple[int, ...]) -> None:
        number = calls[f"{scope}/{layer}"] = calls.get(f"{scope}/{layer}", -1) + 1
        name = f"{scope}/{layer}" + (f"_{number}" if number else "")
        shapes.update({f"{name}/{variable}": shape for variable, shape in variables.items()})

    def conv(scope: str, k: int, i: int, o: int, bias: bool = False) -> None:
        create(scope, "conv2d", kernel=(k, k, i, o), **({"bias": (o,)} if bias else {}))

    def norm(scope: str, c: int) -> None:
        create(
            scope,
            "tpu_batch_normalization",
            gamma=(c,),
            beta=(c,),
            moving_mean=(c,),
            moving_variance=(c,),
        )

    def round8(filters: int) -> int:
        value = max(8, int(filters * width + 4) // 8 * 8)
        return value + 8 if value < 0.9 * filters * width else value

    def ends(filters: int) -> int:
        return filters if lite else round8(filters)

    conv("stem", 3, 3, ends(32))
    norm("stem", ends(32))
    strings = [
        "r1_k3_e1_i32_o16",
        "r2_k3_e6_i16_o24",
        "r2_k5_e6_i24_o40",
        "r3_k3_e6_i40_o80",
        "r3_k5_e6_i80_o112",
        "r4_k5_e6_i112_o192",
    ]
    block = 0
    for string in [*strings, "r1_k3_e6_i192_o320"]:
        r, k, e, i, o = (int(part[1:]) for part in string.split("_"))
        for repeat in range(r if lite and o in (16, 320) else round_repeats(r, depth)):
            scope, cin = (
                f"blocks_{block}",
                (ends(i) if block == 0 else round8(i)) if repeat == 0 else round8(o),
            )
            inner, squeeze = cin * e, max(1, cin // 4)
            if e != 1:
                conv(scope, 1, cin, inner)
                norm(scope, inner)
            create(scope, "depthwise_conv2d", depthwise_kernel=(k, k, inner, 1))
            norm(scope, inner)
            if not lite:
                conv(f"{scope}/se", 1, inner, squeeze, bias=True)
                conv(f"{scope}/se", 1, squeeze, inner, bias=True)
            conv(scope, 1, inner, round8(o))
            norm(scope, round8(o))
            block += 1
    conv("head", 1, round8(320), ends(1280))
    norm("head", ends(1280))
    create("head", "dense", kernel=(ends(1280), classes), bias=(classes,))
    return shapes


def write_checkpoint(
    prefix: Path,
    values: dict[str, np.ndarray],
    *,
    raw: bool = True,
    ema: bool = True,
    slots: bool = True,
    scope: str = "efficientnet-b0/",
) -> Path:
    """Writes a checkpoint as TensorFlow 1's Saver does.

    It holds values + 1 under the raw names, and the values themselves as moving averages.
    """
    stored: dict[str, np.ndarray] = {}
    for name, value in values.items():
        if raw:
            stored[f"{scope}{name}"] = value + 1
        if ema:
            stored[f"{scope}{name}/ExponentialMovingAverage"] = value
        if slots and not name.endswith(("moving_mean", "moving_variance")):
            stored.update(
                {
                    f"{scope}{name}/{slot}": np.zeros_like(value)
                    for slot in ("RMSProp", "RMSProp_1", "Momentum")
                }
            )
            stored[f"teacher_model/{scope}{name}"] = np.zeros_like(value)
    if slots:
        stored["global_step"] = np.array(218_949, np.int64)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {
            name: tf.compat.v1.Variable(value, use_resource=False, name=f"v{i}")
            for i, (name, value) in enumerate(stored.items())
        }
        session.run([variable.initializer for variable in variables.values()])
        tf.compat.v1.train.Saver(variables).save(session, str(prefix), write_meta_graph=False)
    return prefix


@pytest.fixture(scope="module")
def release() -> dict[str, np.ndarray]:
    return random_values(release_shapes(SMALL["width"], SMALL["depth"], CLASSES))


@pytest.fixture(scope="module")
def checkpoint(release: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tf1") / "model.ckpt", release)


def imported(
    source: Path,
    *,
    average: bool = True,
    fresh_head: bool = False,
    wanted: model_dir.ModelSpec | None = None,
) -> dict[str, np.ndarray]:
    model = import_weights.convert(
        weight_files.open_weights(source, average=average), wanted or spec(), fresh_head=fresh_head
    )
    return {weight.name.partition(":")[0]: weight.numpy() for weight in model.weights}


def table() -> tuple[names.Weight, ...]:
    return names.of_architecture(SMALL, CLASSES)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_names_are_the_releases_and_the_models(name: str) -> None:
    """The counts are those of the official graph built in TensorFlow's compatibility mode."""
    width, depth, *_, lite = ARCHITECTURES[name]
    rows = names.weights(width, depth, 1000, lite)
    assert {row.tf1: row.shape for row in rows} == release_shapes(width, depth, 1000, lite)
    assert len({row.timm for row in rows}) == len({row.keras for row in rows}) == len(rows)
    assert len(rows) == {"b0": 311, "b1": 439, "b7": 1037, "l2": 1654}.get(name, len(rows))
    if name in ("b0", "lite1"):
        model = EfficientNet(name, num_classes=1000)
        assert {row.keras: row.shape for row in rows} == {
            w.name.partition(":")[0]: tuple(w.shape) for w in model.weights
        }


def test_named_examples_of_the_releases() -> None:
    rows = {row.tf1: row for row in names.weights(1.0, 1.0, 1000)}
    assert rows["blocks_0/conv2d/kernel"].keras == "block1a_project_conv/kernel"
    assert rows["blocks_0/conv2d/kernel"].timm == "blocks.0.0.conv_pw.weight"
    assert (
        rows["blocks_15/tpu_batch_normalization_2/moving_variance"].timm
        == "blocks.6.0.bn3.running_var"
    )
    assert rows["blocks_1/se/conv2d/kernel"].timm_shape == (4, 96, 1, 1)
    l2 = {row.tf1: row.shape for row in names.weights(4.3, 5.3, 1000)}
    assert l2["blocks_0/conv2d/kernel"] == (1, 1, 136, 72)


@pytest.mark.parametrize(("average", "added"), [(True, 0), (False, 1)])
def test_tf1_checkpoint(
    checkpoint: Path, release: dict[str, np.ndarray], average: bool, added: int
) -> None:
    values = imported(checkpoint, average=average)
    assert len(values) == len(release)
    for row in table():
        np.testing.assert_array_equal(values[row.keras], release[row.tf1] + np.float32(added))


def test_tf1_directory_and_lars_names(release: dict[str, np.ndarray], tmp_path: Path) -> None:
    plain = {name.replace("tpu_batch", "batch"): value for name, value in release.items()}
    write_checkpoint(tmp_path / "model.ckpt", plain)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/somewhere/else/model.ckpt"\n')
    values = imported(tmp_path)
    np.testing.assert_array_equal(
        values["stem_bn/gamma"], release["stem/tpu_batch_normalization/gamma"]
    )


def test_tf1_averages_only_and_raw_only(release: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Covers the release's L2 files, which hold only moving averages."""
    averages = write_checkpoint(tmp_path / "l2.ckpt", release, raw=False, slots=False)
    np.testing.assert_array_equal(
        imported(averages)["predictions/bias"], release["head/dense/bias"]
    )
    with pytest.raises(InputError, match=r"moving averages only; take --weights=ema"):
        imported(averages, average=False)
    raw = write_checkpoint(tmp_path / "raw.ckpt", release, ema=False)
    with pytest.raises(InputError, match=r"no moving averages; take --weights=raw"):
        imported(raw)


def test_every_misfit_is_listed(release: dict[str, np.ndarray], tmp_path: Path) -> None:
    broken = dict(release)
    lost = [
        broken.pop(name) is None or name
        for name in ("stem/conv2d/kernel", "blocks_3/se/conv2d_1/bias")
    ]
    broken["stem/conv2d/kernel"] = np.zeros([3, 3, 3, 16], np.float32)
    broken["blocks_77/conv2d/kernel"] = np.zeros([1, 1, 2, 2], np.float32)
    path = write_checkpoint(tmp_path / "broken.ckpt", broken)
    with pytest.raises(InputError) as caught:
        imported(path)
    message = str(caught.value)
    assert f"1 missing: {lost[1]};" in message
    assert "1 unexpected: blocks_77/conv2d/kernel;" in message
    assert "1 misshapen: stem/conv2d/kernel (3, 3, 3, 16) instead of (3, 3, 3, 8)" in message


def test_one_missing_average_is_not_made_good_by_its_raw_value(
    release: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = write_checkpoint(
        tmp_path / "model.ckpt",
        {k: v for k, v in release.items() if k != "head/dense/bias"},
        slots=False,
    )
    reader = tf.train.load_checkpoint(str(path))
    stored = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    stored["efficientnet-b0/head/dense/bias"] = np.zeros([CLASSES], np.float32)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {
            name: tf.compat.v1.Variable(value, use_resource=False) for name, value in stored.items()
        }
        session.run([variable.initializer for variable in variables.values()])
        tf.compat.v1.train.Saver(variables).save(
            session, str(tmp_path / "mixed.ckpt"), write_meta_graph=False
        )
    with pytest.raises(InputError, match="1 missing: head/dense/bias"):
        imported(tmp_path / "mixed.ckpt")


def test_another_variant_is_recognized(tmp_path: Path) -> None:
    path = write_timm(
        tmp_path / "w.safetensors",
        {row.timm: np.zeros(row.timm_shape, np.float16) for row in names.weights(1.0, 1.1, 5)},
    )
    with pytest.raises(InputError, match=r"does not fit b0 \(it fits --model=b1\)"):
        imported(path)


def write_timm(path: Path, values: dict[str, np.ndarray]) -> Path:
    tracked = {
        name.replace("running_var", "num_batches_tracked"): np.array(7)
        for name in values
        if name.endswith("running_var")
    }
    save_file({**values, **tracked}, path, metadata={"format": "pt"})
    return path


def test_timm_file(tmp_path: Path) -> None:
    state = random_values({row.timm: row.timm_shape for row in table()})
    values = imported(write_timm(tmp_path / "tf_efficientnet_b0.safetensors", state))
    np.testing.assert_array_equal(
        values["block2a_expand_conv/kernel"][0, 0, 3, 5],
        state["blocks.1.0.conv_pw.weight"][5, 3, 0, 0],
    )
    np.testing.assert_array_equal(
        values["stem_conv/kernel"][0, 1, 2, 5], state["conv_stem.weight"][5, 2, 0, 1]
    )
    np.testing.assert_array_equal(
        values["block3a_dwconv/depthwise_kernel"][1, 4, 6, 0],
        state["blocks.2.0.conv_dw.weight"][6, 0, 1, 4],
    )
    np.testing.assert_array_equal(values["predictions/kernel"], state["classifier.weight"].T)
    np.testing.assert_array_equal(
        values["block1a_bn/moving_variance"], state["blocks.0.0.bn1.running_var"]
    )
    for row in table():  # and the way back is exact
        np.testing.assert_array_equal(row.to_timm(values[row.keras]), state[row.timm])


def test_plain_timm_variants_are_refused(tmp_path: Path) -> None:
    state = random_values({row.timm: row.timm_shape for row in table()})
    with pytest.raises(
        InputError, match=r"timm's efficientnet_b0, which has another padding and epsilon"
    ):
        imported(write_timm(tmp_path / "efficientnet_b0.safetensors", state))
    write_timm(tmp_path / "model.safetensors", state)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "efficientnet_b0"}))
    with pytest.raises(InputError, match="take tf_efficientnet_"):
        imported(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architecture": "tf_efficientnet_b0",
                "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
            }
        )
    )
    assert weight_files.open_weights(tmp_path, average=True).normalization == (
        (127.5,) * 3,
        (127.5,) * 3,
    )


def test_what_a_timm_file_is_named_after(tmp_path: Path) -> None:
    """Tests that the file's name goes before its directory's.

    A directory of several kinds of EfficientNets says nothing about the kind.
    """
    state = random_values({row.timm: row.timm_shape for row in table()})
    for directory in ("efficientnet_b0", "efficientnet_models"):
        (tmp_path / directory).mkdir()
        for name in ("tf_efficientnet_b0.safetensors", "model.safetensors"):
            write_timm(tmp_path / directory / name, state)
    for path in (
        "efficientnet_b0/tf_efficientnet_b0.safetensors",
        "efficientnet_models/model.safetensors",
    ):
        assert weight_files.open_weights(tmp_path / path, average=True).normalization is None
    with pytest.raises(InputError, match=r"timm's efficientnet_b0"):
        weight_files.open_weights(tmp_path / "efficientnet_b0", average=True)


@pytest.mark.parametrize(
    "config",
    [
        b"{",
        b"\xff\xfe",
        b"[1]",
        b'{"pretrained_cfg": 5}',
        b'{"pretrained_cfg": {"mean": [0.5], "std": [0.5]}}',
        b'{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": ["a", "b", "c"]}}',
        b'{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.0, 0.5]}}',
    ],
)
def test_a_damaged_description_of_a_timm_model(tmp_path: Path, config: bytes) -> None:
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        InputError,
        match=r"config.json (is damaged: |is not a readable description of a timm model \(.+\)$)",
    ):
        weight_files.open_weights(tmp_path, average=True)


def test_a_fresh_head_is_said_and_nothing_else_is_fresh(
    checkpoint: Path, release: dict[str, np.ndarray]
) -> None:
    with pytest.raises(
        InputError,
        match=r"2 misshapen: head/dense/kernel.*head/dense/bias \(5,\) instead of \(7,\)",
    ):
        imported(checkpoint, wanted=spec(7))
    values = imported(checkpoint, wanted=spec(7), fresh_head=True)
    assert values["predictions/kernel"].shape == (values["top_bn/gamma"].size, 7)
    for row in table():
        if not row.is_classifier:
            np.testing.assert_array_equal(values[row.keras], release[row.tf1])


def applications(**arguments: Any) -> tf.keras.Model:
    """Builds keras.applications' EfficientNet, as small as `SMALL`, with random weights."""
    settings = {
        "weights": None,
        "classes": CLASSES,
        "classifier_activation": None,
        "input_shape": (64, 64, 3),
        **arguments,
    }
    model = keras_efficientnet.EfficientNet(SMALL["width"], SMALL["depth"], 64, **settings)
    values = random_values({weight.name: tuple(weight.shape) for weight in model.weights}, seed=3)
    for weight in model.weights:
        if settings["weights"] is None:
            weight.assign(
                0.5 * (values[weight.name] - 1) if "kernel" in weight.name else values[weight.name]
            )
    model.layers[
        2
        # the normalization reads its weights when they are loaded, not when it is called
    ].finalize_state()
    return model


@pytest.fixture(scope="module")
def keras_model() -> tf.keras.Model:
    return applications()


PIXELS = tf.random.stateless_uniform([2, 64, 64, 3], [1, 2], 0, 255)


def read(source: Path, **options: Any) -> tuple[tf.keras.Model, model_dir.ModelSpec]:
    opened = weight_files.open_weights(source, average=True)
    described = import_weights.describe(opened, SMALL, **options)
    return (
        import_weights.convert(opened, described, fresh_head=options.get("fresh_head", False)),
        described,
    )


def close(actual: tf.Tensor, expected: tf.Tensor) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("ending", ["weights_only.h5", "whole.h5", "whole.keras"])
def test_keras_files(
    keras_model: tf.keras.Model, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ending
    if ending == "whole.h5":
        with pytest.warns(UserWarning, match="HDF5"):
            keras_model.save(path)
    else:
        (keras_model.save_weights if "only" in ending else keras_model.save)(path)
    model, described = read(path, image_size=96)
    close(model(PIXELS), keras_model(PIXELS, training=False))
    assert described.preprocessing.image_size == 96
    assert described.label_names == tuple("01234")
    assert described.metadata["crop_fraction"] == pytest.approx(0.75)


def test_layers_before_the_network_count(tmp_path: Path) -> None:
    """Counts what the file's own Rescaling, offset included, and Normalization do to a pixel."""
    inputs = x = tf.keras.Input([4, 4, 3])
    for layer in (
        tf.keras.layers.Rescaling(1 / 127.5, offset=-1.0),
        tf.keras.layers.Normalization(name="normalization"),
        tf.keras.layers.Rescaling([2.0, 0.5, 1.0], offset=0.25),
    ):
        x = layer(x)
    model = tf.keras.Model(inputs, x)
    model.get_layer("normalization").set_weights(
        [np.array([0.1, -0.2, 0.0]), np.array([0.04, 0.25, 1.0]), np.zeros([], np.int64)]
    )
    model.get_layer("normalization").finalize_state()
    model.save(tmp_path / "layers.keras")
    mean, std = weight_files.open_weights(
        tmp_path / "layers.keras", average=True
    ).normalization or ((), ())
    pixels = PIXELS[:, :4, :4]
    np.testing.assert_allclose((pixels - mean) / std, model(pixels), atol=1e-5)


def test_kerass_published_files_store_std_as_variance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Takes the file through Keras's own `weights="imagenet"`, as a download would."""
    ours = applications(classes=1000)
    ours.layers[2].set_weights(
        [np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.zeros([])]
    )
    path = tmp_path / "efficientnetb0.h5"
    ours.save_weights(path)
    monkeypatch.setattr(keras_efficientnet.data_utils, "get_file", lambda *a, **k: str(path))
    published = applications(classes=1000, weights="imagenet", model_name="efficientnetb0")
    model, described = read(path)
    np.testing.assert_allclose(
        described.preprocessing.mean, Preprocessing(image_size=1).mean, rtol=1e-6
    )
    np.testing.assert_allclose(
        described.preprocessing.std, Preprocessing(image_size=1).std, rtol=1e-6
    )
    close(model(PIXELS), published(PIXELS, training=False))
    # Such a model's config tells the second Rescaling.
    published.save(tmp_path / "fine_tuned.keras")
    assert read(tmp_path / "fine_tuned.keras")[1].preprocessing.std == pytest.approx(
        described.preprocessing.std
    )


def test_keras_misfits(keras_model: tf.keras.Model, tmp_path: Path) -> None:
    keras_model.save_weights(tmp_path / "new.weights.h5")
    with pytest.raises(InputError, match=r"without layer names; save the model as .keras or .h5"):
        read(tmp_path / "new.weights.h5")
    extended = tf.keras.Model(
        keras_model.input, tf.keras.layers.Dense(2, name="extra")(keras_model.output)
    )
    extended.save(tmp_path / "extended.keras")
    with pytest.raises(InputError, match=r"2 unexpected: extra/bias, extra/kernel"):
        read(tmp_path / "extended.keras")
    applications(include_top=False).save_weights(tmp_path / "notop.h5")
    with pytest.raises(InputError, match=r"holds no classifier; give --head=fresh"):
        read(tmp_path / "notop.h5")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    _, described = read(tmp_path / "notop.h5", fresh_head=True, labels=str(tmp_path / "labels.txt"))
    assert described.label_names == ("cat", "dog") and described.metadata["head"] == "fresh"
    keras_model.save_weights(tmp_path / "top.h5")
    with pytest.raises(
        InputError, match=r"names 2 classes, the source has 5 classes; --head=fresh"
    ):
        read(tmp_path / "top.h5", labels=str(tmp_path / "labels.txt"))
    with pytest.raises(InputError, match="--head=fresh needs --labels"):
        read(tmp_path / "top.h5", fresh_head=True)


def test_advprop_is_recorded_and_applied(keras_model: tf.keras.Model, tmp_path: Path) -> None:
    keras_model.save_weights(tmp_path / "weights.h5")
    model, described = read(tmp_path / "weights.h5", preprocessing="advprop")
    assert described.preprocessing.mean == described.preprocessing.std == (127.5,) * 3
    np.testing.assert_allclose(model.get_layer("normalize")(PIXELS), PIXELS / 127.5 - 1, atol=1e-6)


def test_unusable_sources(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("damaged.safetensors", "damaged.h5", "damaged.keras"):
        (tmp_path / name).write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    for name in ("weights.pth", "weights.npz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    shutil.copy(f"{checkpoint}.index", tmp_path / "cut.index")
    (tmp_path / "several").mkdir()
    for name in ("a.index", "b.index", "checkpoint"):
        (tmp_path / "several" / name).write_bytes(b"\xff\xfe")
    for source, message in {
        "damaged.safetensors": "not a readable safetensors",
        "damaged.h5": "not a readable Keras file",
        "damaged.keras": "not a readable Keras file",
        "weights.pth": "not a readable PyTorch file",
        "weights.npz": "is unknown; give a TensorFlow 1 checkpoint",
        "nothing": "no file .*nothing",
        "empty": "neither model.safetensors nor",
        "several": "neither model.safetensors nor one TensorFlow 1 checkpoint",
        "several/a": "not a readable checkpoint",
        "cut": "damaged|not a readable checkpoint",
    }.items():
        with pytest.raises(InputError, match=message):
            read(tmp_path / source)


def write_h5(path: Path, **values: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[name] = value
    return path


def write_archive(path: Path, config: bytes, weights: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights)
    return path


def test_damaged_and_foreign_keras_files(tmp_path: Path) -> None:
    moments = {"normalization/mean:0": np.zeros(3), "normalization/variance:0": np.ones(3)}
    good = write_h5(tmp_path / "good.h5", **moments)
    assert weight_files.open_weights(good, average=True).normalization == ((0.0,) * 3, (255.0,) * 3)
    sources = [
        write_h5(tmp_path / "words.h5", **moments, words=np.array([b"cat", b"dog"])),
        write_h5(tmp_path / "empty.h5", nothing=h5py.Empty("f")),
        write_h5(
            tmp_path / "zero.h5",
            **{**moments, "normalization/variance:0": np.array([1.0, 0.0, -1.0])},
        ),
        write_h5(
            tmp_path / "gray.h5",
            **{
                **moments,
                "normalization/mean:0": np.zeros(1),
                "normalization/variance:0": np.ones(1),
            },
        ),
        write_h5(tmp_path / "two.h5", **moments, **{"normalization_1/mean:0": np.zeros(3)}),
    ]
    for number, config in enumerate(
        (
            b"[]",
            b"{}",
            b'{"config": []}',
            b'{"config": {"layers": [{"class_name": 5, "config": {}}]}}',
            b"\xff",
        )
    ):
        sources.append(
            write_archive(tmp_path / f"config_{number}.keras", config, good.read_bytes())
        )
    sources.append(
        write_archive(tmp_path / "weights.keras", b'{"config": {"layers": []}}', b"nonsense")
    )
    broken = bytearray(
        write_archive(
            tmp_path / "broken.keras", b'{"config": {"layers": []}}', good.read_bytes()
        ).read_bytes()
    )
    broken[200:260] = b"\xff" * 60  # in the compressed weights
    (tmp_path / "broken.keras").write_bytes(broken)
    for source in [*sources, tmp_path / "broken.keras"]:
        with pytest.raises(
            InputError, match=rf"^--source: {source} is not a readable Keras file \(.+\)$"
        ):
            weight_files.open_weights(source, average=True)


def changed(state: dict[str, np.ndarray], name: str, value: float) -> dict[str, np.ndarray]:
    array = state[name].copy()
    array.flat[1] = value
    return {**state, name: array}


def test_values_that_are_no_weights_are_refused_by_name(tmp_path: Path) -> None:
    state = random_values({row.timm: row.timm_shape for row in table()})
    for name, value in {
        "conv_stem.weight": np.nan,
        "classifier.bias": -np.inf,
        "bn1.running_var": -1e-6,
    }.items():
        state = changed(state, name, value)
    message = (
        "conv_stem.weight holds 1 values that are not finite; bn1.running_var holds 1 variances"
        " below 0; classifier.bias holds 1"
    )
    with pytest.raises(InputError, match=message):
        imported(write_timm(tmp_path / "tf_efficientnet_b0.safetensors", state))


def test_half_a_classifier_is_not_thrown_away(
    keras_model: tf.keras.Model, release: dict[str, np.ndarray], tmp_path: Path
) -> None:
    rest = {name: value for name, value in release.items() if name != "head/dense/bias"}
    path = write_checkpoint(tmp_path / "model.ckpt", rest, raw=False, slots=False)
    with pytest.raises(
        InputError, match=r"\(the file is not complete; get it again\): 1 missing: head/dense/bias$"
    ):
        read(path)
    for name in ("classifier.bias", "classifier.weight"):
        timm = {
            row.timm: np.ones(row.timm_shape, np.float32) for row in table() if row.timm != name
        }
        with pytest.raises(InputError, match=rf"1 missing: {name}$"):
            read(write_timm(tmp_path / "w.safetensors", timm))
    keras_model.save_weights(tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as file:
        del file["predictions/predictions/bias:0"]
    with pytest.raises(InputError, match=r"1 missing: predictions/bias$"):
        read(tmp_path / "w.h5")


def test_values_in_other_files_are_never_read(keras_model: tf.keras.Model, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 64)
    name = "predictions/predictions/bias:0"

    def external(file: h5py.File) -> None:
        file.create_dataset(name, (CLASSES,), "f4", external=[(str(secret), 0, 4 * CLASSES)])

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((CLASSES,), "f4")
        layout[:] = h5py.VirtualSource(str(secret), "x", (CLASSES,))
        file.create_virtual_dataset(name, layout)

    def link(file: h5py.File) -> None:
        file[name] = h5py.ExternalLink(str(secret), "/x")

    def soft(file: h5py.File) -> None:
        file["away"] = h5py.ExternalLink(str(secret), "/")
        file[name] = h5py.SoftLink("/away/x")

    def group(file: h5py.File) -> None:
        file["model_weights"] = h5py.ExternalLink(str(secret), "/")

    for harm, message in {
        external: "in another file",
        virtual: "in another file",
        link: "a link",
        soft: "a link",
        group: "a link",
    }.items():
        path = tmp_path / f"{harm.__name__}.h5"
        keras_model.save_weights(path)
        with h5py.File(path, "a") as file:
            del file[name]
            harm(file)
        with pytest.raises(
            InputError, match=rf"^--source: {path} is not a readable Keras file \(.*{message}"
        ):
            read(path)


def test_headers_that_promise_more_than_the_file_holds(
    keras_model: tf.keras.Model, checkpoint: Path, tmp_path: Path
) -> None:
    for number, options in enumerate(
        ({}, {"chunks": (1 << 20,)}, {"chunks": (1 << 20,), "compression": "gzip"})
    ):
        path = tmp_path / f"{number}.h5"
        keras_model.save_weights(path)
        with h5py.File(path, "a") as file:
            del file["predictions/predictions/bias:0"]
            # 4 TB
            file.create_dataset("predictions/predictions/bias:0", (1 << 40,), "f4", **options)
        with pytest.raises(
            InputError,
            match=r"the header promises 4,398,046,511,104 bytes of predictions/predictions/bias:0",
        ):
            read(path)
    write_archive(tmp_path / "bomb.keras", b"{}", b"\0" * (100 << 20))
    with pytest.raises(
        InputError, match=r"promises 104,857,602 bytes of weights, and the file holds"
    ):
        read(tmp_path / "bomb.keras")
    header = json.dumps(
        {"classifier.bias": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    ).encode()
    (tmp_path / "w.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"\0" * 64
    )
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read(tmp_path / "w.safetensors")
    path = tmp_path / "model.ckpt"
    shutil.copy(f"{checkpoint}.index", f"{path}.index")
    data = Path(f"{checkpoint}.data-00000-of-00001").read_bytes()
    Path(f"{path}.data-00000-of-00001").write_bytes(data[: len(data) // 2])
    with pytest.raises(
        InputError,
        match=r"model.ckpt.index promises [\d,]+ bytes of weights, and the file holds [\d,]+",
    ):
        read(path)


def test_a_checkpoint_named_with_characters_of_patterns(checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "b0 [v1] *"
    directory.mkdir()
    for file in checkpoint.parent.glob("model.ckpt.*"):
        shutil.copy(file, directory / file.name.replace("model", "model [1]"))
    expected = weight_files.open_weights(checkpoint, average=True)
    for source in (directory, directory / "model [1].ckpt"):
        found = weight_files.open_weights(source, average=True)
        np.testing.assert_array_equal(found.read(table()[-1]), expected.read(table()[-1]))


def test_names_of_classes(keras_model: tf.keras.Model, tmp_path: Path) -> None:
    keras_model.save_weights(tmp_path / "top.h5")
    labels = tmp_path / "labels.txt"
    # As an editor on Windows leaves them.
    labels.write_bytes("\ufeffcat\r\nKäfer\r\n\r\na b\r\nd\r\ne\r\n".encode())
    assert read(tmp_path / "top.h5", labels=str(labels))[1].label_names == (
        "cat",
        "Käfer",
        "a b",
        "d",
        "e",
    )
    for content, message in (
        (b"K\xe4fer\n", "is not UTF-8 text"),
        (b"\n", "names no class"),
        (b"a\na\n", "names a class twice"),
    ):
        labels.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read(tmp_path / "top.h5", labels=str(labels))


def test_the_commands_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Imports a full B0 with AdvProp's preprocessing, exports it, and imports it again: bit-exact.

    It is exported to timm and to keras.applications.
    """
    state = random_values({row.timm: row.timm_shape for row in names.weights(1.0, 1.0, CLASSES)})
    state = {name: 0.5 * (value - 1) if value.ndim > 1 else value for name, value in state.items()}
    source = write_timm(tmp_path / "tf_efficientnet_b0_ap.safetensors", state)

    def run(source: Path, output: Path, **flags: Any) -> None:
        import_weights.main(source=str(source), model="b0", output=str(output), **flags)

    def loaded(output: Path) -> tf.keras.Model:
        model, described = model_dir.load(output)
        np.testing.assert_allclose(described.preprocessing.std, (127.5,) * 3, rtol=1e-6)
        return model

    run(source, tmp_path / "imported", preprocessing="advprop")
    ours = loaded(tmp_path / "imported")
    first = ours.get_weights()
    assert len(first) == len(state)
    (tmp_path / "timm").mkdir()
    for output in (tmp_path / "timm" / "model.safetensors", tmp_path / "keras.h5"):
        export_weights.main(model=str(tmp_path / "imported"), output=str(output))
        again = tmp_path / f"again_{output.suffix[1:]}"
        run(output.parent if output.suffix == ".safetensors" else output, again)
        assert all(np.array_equal(one, two) for one, two in zip(first, loaded(again).get_weights()))
    written = load_file(tmp_path / "timm" / "model.safetensors")
    assert written.pop("bn1.num_batches_tracked").dtype == np.int64
    assert all(np.array_equal(written[name], value) for name, value in state.items())
    theirs = tf.keras.applications.EfficientNetB0(
        weights=str(tmp_path / "keras.h5"), classes=CLASSES, classifier_activation=None
    )
    images = tf.image.resize(PIXELS, [224, 224])
    close(theirs(images, training=False), ours(images))

    capsys.readouterr()
    run(source, tmp_path / "imported", preprocessing="advprop")
    assert "is done" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds a run of another config"):
        run(source, tmp_path / "imported", preprocessing="advprop", image_size=96)
    with pytest.raises(InputError, match="--weights: there is no 'best'; known: ema, raw"):
        run(source, tmp_path / "out", weights="best")
    with pytest.raises(InputError, match="missing"):
        import_weights.main(source=str(source), model="b1", output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()  # nothing half-written


@pytest.mark.parametrize("name", ["b0", "b3"])
def test_a_setting_that_is_the_variants_own_is_no_change(name: str) -> None:
    width, depth, *_ = ARCHITECTURES[name]
    own = {
        "width": width,
        "depth": depth,
        "stem_stride": 2,
        "strides": [1, 2, 2, 2, 1, 2, 1],
        "dropout": 0.5,
    }
    assert export_weights._changed({"name": name, **own}) == []
    other = {"width": 1.5, "depth": 0.5, "stem_stride": 1, "strides": [1, 1, 1, 2, 1, 2, 1]}
    for key, value in other.items():
        assert export_weights._changed({"name": name, **own, key: value}) == [key]


@pytest.mark.parametrize("content", ['{"architecture": "tf_efficientnet_b0"}', '{"seed": 0}', "{"])
def test_export_keeps_a_config_that_stands_there(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        InputError,
        match=(
            r"config.json (describes another model; name another directory, or delete it"
            r"|is damaged: )"
        ),
    ):
        export_weights.to_timm(tmp_path / "model.safetensors", tf.keras.Sequential(), spec())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == content


def test_the_same_export_once_more(tmp_path: Path) -> None:
    model = spec().build()
    for _ in range(2):
        export_weights.to_timm(tmp_path / "model.safetensors", model, spec())
    with pytest.raises(InputError, match=r"config\.json describes another model"):
        export_weights.to_timm(tmp_path / "other.safetensors", model, spec(classes=4))
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}


def test_export_refuses_what_has_no_twin(tmp_path: Path) -> None:
    model_dir.save(tmp_path / "model", spec().build(), spec())
    for output, message in {
        "w.safetensors": "no b0 with another width, depth",
        "w.h5": "no b0 with another width, depth",
        "w.pth": "must end in .safetensors",
    }.items():
        with pytest.raises(InputError, match=message):
            export_weights.main(model=str(tmp_path / "model"), output=str(tmp_path / output))
    resnet = model_dir.ModelSpec({"name": "wrn_10_1"}, Preprocessing(image_size=32), ("a", "b"))
    model_dir.save(tmp_path / "resnet", resnet.build(), resnet)
    with pytest.raises(InputError, match="timm has no counterpart of wrn_10_1"):
        export_weights.main(model=str(tmp_path / "resnet"), output=str(tmp_path / "w.safetensors"))
