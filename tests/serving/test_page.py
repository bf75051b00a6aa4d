"""The page at `GET /`: what it may not load, and what a person sees in a browser."""

from __future__ import annotations

import base64
import shutil
import urllib.request

import numpy as np
import pytest

from data.records import read_manifest
from serving import export, page, rest
from serving.lite import encoded_examples
from serving.models import Models
from tests.evaluation import browser

from .conftest import NAMES

CHOOSE = """(async () => {
  const bytes = Uint8Array.from(atob("%s"), (c) => c.charCodeAt(0));
  const chosen = new DataTransfer();
  chosen.items.add(new File([bytes], "%s"));
  %s
  const text = (id) => document.getElementById(id).textContent;
  const waits = () => ["", "…"].includes(text("said")) || text("doubt").endsWith("…");
  for (let i = 0; i < 1000 && waits(); i++)
    await new Promise((resolve) => setTimeout(resolve, 20));
  const overlay = document.getElementById("overlay"), copy = document.createElement("canvas");
  const pen = copy.getContext("2d", {willReadFrequently: true});
  pen.drawImage(overlay, 0, 0);
  return {
    why: !document.getElementById("why").hidden,
    doubt: text("doubt"), caption: text("caption"), none: text("none"),
    near: [...document.querySelectorAll("#near figure")].map((one) => [
      one.querySelector("img").alt, one.querySelector("img").naturalWidth, one.textContent]),
    red: [...pen.getImageData(0, 0, overlay.width, overlay.height).data]
      .filter((_, place) => place %% 4 === 3),
    prepared: document.getElementById("prepared").naturalWidth,
    said: document.getElementById("said").textContent,
    bad: document.getElementById("said").className,
    classes: [...document.querySelectorAll("li")].map((item) => item.textContent),
    shown: document.getElementById("shown").naturalWidth,
    room: document.documentElement.scrollWidth <= innerWidth,
  };
})()"""
BY_HAND = """document.getElementById("file").files = chosen.files;
  document.getElementById("file").onchange();"""
FAINT = """(() => {
  const strength = document.getElementById("strength");
  strength.value = 25;
  strength.oninput();
  return getComputedStyle(document.getElementById("overlay")).opacity;
})()"""
DROPPED = """document.body.dispatchEvent(
    new DragEvent("drop", {dataTransfer: chosen, bubbles: true, cancelable: true}));"""


def test_the_page_loads_nothing_from_elsewhere(server):
    with urllib.request.urlopen(server.url["http"], timeout=60) as response:
        text, policy = response.read().decode(), response.headers["content-security-policy"]
    assert response.headers["content-type"].startswith("text/html") and "classifier" in text
    assert policy.startswith("default-src 'none'; connect-src 'self';")
    assert "http://" not in text and "https://" not in text


def test_a_models_name_is_no_markup():
    assert "</script><b>" not in page.html(["</script><b>"])


@pytest.fixture(scope="module")
def with_neighbors(small, data, tmp_path_factory):
    """Starts a server, in this process, of an export that has an index of labeled images."""
    serving_dir = tmp_path_factory.mktemp("neighbors") / "serving"
    shutil.copytree(small.path, serving_dir)
    export.main(str(serving_dir), str(small.directory), neighbors=str(data))
    server = rest.start("127.0.0.1", 0, Models(serving_dir, True), 20.0)
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.skipif(browser.PROGRAM is None, reason=browser.WHERE_FROM)
def test_in_a_browser(server, small, encoded_images, tmp_path):
    (image,) = encoded_images("PNG", n=1)
    best = np.argsort(small.evaluate([image])[0])[::-1][:5]
    expected = [small.evaluate([image])[0][place] for place in best]
    with browser.Browser(tmp_path / "profile") as chromium:
        for width, way in ((1280, DROPPED), (390, BY_HAND)):
            chromium.open(server.url["http"], width=width)
            content = base64.b64encode(image).decode()
            seen = chromium.evaluate(CHOOSE % (content, "one.png", way))
            assert (seen["said"], seen["bad"], seen["shown"]) == ("one.png", "", 37)
            assert seen["room"]
            assert [row.partition("%")[2] for row in seen["classes"]] == [NAMES[i] for i in best]
            shares = [float(row.partition(" %")[0]) / 100 for row in seen["classes"]]
            np.testing.assert_allclose(shares, expected, atol=6e-4, rtol=0)
        none = base64.b64encode(b"no image").decode()
        seen = chromium.evaluate(CHOOSE % (none, "x.jpg", BY_HAND))
        assert seen["bad"] == "bad" and seen["said"].startswith("x.jpg: not a JPEG, PNG")
        assert seen["classes"] == []
        assert {url.split("/")[2] for url in chromium.requests if url.startswith("http")} == {
            server.url["http"].split("/")[2]
        }
        assert chromium.complaints == []


@pytest.mark.skipif(browser.PROGRAM is None, reason=browser.WHERE_FROM)
def test_what_the_answer_depends_on(server, with_neighbors, small, data, tmp_path):
    (number, encoded, label), *_ = encoded_examples(read_manifest(data / "labeled", "labeled"))
    image = encoded.numpy()
    content = base64.b64encode(image).decode()
    with browser.Browser(tmp_path / "profile") as chromium:
        for width, dark in ((1280, False), (390, True)):
            chromium.open(with_neighbors, width=width, dark=dark)
            seen = chromium.evaluate(CHOOSE % (content, "one.png", BY_HAND))
            assert seen["why"] and seen["doubt"] == "" and seen["room"]
            best = NAMES[small.evaluate([image])[0].argmax()]
            assert f"the probability of {best} (" in seen["caption"] and seen["prepared"] == 16
            assert len(seen["red"]) == 49 and max(seen["red"]) == 255 and min(seen["red"]) < 255
            assert len(seen["near"]) == 6
            assert seen["near"][0] == [f"labeled{number}", 20, f"{NAMES[label]}1.000"]
            assert chromium.evaluate(FAINT) == "0.25"
        chromium.open(server.url["http"])
        seen = chromium.evaluate(CHOOSE % (content, "one.png", BY_HAND))
        assert seen["why"] and seen["near"] == [] and "--neighbors=DATA" in seen["none"]
        seen = chromium.evaluate(CHOOSE % ("", "none.png", BY_HAND))
        assert seen["bad"] == "bad" and not seen["why"] and seen["doubt"] == ""
        assert len({url.split("/")[2] for url in chromium.requests if url.startswith("http")}) == 2
        assert chromium.complaints == []
