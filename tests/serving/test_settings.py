"""The settings parse as TF Serving parses them.

The tests use its messages, or the fields that its 2.15 release declares.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving import batching, settings
from serving.versions import bare_config

FIELD = descriptor_pb2.FieldDescriptorProto
INT64 = ".google.protobuf.Int64Value"


def message(name, fields):
    """Makes a message class that is not in tensorflow-serving-api.

    `fields`: message name -> (name, number, type, repeated or not) of each field.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="test", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    for message_name, members in fields.items():
        proto = file.message_type.add(name=message_name)
        for member, number, kind, label in members:
            field = proto.field.add(name=member, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = FIELD.TYPE_MESSAGE, kind
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    for one in (wrappers, file):
        pool.AddSerializedFile(one.SerializeToString())
    descriptor = pool.FindMessageTypeByName(f"test.{name}")
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)


# tensorflow_serving/servables/tensorflow/session_bundle_config.proto and
# config/monitoring_config.proto, release 2.15
BATCHING = {
    "BatchingParameters": [
        ("max_batch_size", 1, INT64, FIELD.LABEL_OPTIONAL),
        ("batch_timeout_micros", 2, INT64, FIELD.LABEL_OPTIONAL),
        ("max_enqueued_batches", 3, INT64, FIELD.LABEL_OPTIONAL),
        ("num_batch_threads", 4, INT64, FIELD.LABEL_OPTIONAL),
        ("thread_pool_name", 5, ".google.protobuf.StringValue", FIELD.LABEL_OPTIONAL),
        ("allowed_batch_sizes", 6, FIELD.TYPE_INT64, FIELD.LABEL_REPEATED),
        ("pad_variable_length_inputs", 7, FIELD.TYPE_BOOL, FIELD.LABEL_OPTIONAL),
    ]
}
MONITORING = {
    "PrometheusConfig": [
        ("enable", 1, FIELD.TYPE_BOOL, FIELD.LABEL_OPTIONAL),
        ("path", 2, FIELD.TYPE_STRING, FIELD.LABEL_OPTIONAL),
    ],
    "MonitoringConfig": [("prometheus_config", 1, ".test.PrometheusConfig", FIELD.LABEL_OPTIONAL)],
}


@pytest.fixture
def written(tmp_path):
    """Makes a SERVING_DIR with versions 3 and 7 of one model."""
    for version in ("3", "7"):
        (tmp_path / "classifier" / version).mkdir(parents=True)
        (tmp_path / "classifier" / version / "saved_model.pb").touch()
    settings.write(tmp_path, "classifier")
    return tmp_path


def test_models(written):
    text = (written / "models.config").read_text(encoding="utf-8")
    entries = text_format.Parse(
        text, model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config
    assert [entry.name for entry in entries] == ["classifier", "classifier-canary"]
    assert {(entry.base_path, entry.model_platform) for entry in entries} == {
        ("/models/classifier", "tensorflow")
    }
    assert [list(entry.model_version_policy.specific.versions) for entry in entries] == [[3], [7]]
    # TF Serving refuses to move a label to a version that is not loaded.
    assert not any(entry.version_labels for entry in entries)


def test_a_bare_server_follows(written):
    bare = written / ".models.config"
    settings.set_stable(written, "classifier", 7)
    assert not bare.exists()  # no bare server has been started
    bare_config(written)
    settings.set_stable(written, "classifier", 3)
    models = (written / "models.config").read_text(encoding="utf-8")
    assert "versions: 3" in models and bare.read_text(encoding="utf-8") == models.replace(
        '"/models/', f'"{written}/'
    )


def test_batching(written):
    text = (written / "batching_parameters.txt").read_text(encoding="utf-8")
    parsed = text_format.Parse(text, message("BatchingParameters", BATCHING)())
    assert parsed.allowed_batch_sizes == sorted(parsed.allowed_batch_sizes)
    # or the server refuses to start
    assert (
        parsed.allowed_batch_sizes[-1]
        == parsed.max_batch_size.value
        == settings.ALLOWED_BATCH_SIZES[-1]
    )
    ours = batching.parameters(Path(written / "batching_parameters.txt"))
    assert ours.pop("allowed_batch_sizes") == list(parsed.allowed_batch_sizes)
    assert ours == {name: getattr(parsed, name).value for name in ours} and len(ours) == 4


def test_monitoring(written):
    text = (written / "monitoring.config").read_text(encoding="utf-8")
    parsed = text_format.Parse(text, message("MonitoringConfig", MONITORING)())
    assert parsed.prometheus_config.enable
    assert parsed.prometheus_config.path == "/monitoring/prometheus/metrics"


def test_an_unknown_field_would_be_noticed():
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batchsize { value: 1 }", message("BatchingParameters", BATCHING)())
