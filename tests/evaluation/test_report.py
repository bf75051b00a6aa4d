"""The report of a small run: its structure, its words, and what it may not load.

Where there is a browser, the page is also shown in it.
"""

from __future__ import annotations

import base64
import html.parser
import io
import json
import platform
import re

import ml_collections
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from cli import stack
from cli.json_files import write_json
from data import protos, records
from data.preprocessing import Preprocessing, eval_image
from evaluation import build, charts, embedding, evaluate, page, pictures, report, suite_sections
from evaluation.examples import Examples
from evaluation.perturbations import FRAMES
from evaluation.suites import Inputs
from tests.evaluation import browser
from tests.evaluation.images import png
from training import model_dir
from training.model_dir import ModelSpec

NAMES = ("a & b", "<i>x</i>", "雪")
N = 10


def linear(seed):
    model = tf.keras.Sequential(
        [tf.keras.Input((8, 8, 3)), tf.keras.layers.Flatten(), tf.keras.layers.Dense(3)]
    )
    model.layers[-1].kernel.assign(
        np.random.Generator(np.random.PCG64(seed)).normal(size=(192, 3)) / 500
    )
    return model


def write_run(root):
    """Writes what run_noisy_student.sh would leave: data, two models, a round of pseudo-labels."""
    rng = np.random.Generator(np.random.PCG64(0))
    images = [png(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(N)]
    labeled = [protos.make_example(image, f"digits/{i}", i % 3) for i, image in enumerate(images)]
    records.write_split(
        root / "data" / "test", "test", labeled, 1, N, kind="labeled", label_names=NAMES
    )
    keys = [f"{'china.jpg' if i == 4 else 'digits'}/{i}" for i in range(N)]
    unlabeled = [protos.make_example(image, key) for image, key in zip(images, keys)]
    records.write_split(root / "data" / "unlabeled", "unlabeled", unlabeled, 1, N, kind="unlabeled")
    splits = {
        "labeled": {"images": 9, "per_class": {"a & b": 4, "<i>x</i>": 5, "雪": 0}},
        "unlabeled": {"images": N},
    }
    write_json(
        root / "data" / "summary.json", {"source": "digits", "out_of_domain": 1, "splits": splits}
    )
    probabilities = rng.dirichlet([0.3] * 3, N)
    predictions = [protos.make_prediction(key, p, 0) for key, p in zip(keys, probabilities)]
    records.write_split(
        root / "predictions_1",
        "predictions",
        predictions,
        1,
        N,
        kind="predictions",
        label_names=NAMES,
    )
    kept = [i for i in range(N) if probabilities[i].max() > 0.7 or i == 4]
    assert 0 < len(kept) < N
    pseudo = [protos.make_example(images[i], keys[i], None, probabilities[i]) for i in kept]
    folder = root / "pseudo_labeled_1"
    records.write_split(
        folder,
        "pseudo_labeled",
        pseudo + pseudo[:1],
        1,
        len(pseudo) + 1,
        kind="pseudo_labeled",
        label_names=NAMES,
    )
    counts = {
        "label_names": NAMES,
        "above_threshold": [2, 0, 3],
        "below_threshold": [1, 2, 2],
        "total": [3, 0, 3],
    }
    write_json(folder / "summary.json", {"images": N, "threshold": 0.7, **counts})
    for seed, name in enumerate(("teacher", "student_1")):
        spec = ModelSpec({"name": "b0"}, Preprocessing(image_size=8), NAMES)
        model_dir.save(root / name / "model", linear(seed), spec)
        write_json(
            root / name / "config.json", {"seed": seed, "note": "</pre><script>alert(1)</script>"}
        )
        rows = [
            {"step": step, "loss": 2 / step, "top1": 0.1 * step, "learning_rate": 0.1}
            for step in (1, 2, 3)
        ]
        (root / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_json(root / name / "summary.json", {"seed": seed})
    write_json(root / "config.json", {"iterations": 1})
    write_json(
        root / "choice.json",
        {"served": "student_1", "verdict": "student_1: 60.0 % of 10 labeled images"},
    )
    write_json(root / "seconds.json", {"teacher": 60.0, "student_1": 240.0, "evaluate": 5000.0})
    lines = [
        (
            "./run_teacher.sh --config=configs/a.py --config.teacher.steps=-1"
            f" --workdir={root}/teacher"
        ),
        "./run_teacher.sh --workdir=teacher",
        f"./run_student.sh --config=configs/a.py --workdir={root}/student_1",
        f"./run_student.sh --workdir={root}/student_2",  # was refused, or stopped
        f"./run_student.sh --config=configs/a.py --workdir={root}/student_1 --again",
        "./run_student.sh --workdir='cut",
        f"./run_evaluate.sh --workdir={root}/evaluation",
    ]
    (root / "commands.txt").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Evaluates all suites on a user's data: (its directory, its summary, the page's text)."""
    root = write_run(tmp_path_factory.mktemp("run"))

    def load(directory):
        spec = model_dir.read_spec(directory)
        model = linear(0)
        model.load_weights(directory / "model" / model_dir.WEIGHTS)
        return model, spec

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_dir, "load", load)
        for name in FRAMES:
            patch.setitem(FRAMES, name, 4)
        config = ml_collections.ConfigDict(
            {"evaluate": {"batch_size": 64, "fgsm_epsilons": (0.0, 4.0, 16.0), "pgd_iterations": 3}}
        )
        models = f"{root / 'teacher'},{root / 'student_1'}"
        evaluate.main(
            config,
            str(root / "evaluation"),
            models,
            str(root / "data"),
            suite="clean,c,p,adversarial",
        )
    directory = root / "evaluation"
    return (
        directory,
        json.loads((directory / "summary.json").read_text()),
        (directory / "report.html").read_text(encoding="utf-8"),
    )


def test_the_numbers_of_all_suites(run):
    directory, summary, _ = run
    for name, row in summary["models"].items():
        stored = np.load(directory / name / "adversarial.npz")
        assert (
            row["adversarial"]["epsilons"][0] == 0
            and row["adversarial"]["fgsm_top1"][0] == row["top1"]
        )
        assert row["adversarial"]["pgd_top1"] <= row["adversarial"]["fgsm_top1"][-1] + 1 / N
        assert (np.abs(stored["attacked"] - stored["images"]) <= 16).all() and stored[
            "attacked"
        ].min() >= 0
        assert len(row["c"]["errors"]) == 15 and set(row["p"]["flips"]) == set(FRAMES)
        assert row["c"]["reference"] == row["p"]["reference"] == "teacher"
        assert abs(row["c"]["unchanged_error"] - (1 - row["top1"])) <= 1 / N
    assert summary["models"]["teacher"]["c"]["mce"] == pytest.approx(100)
    teacher = summary["models"]["teacher"]["p"]
    assert teacher["mfr"] == (pytest.approx(100) if min(teacher["flips"].values()) > 0 else None)
    assert set(summary["models"]["student_1"]["versus"]) == {"clean", "c", "p", "pgd", "fgsm"}
    assert summary["report"] == str(directory / "report.html")
    assert len(list((directory / "cache").glob(f"*/{build.UNCHANGED}/manifest.json"))) == 1


VOID = {"meta", "link", "img", "br", "input"}


class Reader(html.parser.HTMLParser):
    """Checks the nesting; collects images, headings and what a page could load."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.headings, self.loads, self.ids, self.charts = (
            [],
            [],
            [],
            [],
            [],
            [],
        )
        self.links = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        if tag == "svg":
            self.charts.append(attrs)
        if tag == "a":
            self.links.append(attrs["href"])
        self.loads += [
            value
            for key, value in attrs.items()
            if key in ("src", "href", "xlink:href") and not value.startswith(("data:", "#"))
        ]
        self.ids += [attrs["id"]] if "id" in attrs else []
        assert tag not in ("script", "iframe", "object")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


