"""Accelerators that a plan can be made for: memory, peak rates, and the reached share of the peak.

A share is what one published training of an EfficientNet reached, counting 6 operations for each
multiplication of the forward pass. Where there is no such training, another accelerator's share is
assumed.
"""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Accelerator(NamedTuple):
    """One device, on which one replica runs.

    Attributes:
      memory: bytes.
      bfloat16: peak rate in bfloat16 or float16, in operations per second.
      float32: peak rate of float32 networks (TF32 on GPUs, bfloat16 products on TPUs).
      share: share of the bfloat16 peak that a training reaches, above 0 and at most 1.
      source: source of memory and rates.
      share_source: source of the share.
      fused: whether XLA compiles every training step, as on TPUs.
    """

    memory: float
    bfloat16: float
    float32: float
    share: float
    source: str
    share_source: str
    fused: bool = False


_B4 = (
    "EfficientNet-B4 at 380 px, 470 images/s (NVIDIA DeepLearningExamples, TensorFlow2"
    " efficientnet_v1, A100 80GB, mixed precision)"
)
_L2 = "EfficientNet-L2 at 475 px, ratio 14, 6 days on 2,048 cores (Xie et al. 2020, Section 3.1)"

ACCELERATORS = {
    "A100": Accelerator(80e9, 312e12, 156e12, 0.040, "NVIDIA A100 80GB data sheet", _B4),
    "H100": Accelerator(
        80e9,
        989e12,
        494e12,
        0.040,
        "NVIDIA H100 SXM data sheet, dense",
        f"assumed as on A100: {_B4}",
    ),
    "v3": Accelerator(
        16 * GIB,
        61.5e12,
        61.5e12,
        0.106,
        "cloud.google.com/tpu/docs/v3; one of a chip's two cores",
        _L2,
        fused=True,
    ),
    "v5e": Accelerator(
        16e9,
        197e12,
        197e12,
        0.106,
        "cloud.google.com/tpu/docs/v5e",
        f"assumed as on v3: {_L2}",
        fused=True,
    ),
}
"""Name -> accelerator."""
