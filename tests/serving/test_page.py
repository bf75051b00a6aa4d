"""The page at `GET /`: what it may not load, and what a person sees in a browser."""

from __future__ import annotations

import base64
import urllib.request

import numpy as np
import pytest

from serving import page
from tests.evaluation import browser

from .conftest import NAMES

CHOOSE = """(async () => {
  const bytes = Uint8Array.from(atob("%s"), (c) => c.charCodeAt(0));
  const chosen = new DataTransfer();
  chosen.items.add(new File([bytes], "%s"));
  %s
  for (let i = 0; i < 1000 && ["", "…"].includes(document.getElementById("said").textContent); i++)
    await new Promise((resolve) => setTimeout(resolve, 20));
  return {
    said: document.getElementById("said").textContent,
    bad: document.getElementById("said").className,
    classes: [...document.querySelectorAll("li")].map((item) => item.textContent),
    shown: document.getElementById("shown").naturalWidth,
    room: document.documentElement.scrollWidth <= innerWidth,
  };
})()"""
BY_HAND = """document.getElementById("file").files = chosen.files;
  document.getElementById("file").onchange();"""
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