def test_structure(run):
    reader = Reader()
    reader.feed(run[2])
    assert not reader.open and not reader.loads
    assert len(reader.ids) == len(set(reader.ids))
    for section in (
        "Accuracy and calibration",
        "Training",
        "Pseudo-labels",
        "Corruptions",
        "Perturbation sequences",
    ):
        assert section in reader.headings
    for section in (
        "The first image's sequences",
        "Adversarial attacks",
        "Where the models differ",
        "Commands and configs",
        "Out-of-domain images above the threshold",
    ):
        assert section in reader.headings
    assert len(reader.links) > 5 and {link[1:] for link in reader.links} <= set(reader.ids)
    assert (
        all(chart["aria-label"] and chart["role"] == "img" for chart in reader.charts)
        and len(reader.charts) >= 12
    )
    assert len(reader.images) > 15 * 3 + 5 * 4
    for image in reader.images:
        assert image["alt"]
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", image["src"]).groups()
        with PIL.Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.format.lower() == kind


def test_names_are_text_and_nothing_else(run):
    text = run[2]
    assert (
        "<i>x" not in text
        and "&lt;i&gt;x&lt;/i&gt;" in text
        and "a &amp; b" in text
        and "雪" in text
    )
    assert "<script" not in text.lower() and "alert(1)" in text
    assert "#0101" not in text and "DejaVu Sans'" not in text  # placeholders of the drawings
    assert len(text.encode()) < page.LARGEST


