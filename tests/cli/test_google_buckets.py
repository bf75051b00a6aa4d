"""Tests what is peculiar to Google Cloud Storage; `test_buckets.py` has what all stores share."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cli import buckets, gcs, places, stores
from cli.errors import InputError
from cli.files import atomic_path
from cli.flags import Command, Flag
from cli.objects import Place
from tests import google_server

COMMAND = Command("teacher", "no:thing", "Does it.", "Leaves it.", (Flag("workdir", "Where."),), ())


@pytest.fixture(name="google")
def _google(tmp_path, monkeypatch):
    with google_server.running(monkeypatch, tmp_path / "cache") as server:
        yield server


def staged():
    return places.staged(COMMAND, {"workdir": "gs://bucket/a/run"}, False)


@pytest.mark.parametrize("damage", [lambda content: content[:-1] + b"x", lambda content: b"x"])
def test_a_damaged_upload_to_google_is_noticed(google, damage):
    path = Path(buckets.local_path("gs://bucket/file"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")
    google.damage = damage
    with pytest.raises(InputError, match=r"no answer after \d attempts \(NotWhole\)"):
        buckets.publish(path)


def test_google_lists_in_pages_and_keys_may_hold_any_character(google):
    google.page = 2
    keys = [f"a/x {i} é?%2F&#+.txt" for i in range(5)]
    for key in keys:
        google.put(key, key.encode())
    google.put("b", b"")
    place = Place("gs", "bucket", "a/")
    found = stores.find(place)
    assert list(found) == keys and len(google.requests) == 3
    one = place._replace(key=keys[3])
    assert stores.look(one) == found[keys[3]]
    assert stores.read(one) == (keys[3].encode(), found[keys[3]].tag)
    stores.delete(one)
    stores.delete(one)
    assert stores.look(one) is None and keys[3] not in google.objects()


def test_no_permission_no_server_no_credentials_at_google(google, monkeypatch, tmp_path):
    def message():
        with pytest.raises(InputError) as raised:
            staged().__enter__()
        return str(raised.value)

    google.fault = lambda method, key: "403 forbidden"
    assert "gs://bucket/a/run/.claim.json: no permission (forbidden); check" in message()
    google.fault = lambda method, key: "500 backendError"
    assert f"{google.url} gives no answer after 7 attempts (500 backendError)" in message()
    monkeypatch.setenv(gcs.EMULATOR, "http://user:hidden@127.0.0.1:9")
    said = message()
    assert "127.0.0.1:9 gives no answer after 7 attempts (ConnectionError)" in said
    assert "hidden" not in said
    monkeypatch.setenv(gcs.EMULATOR, "http://[nonsense")
    assert "gs:// cannot be used (InvalidURL); check STORAGE_EMULATOR_HOST" in message()
    monkeypatch.delenv(gcs.EMULATOR)
    gcs._session.cache_clear()
    monkeypatch.setitem(sys.modules, "google.auth", None)
    assert "gs:// needs the package google-auth; docs/installation.md says" in message()
    monkeypatch.undo()
    pytest.importorskip("google.auth")
    monkeypatch.setenv(buckets.CACHE, str(tmp_path))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    gcs._session.cache_clear()
    assert "no credentials (DefaultCredentialsError); set GOOGLE_APPLICATION_CRED" in message()


def test_google_s_credentials_are_used_and_not_shown(google, monkeypatch, tmp_path, capfd):
    """Tests a service account whose tokens a server on loopback gives out."""
    pytest.importorskip("google.auth")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "client_email": "me@example.com",
        "private_key": key.decode(),
        "token_uri": f"{google.url}/token",
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    monkeypatch.delenv(gcs.EMULATOR)
    monkeypatch.setattr(gcs, "_HOST", google.url)
    gcs._session.cache_clear()
    with staged() as values, atomic_path(Path(values["workdir"], "file")) as temporary:
        temporary.write_text("x")
    assert google.tokens == {"Bearer very-secret"} and list(google.objects()) == ["a/run/file"]
    google.fault = lambda method, key: "403 forbidden"
    with pytest.raises(InputError) as raised:
        staged().__enter__()
    out, err = capfd.readouterr()
    assert "secret" not in f"{raised.value}{out}{err}"
    gcs._session.cache_clear()
