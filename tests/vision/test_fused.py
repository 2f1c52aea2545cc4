"""A tower in few large steps against the same tower module by module, in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.torch_version import TorchVersion
from towers_made import CLIP, SIGLIP, made

from trifocal.checkpoints import Tower
from trifocal.vision.fused import Fused, Plain
from trifocal.vision.kernels import ByCudnn, at_its_best, attention_on

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


def test_where_cudnn_has_no_kernel_torch_chooses(caplog: pytest.LogCaptureFixture) -> None:
    """On a CPU it never has one. It is asked once."""
    attention = ByCudnn()
    heads = torch.randn(3, 2, 4, 17, 16)
    with caplog.at_level("INFO", "trifocal"):
        for _ in range(2):
            assert torch.equal(attention(*heads), functional.scaled_dot_product_attention(*heads))
    assert not attention.found
    (told,) = caplog.messages
    assert told.startswith("cuDNN has no attention for heads of 16")


@pytest.mark.parametrize(
    ("card", "version", "cudnn", "taken"),
    [
        ((9, 0), "2.11.0+cu130", 91501, True),
        ((10, 3), "2.13.0", 92000, True),
        ((8, 0), "2.13.0", 92000, False),
        ((12, 0), "2.13.0", 92000, False),
        ((9, 0), "2.9.1", 92000, False),
        ((9, 0), "2.13.0+cu126", 91002, False),
        ((9, 0), "2.13.0", None, False),
    ],
)
def test_cudnns_attention_is_taken_where_it_is_sound(
    card: tuple[int, int], version: str, cudnn: int | None, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    found = attention_on(torch.device("cuda:0"))
    assert isinstance(found, ByCudnn) == taken
    assert taken or found is functional.scaled_dot_product_attention


def test_what_has_no_room_is_no_missing_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", full)
    attention = ByCudnn()
    with pytest.raises(torch.OutOfMemoryError):
        attention(*torch.randn(3, 2, 4, 17, 16))
    assert attention.found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_card_a_tower_is_as_it_is(dtype: torch.dtype) -> None:
    tower = made(CLIP).to(dtype)
    assert at_its_best(tower) is tower
