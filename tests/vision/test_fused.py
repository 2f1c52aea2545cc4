"""A tower in few large steps against the same tower module by module, in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from towers_made import CLIP, SIGLIP, made

from trifocal.checkpoints import Tower
from trifocal.vision.fused import Fused, Plain
from trifocal.vision.kernels import at_its_best

KINDS = {
    "clip": CLIP,
    "siglip": SIGLIP,
    "clip with gelu": replace(CLIP, act="gelu", keep_first=True),
    "clip, several layers": replace(CLIP, feature_layer=(1, -2, 0)),
    "siglip, the last of all": replace(SIGLIP, feature_layer=-1, keep_first=False),
    "clip, before all blocks": replace(CLIP, feature_layer=0),
    "siglip, before all blocks": replace(SIGLIP, feature_layer=0),
}


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("images", [1, 3])
def test_features_are_those_of_the_tower(config: Tower, images: int) -> None:
    tower = made(config)
    values = torch.randn(images, 3, config.image_size, config.image_size)
    wanted = tower(values)
    found = Fused(tower, Plain(config))(values)
    assert found.shape == wanted.shape == (images, config.patches, config.width)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert float(wanted.std()) > 0.3  # features that tell something
    assert images == 1 or not torch.allclose(found[0], found[1], atol=0.1)


def test_no_weight_of_a_block_lies_twice() -> None:
    tower = made(CLIP)
    before = {name: values.clone() for name, values in tower.state_dict().items()}
    fused = Fused(tower, Plain(CLIP))
    after = tower.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], values) for name, values in before.items())
    assert all(not values.requires_grad for values in fused.parameters())
    attention = tower.encoder.blocks[0].self_attn
    homes = {linear.weight.untyped_storage().data_ptr() for linear in (attention.q_proj, attention.k_proj)}
    assert len(homes) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_card_a_tower_is_as_it_is(dtype: torch.dtype) -> None:
    tower = made(CLIP).to(dtype)
    assert at_its_best(tower) is tower
