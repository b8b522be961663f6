"""What is read off compiled programs."""

from __future__ import annotations

import pytest

from tests import hlo

PROGRAM = """HloModule program, is_scheduled=true

ENTRY %main (p: f32[8,256,128], q: f32[8,128,64]) -> f32[8,256,64] {{
  %p = f32[8,256,128]{{2,1,0}} parameter(0)
  %q = f32[8,128,64]{{2,1,0}} parameter(1)
  ROOT %product = f32[8,256,64]{{2,1,0}} {product}
}}
"""
PRODUCTS = (
    "dot(%p, %q), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}",
    "convolution(%p, %q), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf",
)


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_batch_of_matrix_products_counts_once_as_a_gpu_and_as_a_tpu_writes_it(product: str) -> None:
    (kernel,) = hlo.read(PROGRAM.format(product=product)).main().kernels
    assert kernel.flops == 2 * 8 * 256 * 128 * 64
