"""Linear layers on a CPU: another layout is the same product."""

from __future__ import annotations

import pytest
import torch

from trifocal.engines.native.linear import Blocked, Dense, dense


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_a_weight_laid_out_otherwise_gives_the_same(rows: int, biased: bool) -> None:
    if not Blocked.works():
        pytest.skip("torch has no such products on this CPU, and the layer stays as it is")
    random = torch.Generator().manual_seed(rows)
    weight, x = (torch.randn(each, 96, generator=random).bfloat16() for each in (64, rows))
    bias = torch.randn(64, generator=random).bfloat16() if biased else None
    made, plain = dense(weight, bias), Dense(weight, bias)
    assert isinstance(made, Blocked)
    assert made.nbytes == plain.nbytes
    onto = torch.randn(rows, 64, generator=random).bfloat16()
    for one, other in (
        (made(x), plain(x)),
        (made(x, onto=onto.clone()), plain(x, onto=onto.clone())),
        (made.swiglu(x), plain.swiglu(x)),
    ):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)


def test_what_has_no_such_product_stays_as_it_is() -> None:
    assert isinstance(dense(torch.ones(4, 4)), Dense)
    assert isinstance(dense(torch.ones(4, 4, device="meta", dtype=torch.bfloat16)), Dense)
