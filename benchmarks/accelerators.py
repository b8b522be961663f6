"""Peak performance of accelerators for dense matrices, as stated by their vendors."""

from __future__ import annotations

from typing import NamedTuple


class Peak(NamedTuple):
    """Peaks of one accelerator.

    products: floating-point operations per second in products of float32 matrices at XLA's default precision:
              TF32 on a GPU, bfloat16 on a TPU.
    float32:  the same in full float32; None if the vendor states no number.
    bytes:    bytes per second from and to its memory.
    """

    products: float
    float32: float | None
    bytes: float


PEAKS = {
    # NVIDIA's data sheet of the H100: SXM5, 989 TFLOP/s of TF32 with sparsity, 67 of FP32, 3.35 TB/s.
    "NVIDIA H100 80GB HBM3": Peak(495e12, 67e12, 3.35e12),
    # NVIDIA's data sheet of the H200: SXM, the same processor with 4.8 TB/s.
    "NVIDIA H200": Peak(495e12, 67e12, 4.8e12),
    # NVIDIA's data sheet of the A100: SXM4, 156 TFLOP/s of TF32, 19.5 of FP32, 2,039 and 1,555 GB/s.
    "NVIDIA A100-SXM4-80GB": Peak(156e12, 19.5e12, 2.039e12),
    "NVIDIA A100-SXM4-40GB": Peak(156e12, 19.5e12, 1.555e12),
    # Google Cloud's documentation of the TPU v5e: 197 TFLOP/s of bfloat16, 819 GB/s.
    "TPU v5 lite": Peak(197e12, None, 0.819e12),
}
"""Name of a device in JAX -> its peaks."""