def test_commands_and_configs_are_on_it(run):
    assert "./run_teacher.sh --workdir=teacher" in run[2] and "&#34;fgsm_epsilons&#34;" in run[2]


def test_the_verdict_and_the_facts_come_first(run):
    text = run[2]
    order = [
        '<p class="verdict">student_1: 60.0 % of 10 labeled images</p>',
        "No labeled images, so no model can answer: 雪.",
        (
            "No pseudo-labels in round 1, so the unlabeled images could not help:"
            " &lt;i&gt;x&lt;/i&gt;."
        ),
        "<nav ",
        "<h2>Numbers</h2>",
        "<h2>About this run</h2>",
        "<dt>Data set</dt><dd>digits (",
        "<dt>Duration</dt><dd>",
        "<dt>Recipe</dt><dd>configs/a.py</dd>",
        f"Python {platform.python_version()}, {stack.current()}, NumPy {np.__version__}",
        '<th scope="row">unlabeled</th><td>10</td><td>–</td>',
        "<h2>Accuracy and calibration</h2>",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    minutes = int(re.search(r"<dd>(\d+) min, this evaluation included", text)[1])
    assert 5 <= minutes < 80  # five minutes and this evaluation's; not an earlier one's


def test_only_commands_that_were_carried_out(run):
    shown = re.search(r"<summary>Commands</summary><pre>(.*?)</pre>", run[2], re.DOTALL)[1]
    scripts = [(line.split()[0], line.split()[-1]) for line in shown.splitlines()]
    root = run[0].parent
    assert scripts == [
        ("./run_teacher.sh", "--workdir=teacher"),
        ("./run_student.sh", "--again"),
        ("./run_evaluate.sh", f"--workdir={root}/evaluation"),
    ]


def test_every_picture_names_its_file_and_can_be_enlarged(run):
    text = run[2]
    assert (
        text.count('<label><input type="checkbox"><img ')
        == text.count("<img ")
        == text.count('<span class="file">')
    )
    assert '<span class="file">china.jpg/4</span>' in text


def test_the_map_of_the_features(run):
    directory, _, text = run
    stored, answered = (
        np.load(directory / "student_1" / name) for name in ("embedding.npz", "predictions.npz")
    )
    assert (
        stored["index"].tolist() == list(range(N))
        and stored["labels"].tolist() == answered["labels"].tolist()
        and stored["places"].shape == (N, 2)
    )
    assert not (directory / "teacher" / "embedding.npz").exists()  # of the last model only
    prepared = [
        eval_image(image, Preprocessing(image_size=8)) for image in raw_images(directory.parent)
    ]
    pixels = np.stack(prepared).reshape(N, -1).astype(np.float64)  # all that the last layer reads
    centered = pixels - pixels.mean(axis=0)
    _, values, axes = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(
        np.abs(stored["places"]), np.abs(centered @ axes[:2].T), rtol=1e-3, atol=0.5
    )
    np.testing.assert_allclose(stored["explained"], (values**2 / (values**2).sum())[:2], rtol=1e-3)
    wrong = int((answered["probabilities"].argmax(axis=1) != answered["labels"]).sum())
    assert f"Features of {N} images, {wrong} of them answered wrongly" in text


def raw_images(root):
    manifest = records.read_manifest(root / "data" / "test", "labeled")
    for record in records.read_shard(manifest.directory / manifest.files[0]):
        yield (
            tf.train.Example.FromString(record)
            .features.feature["image/encoded"]
            .bytes_list.value[0]
        )


def test_many_examples_are_thinned_out_evenly():
    stream = lambda: tf.data.Dataset.range(25).map(lambda i: (b"", tf.strings.as_string(i), i))  # noqa: E731
    found = embedding.some(Examples("clean", "here", 25, 5, stream), most=10)
    assert found.count == 9 and [int(label) for _, _, label in found.stream()] == list(
        range(0, 25, 3)
    )
    assert embedding.some(found, most=9) is found


def test_names_may_hold_any_visible_character():
    """Tests that right and wrong are marked around a name, whatever stands in it."""
    names = ("C*-algebra", "~5 mm")
    lines = [
        pictures.judged("a*b", 0, 0, names),
        pictures.judged("~", 1, 0, names),
        "*plain* ~text~",
    ]
    shown = pictures.picture(np.zeros([4, 4, 3], np.uint8), "\n".join(lines))
    assert shown.text == "a*b: C*-algebra\n~: ~5 mm\n*plain* ~text~"
    right, wrong = (
        '<span class="right">✓&nbsp;a*b: C*-algebra</span>',
        '<span class="wrong">✗&nbsp;~: ~5 mm</span>',
    )
    assert f"{right}<br>{wrong}<br>*plain* ~text~</div>" in page.part("sheet", [shown])


def test_without_the_rest_of_the_run_the_pictures_are_left_out(run, tmp_path, monkeypatch):
    """Tests that a model by itself, with clean images only, has no section without content."""
    import shutil

    alone = shutil.copytree(run[0].parent / "teacher", tmp_path / "teacher")
    (alone / "metrics.jsonl").unlink()
    monkeypatch.setattr(
        model_dir, "load", lambda directory: (linear(0), model_dir.read_spec(directory))
    )
    config = ml_collections.ConfigDict({"evaluate": {"batch_size": 64}})
    evaluate.main(config, str(tmp_path / "w"), str(alone), str(run[0].parent / "data"))
    reader = Reader()
    reader.feed((tmp_path / "w" / "report.html").read_text(encoding="utf-8"))
    assert "Accuracy and calibration" in reader.headings
    assert not {
        "Training",
        "Pseudo-labels",
        "Corruptions",
        "Adversarial attacks",
        "Where the models differ",
    } & set(reader.headings)


def suites_of(directory, models, inputs=None):
    """Returns what the sections of the suites are made of, without any files."""
    pair = list(dict.fromkeys([next(iter(models)), list(models)[-1]]))
    return suite_sections.Suites(directory, models, pair, inputs or Inputs(), NAMES)


def test_a_broken_part_leaves_a_note():
    def section():
        yield "round", "1"
        raise tf.errors.DataLossError(None, None, "corrupted <record>\n at 7")

    values = report._optional(section)
    assert values.keys() == {"round", "left_out"} and values["round"] == "1"
    assert "left out: DataLossError: corrupted &lt;record&gt; at 7" in page.part("left_out", values)


def test_damage_in_the_run_does_not_stop_the_report(run, tmp_path, monkeypatch):
    import shutil

    root = shutil.copytree(
        run[0].parent, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation")
    )
    (root / "teacher" / "metrics.jsonl").write_text(
        '{"step": 1, "lo\n{"st'
    )  # the last line as a kill leaves it
    shard = records.read_manifest(root / "pseudo_labeled_1").paths[0]
    count = records.read_manifest(root / "pseudo_labeled_1").records[0]
    records.write_shard(
        shard, [protos.make_example(b"no image", "k", None, np.array([0.9, 0.1, 0.0]))] * count
    )
    monkeypatch.setattr(
        model_dir, "load", lambda directory: (linear(0), model_dir.read_spec(directory))
    )
    monkeypatch.setenv(
        "TRUST_SHARDS", "1"
    )  # or the shard is refused before its image is found to be none
    config = ml_collections.ConfigDict({"evaluate": {"batch_size": 64}})
    evaluate.main(
        config, str(root / "w"), f"{root / 'teacher'},{root / 'student_1'}", str(root / "data")
    )
    text = (root / "w" / "report.html").read_text(encoding="utf-8")
    assert (
        "metrics.jsonl, line 1 is damaged: JSONDecodeError" in text
        and "left out: InvalidArgumentError" in text
    )
    headings = [
        text.index(f"<h2>{name}</h2>") for name in ("Pseudo-labels", "Commands and configs")
    ]
    assert headings[0] < text.index("left out: InvalidArgumentError") < headings[1]


def test_sequences_of_a_model_that_is_neither_first_nor_last(tmp_path, monkeypatch):
    """Tests that fine-tuned models are left out of -P."""
    measured = {"p": {"flips": {"tilt": 0.5}, "mean_flip": 0.5}}
    inputs = Inputs(p={"tilt": (None, 3)})
    suites = suites_of(tmp_path, {"first": {}, "middle": measured, "last": {}}, inputs)
    np.savez(tmp_path / "tilt.npz", answers=np.zeros([1, 3], int), labels=[1])
    (tmp_path / "middle" / "p").mkdir(parents=True)
    (tmp_path / "tilt.npz").rename(tmp_path / "middle" / "p" / "tilt.npz")
    asked = []
    monkeypatch.setattr(
        pictures,
        "frames",
        lambda examples, which, given, label, names: asked.append((list(given), label)) or [],
    )
    assert dict(suite_sections.sequence_pictures(suites)) == {"pictures": {"tilt": []}}
    assert asked == [(["middle"], 1)]
    assert list(suite_sections.sequence_pictures(suites_of(tmp_path, {"first": {}}))) == []


def test_extra_corruptions_are_part_of_no_mean(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        charts, "lines", lambda label, series, *rest, **options: drawn.extend(series) or ""
    )
    errors = {"fog": [0.1, 0.2, 0.3, 0.4, 0.5], "spatter": [0.9] * 5}
    row = {"errors": errors, "mean_error": 0.3, "mce_of_part": 50.0, "reference": "AlexNet"}
    sections = dict(suite_sections.corruptions(suites_of(tmp_path, {"m": {"c": row}})))
    text = page.part("charts", *sections.values())
    ((_, severities, top1),) = drawn
    assert list(severities) == [1, 2, 3, 4, 5] and top1 == pytest.approx([90, 80, 70, 60, 50])
    assert "mCE of 1 corruptions" in text and "spatter" in text
    extra = {
        "errors": {"spatter": [0.9] * 5},
        "mean_error": None,
        "mce": None,
        "reference": "AlexNet",
    }
    sections = dict(suite_sections.corruptions(suites_of(tmp_path, {"m": {"c": extra}})))
    text = page.part("charts", *sections.values())
    assert "spatter" in text and "Mean error" not in text and "mCE" not in text


@pytest.mark.skipif(browser.PROGRAM is None, reason=browser.WHERE_FROM)
def test_in_a_browser(run, tmp_path):
    """The page loads from disk with no complaint and no request, and renders every picture.

    It never scrolls sideways, and is legible in light, dark and print.
    """
    with browser.Browser(tmp_path / "profile") as chromium:
        for width, dark, media in (
            (1280, False, ""),
            (390, False, ""),
            (390, True, ""),
            (800, False, "print"),
        ):
            chromium.open(f"file://{run[0] / 'report.html'}", width=width, dark=dark, media=media)
            images = chromium.evaluate(
                "[...document.images].map(i => i.complete && i.naturalWidth > 0)"
            )
            assert len(images) > 70 and all(images)
            sizes = chromium.evaluate(
                "[...document.querySelectorAll('figure svg')].map(s =>"
                " s.getBoundingClientRect().height)"
            )
            assert len(sizes) >= 12 and min(sizes) > 40
            assert chromium.evaluate("document.documentElement.scrollWidth") <= width
            assert all(value >= 4.5 for value in chromium.evaluate(CONTRASTS)), (width, dark, media)
        chromium.open(f"file://{run[0] / 'report.html'}", width=390)
        hints = (
            "[...document.querySelectorAll('.wide')].map(t => getComputedStyle(t,"
            " '::before').content)"
        )
        assert "Scroll sideways" in chromium.evaluate(hints)[0]
        width = "document.querySelector('.sheet img').getBoundingClientRect().width"
        assert chromium.evaluate(width) < 100
        chromium.evaluate("document.querySelector('.sheet img').click()")
        assert chromium.evaluate(width) == 390
        chromium.evaluate("document.querySelector('.sheet img').click()")
        assert chromium.evaluate(width) < 100
        chromium.screenshot(tmp_path / "report.png")
        with PIL.Image.open(tmp_path / "report.png") as picture:
            assert picture.height > 2000 and len(picture.convert("RGB").getcolors(1 << 24)) > 100
    assert {url for url in chromium.requests if not url.startswith("data:")} == {
        f"file://{run[0] / 'report.html'}"
    }
    assert not chromium.complaints


# Contrast (WCAG 2.1) of the text that the page writes, against the paper and the cards behind it.
CONTRASTS = """
(() => {
  const luminance = ([r, g, b]) => {
    const f = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const color = name => {
    const probe = document.createElement('span');
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number);
    probe.remove();
    return luminance(value);
  };
  const pairs = [];
  for (const front of ['--ink', '--quiet', '--good', '--bad'])
    for (const back of ['--paper', '--card']) {
      const [a, b] = [color(front), color(back)].sort((x, y) => y - x);
      pairs.push((a + 0.05) / (b + 0.05));
    }
  return pairs;
})()
"""
