"""The PyTorch side of `benchmarks.models.check` and `benchmarks.train_step`.

The networks are timm's, torchvision's, and a Wide ResNet written as theirs are. PyTorch is imported
inside the functions, so that the other checks run without it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def load_torch() -> Any:
    """Returns PyTorch with two threads; torchvision is importable where it is installed."""
    import torch

    torch.set_num_threads(2)
    try:
        import torchvision
    except ModuleNotFoundError:
        pass  # a Wide ResNet needs none
    except (
        RuntimeError
    ):  # its compiled operations do not load; with these two names it imports all the same
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)  # the definitions live as long as it does
        import torchvision  # noqa: F401
    return torch


_LIBRARIES: list[Any] = []


def efficientnet(name: str, classes: int) -> Any:
    """Returns the model of timm, without weights and without noise."""
    torch = load_torch()
    import timm

    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=classes)


def resnet50(classes: int) -> Any:
    """Returns the model of torchvision."""
    torch = load_torch()
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.resnet50(num_classes=classes)


def WideResNet(depth: int, width: int, classes: int) -> Any:
    """Returns the network of the paper's Table 1.

    It has a stem of 16 channels, three groups of pre-activated blocks, and shortcuts of the
    activated input.
    """
    torch = load_torch()
    nn = torch.nn
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self, inside: int, outside: int, stride: int):
            super().__init__()
            self.bn1, self.bn2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
            self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
            if stride != 1 or inside != outside:
                self.shortcut_conv = nn.Conv2d(inside, outside, 1, stride, bias=False)

        def forward(self, x: Any) -> Any:
            y = self.bn1(x).relu()
            shortcut = self.shortcut_conv(y) if hasattr(self, "shortcut_conv") else x
            return self.conv2(self.bn2(self.conv1(y)).relu()) + shortcut

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem_conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            channels = 16
            self.order = []
            for group in range(3):
                for block in range((depth - 4) // 6):
                    name = f"block{group + 1}{'abcdefgh'[block]}"
                    outside = 16 * width * 2**group
                    self.add_module(name, Block(channels, outside, 2 if group and not block else 1))
                    self.order.append(name)
                    channels = outside
            self.top_bn = nn.BatchNorm2d(channels)
            self.predictions = nn.Linear(channels, classes)

        def forward(self, x: Any) -> Any:
            x = self.stem_conv(x)
            for name in self.order:
                x = getattr(self, name)(x)
            return self.predictions(self.top_bn(x).relu().mean((2, 3)))

    return Net()


def _tensor(images: np.ndarray) -> Any:
    return load_torch().from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32))


def settle(model: Any, images: np.ndarray) -> None:
    """Sets random scales and shifts, and moving averages that fit the activations.

    The activations are those of the normalized `images` (B, H, W, 3). Channels that hardly vary are
    not blown up to unit variance: a deep random network is chaotic enough to turn a last bit at the
    input into half a logit.
    """
    torch = load_torch()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in norms:
        torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        torch.nn.init.normal_(module.bias, 0.0, 0.2)
        module.momentum = 1.0
    with torch.no_grad():
        model.train()(_tensor(images))
        for module in norms:
            module.running_var.clamp_(min=0.3 * float(module.running_var.mean()))
    model.eval()


def logits(model: Any, images: np.ndarray, *, bfloat16: bool = False) -> np.ndarray:
    """Returns logits, float32 (B, K), of normalized images (B, H, W, 3), sixteen at a time.

    `bfloat16`: computes under autocast.
    """
    torch = load_torch()
    found = []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        for start in range(0, len(images), 16):
            found.append(model(_tensor(images[start : start + 16])).float().numpy())
    return np.concatenate(found)


def gradients(
    model: Any, images: np.ndarray, labels: np.ndarray, *, double: bool = False
) -> dict[str, np.ndarray]:
    """Returns the gradients of the mean cross entropy in training mode, by parameter.

    `double`: computes in float64, and the model stays so.
    """
    torch = load_torch()
    tensor = _tensor(images)
    if double:
        model, tensor = model.double(), tensor.double()
    model.zero_grad()
    torch.nn.functional.cross_entropy(model.train()(tensor), torch.from_numpy(labels)).backward()
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def save(model: Any, path: Path) -> None:
    """Writes the state as safetensors."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.numpy() for name, value in model.state_dict().items()},
        path,
        metadata={"format": "pt"},
    )


