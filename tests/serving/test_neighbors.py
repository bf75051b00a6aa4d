"""The index of labeled images of an export: what it holds, and which images it finds."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import PIL.Image
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from cli.errors import InputError
from data.records import read_manifest
from serving import export, neighbors, versions
from serving.lite import encoded_examples

from .conftest import NAMES


@pytest.fixture
def copied(small, tmp_path):
    """Returns a SERVING_DIR with a version that a test may change."""
    shutil.copytree(small.path, tmp_path / "serving")
    return tmp_path / "serving"


def version_of(serving_dir):
    return serving_dir / "classifier" / "1"


def test_nearest_are_those_of_sklearn():
    rng = np.random.Generator(np.random.PCG64(3))
    vectors = rng.normal(0, 1, (50, 8)).astype(np.float32) * rng.uniform(0.1, 9, (50, 1))
    words = [str(i) for i in range(50)]
    index = neighbors.Index(neighbors._unit(vectors), words, words, [b""] * 50)
    for query in rng.normal(0, 5, (5, 8)).astype(np.float32):
        expected = cosine_similarity(vectors, query[np.newaxis])[:, 0]
        found = neighbors.nearest(index, query, 7)
        assert [int(one.key) for one in found] == np.argsort(-expected)[:7].tolist()
        np.testing.assert_allclose(
            [one.similarity for one in found], np.sort(expected)[::-1][:7], atol=1e-6
        )
    assert len(neighbors.nearest(index, vectors[0], 99)) == 50
    assert neighbors.nearest(index, np.zeros(8, np.float32), 1)[0].similarity == 0


def test_a_version_gets_an_index_when_asked(small, copied, data, capsys):
    version, extra = version_of(copied), version_of(copied) / "assets.extra"
    assert neighbors.read_index(version) is None and not (extra / neighbors.FILE).exists()
    before = (version / "saved_model.pb").stat().st_mtime_ns
    export.main(str(copied), str(small.directory), neighbors=str(data))
    assert "thumbnails and names of 21 labeled images" in capsys.readouterr().out
    assert (version / "saved_model.pb").stat().st_mtime_ns == before
    versions.verify(version)
    assert "names of 21 of the labeled images" in (version / "MODEL_CARD.md").read_text("utf-8")
    assert json.loads((version / "assets.extra/export.json").read_text())["neighbors"]["seed"] == 0

    index = neighbors.read_index(version)
    for number, encoded, label in encoded_examples(read_manifest(data / "labeled", "labeled")):
        (embedding,) = small.serve("embed", image_bytes=[encoded])["embedding"]
        best = neighbors.nearest(index, embedding, 1)[0]
        assert (best.key, best.label) == (f"labeled{number}", NAMES[label])
        assert best.similarity == pytest.approx(1, abs=1e-3)
        with PIL.Image.open(io.BytesIO(best.thumbnail)) as image:
            assert (image.format, image.size) == ("JPEG", (20, 24))

    written = (extra / neighbors.FILE).stat().st_mtime_ns
    export.main(str(copied), str(small.directory), neighbors=str(data))
    assert (extra / neighbors.FILE).stat().st_mtime_ns == written


def test_unusable_data_leave_the_version_as_it_is(small, copied, data, tmp_path):
    described = (version_of(copied) / "assets.extra" / "export.json").read_bytes()
    with pytest.raises(InputError, match="is not finished"):
        export.main(str(copied), str(small.directory), neighbors=str(tmp_path))
    shutil.copytree(data, tmp_path / "other")
    manifest = tmp_path / "other" / "labeled" / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"zero"', '"null"'), "utf-8")
    with pytest.raises(InputError, match="class 0 is 'null'"):
        export.main(str(copied), str(small.directory), neighbors=str(tmp_path / "other"))
    assert (version_of(copied) / "assets.extra" / "export.json").read_bytes() == described
    assert neighbors.read_index(version_of(copied)) is None


def test_a_damaged_index_is_named(copied):
    path = version_of(copied) / "assets.extra" / neighbors.FILE
    for content in (b"PK", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"neighbors\.npz cannot be read .*run_export"):
            neighbors.read_index(version_of(copied))


def test_the_draw_is_bounded_and_repeats():
    assert neighbors._draw(5) == list(range(5))
    drawn = neighbors._draw(10 * neighbors.MOST)
    assert len(set(drawn)) == neighbors.MOST and drawn == sorted(drawn)
    assert drawn[-1] < 10 * neighbors.MOST and drawn == neighbors._draw(10 * neighbors.MOST)


def test_thumbnails_are_small_and_have_no_metadata(encoded_images):
    exif = PIL.Image.Exif()
    exif[0x010E] = "a person's name"
    (image,) = encoded_images("JPEG", (300, 90), n=1, exif=exif)
    assert b"a person's name" in image
    thumbnail = neighbors._thumbnail(image)
    assert b"a person's name" not in thumbnail
    with PIL.Image.open(io.BytesIO(thumbnail)) as small:
        assert small.size == (96, 29)
