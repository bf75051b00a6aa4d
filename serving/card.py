"""Writes `MODEL_CARD.md` of an exported version: what it is, how it performs, what it is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.answers import REASONS
from training import architectures
from training.model_dir import ModelSpec

_SHOWN_CLASSES = 20


def text(
    name: str,
    version: int,
    spec: ModelSpec,
    training: Mapping[str, Any],
    stored: Mapping[str, Any],
) -> str:
    """Returns the card as Markdown.

    Args:
      name: name of the model.
      version: number of the version.
      spec: specification of the model.
      training: `summary.json` of the training.
      stored: what the export did: `weights`, `optimize`, `max_pixels`, `deviation` (largest
        difference of a probability) and `deviation_images`. With an ONNX file also `onnx`: its
        `opset` and `deviation`; with labeled images `neighbors`: their count `images`. Further,
        what the export was told: `license`, a line, and `evaluation`: None, or `split`, `examples`
        and `metrics` (name -> number) of this model.
    """
    preprocessing = spec.preprocessing
    names = ", ".join(f"`{label}`" for label in spec.label_names[:_SHOWN_CLASSES])
    if spec.num_classes > _SHOWN_CLASSES:
        names += (
            ", … (all of them in `assets.extra/labels.txt`;"
            f" {spec.num_classes - _SHOWN_CLASSES} more)"
        )
    folded = ", BatchNorm folded, weights as constants" if stored["optimize"] else ""
    onnx = stored.get("onnx")
    also = ""
    if onnx:
        also = (
            " `assets.extra/model.onnx` is the same model for other runtimes (ONNX, opset"
            f" {onnx['opset']}). On the same images its probabilities differ by at most"
            f" {onnx['deviation']:.2g}."
        )
    near = stored.get("neighbors")
    copies = ""
    if near:
        copies = (
            f" `assets.extra/neighbors.npz` holds thumbnails and names of {near['images']:,} of the"
            " labeled images; whoever gets the export gets them, too."
        )
    trained = ", ".join(
        f"{training[key]:,} {words}" for key, words in _TRAINING.items() if key in training
    )
    parts = [
        f"# {name}, version {version}",
        f"An image classifier with {spec.num_classes} classes: {names}.",
        "## Model",
        (
            f"{network(spec.architecture)}, {preprocessing.image_size} ×"
            f" {preprocessing.image_size} pixels, averaged weights where the training kept an"
            f" average. Weights on disk: {stored['weights']}{folded}. Its probabilities differ by"
            f" at most {stored['deviation']:.2g} from those of the trained model"
            f" ({stored['deviation_images']} synthetic images, float32).{also}"
        ),
        "## Data",
        (
            f"Trained with {trained or 'nothing on record'}. Images reach the network as in"
            f" evaluation: style `{preprocessing.style}`, bicubic to the size above, mean and"
            " deviation inside the network. The data themselves are described by the"
            f" `manifest.json` files of the training's data directory.{copies}"
        ),
        "## Metrics",
        _metrics(training, stored["evaluation"]),
        "## Intended use",
        (
            "Sorting images of the kind it was trained on into the classes above. It names one of"
            " these classes for every image, also for one that shows none of them, and its"
            " probabilities are as good as the calibration (ECE) above on data like that of the"
            " measurement; elsewhere they are not known. It has not been examined for decisions"
            " about people."
        ),
        "An image with a `status` other than 0 has no answer: "
        + "; ".join(f"{status}: {words}" for status, words in enumerate(REASONS) if status)
        + f". The model accepts up to {stored['max_pixels']:,} pixels.",
        "## License",
        stored["license"],
    ]
    return "\n\n".join(parts) + "\n"


def network(architecture: Mapping[str, Any]) -> str:
    """Returns the network's name as in its paper, with the factors of a changed width or depth."""
    name = architecture["name"]
    family = architectures.find(name)
    factors = ("width", "depth") if family.in_table else ()
    changed = [
        f"{key} {architecture[key]:g}" for key in factors if architecture.get(key) is not None
    ]
    return f"{family.title(name)} ({', '.join(changed)})" if changed else family.title(name)


TRAINING = {"steps?": int, "images_seen?": int, "parameters?": int, "last?": dict}
"""Fields of a training's `summary.json` that the card needs."""

_TRAINING = {"steps": "optimizer steps", "images_seen": "images seen", "parameters": "parameters"}


def _metrics(training: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is not None:
        title = "On the sets of its evaluation:"
        if evaluation["examples"] is not None:
            title = (
                f"On the {evaluation['examples']:,} images of the split `{evaluation['split']}`:"
            )
        numbers = evaluation["metrics"]
    else:
        title = (
            "At the last step of the training, on its own batches (not on held-out images; name"
            " `--evaluation` at the export for those):"
        )
        numbers = training.get("last", {})
    rows = [
        f"| {key} | {value:.4g} |"
        for key, value in numbers.items()
        if isinstance(value, (int, float))
    ]
    return (
        "\n".join([title, "", "| metric | value |", "|---|---|", *rows])
        if rows
        else "None on record."
    )