def load(model: Any, path: Path) -> None:
    """Loads safetensors, strictly: no name may be missing or left over."""
    from safetensors.numpy import load_file

    torch = load_torch()
    model.load_state_dict(
        {name: torch.from_numpy(value) for name, value in load_file(path).items()}, strict=True
    )
    model.eval()


def residual_state(model: Any, name: str) -> dict[str, np.ndarray]:
    """Returns a PyTorch residual network's numbers under our names, in Keras's layout."""
    leaves = {"running_mean": "moving_mean", "running_var": "moving_variance"}
    renamed = {
        "conv1": "stem_conv",
        "bn1": "stem_bn",
        "fc": "predictions",
        "downsample.0": "shortcut_conv",
        "downsample.1": "shortcut_bn",
    }
    found = {}
    for key, tensor in model.state_dict().items():
        layer, _, leaf = key.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        value = tensor.numpy()
        if name == "resnet50":
            if layer.startswith("layer"):
                stage, block, rest = layer[len("layer") :].split(".", 2)
                layer = (
                    f"block{stage}{'abcdef'[int(block)]}_"
                    f"{renamed.get(rest, rest) if rest.startswith('down') else rest}"
                )
            else:
                layer = renamed[layer]
        else:
            layer = layer.replace(".", "_")
        if value.ndim == 4:
            value, leaf = value.transpose(2, 3, 1, 0), "kernel"
        elif value.ndim == 2:
            value, leaf = value.T, "kernel"
        elif "bn" in layer:
            leaf = {"weight": "gamma", "bias": "beta", **leaves}[leaf]
        found[f"{layer}/{leaf}"] = value
    return found


def train_steps(batch: int, size: int, steps: int) -> None:
    """Trains timm's EfficientNet-B0 on request, as a process beside `benchmarks.train_step`.

    Writes the names of its settings to stdout. For each number that it then reads, it takes that
    many steps and writes their [wall, CPU] seconds.
    """
    torch = load_torch()
    import timm

    images, labels = torch.rand(batch, 3, size, size), torch.randint(0, 1000, (batch,))
    settings: dict[str, Callable[[], None]] = {}
    for layout in ("contiguous_format", "channels_last"):
        inputs = images.to(memory_format=getattr(torch, layout))
        for precision in ("float32", "bfloat16"):
            model = timm.create_model("tf_efficientnet_b0", drop_rate=0.2, drop_path_rate=0.2)
            model = model.train().to(memory_format=getattr(torch, layout))
            optimizer = torch.optim.RMSprop(
                model.parameters(), lr=0.001, alpha=0.9, eps=1e-3, momentum=0.9
            )

            def step(
                model: Any = model,
                optimizer: Any = optimizer,
                inputs: Any = inputs,
                half: bool = precision != "float32",
            ) -> None:
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                    found = model(inputs)
                torch.nn.functional.cross_entropy(
                    found.float(), labels, label_smoothing=0.1
                ).backward()
                optimizer.step()

            step()
            settings[f"{precision} {layout}"] = step
    print(json.dumps(list(settings)), flush=True)
    for line in sys.stdin:
        wall, cpu = time.monotonic(), time.process_time()
        for _ in range(steps):
            settings[line.strip()]()
        print(json.dumps([time.monotonic() - wall, time.process_time() - cpu]), flush=True)


if __name__ == "__main__":
    train_steps(*map(int, sys.argv[1:]))
