"""What each tile is told: of its own part or of the whole picture, remembered, and only about the right pictures."""

import pytest
import tiny_language_models as tiny
import torch
from latent_helpers import seed

from alignsr.core.conditioning import TokenAdapter, VisionLanguageModel, VLMConditioner, VLMEncoder, tile_crops
from alignsr.core.tiling import plan, plan_snapped


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:  # seconds: the first import of transformers
    tokenizer = tiny.make_tokenizer()
    return VisionLanguageModel(tiny.make_vlm(tokenizer).model.requires_grad_(False), tokenizer)


def adapter(width: int = 32, inputs: int = 32) -> TokenAdapter:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TokenAdapter(inputs, width).requires_grad_(False)


def pictures(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=seed(4))


@pytest.mark.parametrize("snapped", [False, True])
def test_rows_are_those_of_the_parts_under_the_tiles(model: VisionLanguageModel, snapped: bool) -> None:
    lq, projector = pictures(2, 20, 24), adapter()
    tiles = plan_snapped(80, 96, 64, 16) if snapped else plan(80, 96, 64, 16, 16)
    told = VLMConditioner(VLMEncoder(lambda: model), projector, lq, per_tile=True, batch_size=3)(1, tiles, 4)
    assert told.embeddings.shape == (4, 68, 32) and told.mask is None
    crops = tile_crops(lq[1:], tiles, 4)
    for row, crop in zip(told.embeddings, crops, strict=True):
        wanted = projector(VLMEncoder(lambda: model).encode(crop[None]))[0]
        assert torch.allclose(row, wanted, atol=1e-5)


def test_one_row_of_the_whole_picture_and_one_picture_for_all(model: VisionLanguageModel) -> None:
    lq, projector, encoder = pictures(1, 20, 24), adapter(), VLMEncoder(lambda: model)
    conditioner = VLMConditioner(encoder, projector, lq, per_tile=False)
    tiles = plan(80, 96, 64, 16, 16)
    assert torch.equal(conditioner(3, tiles, 4).embeddings, projector(encoder.encode(lq)))
    with pytest.raises(ValueError, match=r"got one from 24x20 pixels for a result of about 96x160; encode the same pictures"):
        conditioner(0, plan(160, 96, 64, 16, 16), 4)
    with pytest.raises(ValueError, match="as many pictures as are restored, got one from 2"):
        VLMConditioner(encoder, projector, pictures(2, 20, 24), per_tile=False)(2, tiles, 4)
    with pytest.raises(ValueError, match="vlm: expected tokens of width 24 as the projector takes, got 32"):
        VLMConditioner(encoder, adapter(inputs=24), lq, per_tile=False)(0, tiles, 4)
