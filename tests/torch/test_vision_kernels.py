"""The fused steps of a vision tower against torch's own, bit for bit where they promise it."""

import pytest
import torch

from featstore.torch.kernels.dequantize import fused_passes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or fused_passes() is None, reason="needs a GPU and Triton"
    ),
]
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def vision():
    from featstore.torch.kernels import vision

    return vision


@pytest.mark.parametrize("dtype", HALVES)
def test_quick_gelu_gives_the_bits_of_torch_for_every_value_there_is(vision, dtype):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32, device="cuda").to(torch.int16)
    x = every.view(dtype)
    expected = x * torch.sigmoid(1.702 * x)
    found = vision.quick_gelu(x.clone())
    number = ~expected.isnan()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[number].view(torch.int16), expected[number].view(torch.int16))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("width", [64, 1000, 1024])
def test_add_layer_norm_adds_as_torch_and_norms_within_its_rounding(vision, dtype, width):
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(width, device="cuda", dtype=dtype)
    torch.nn.init.normal_(norm.weight, 1, 0.2)
    torch.nn.init.normal_(norm.bias)
    residual, x = (torch.randn(3, 77, width, device="cuda", dtype=dtype) * 5 for _ in range(2))
    residual[0, 0] *= 1000  # an outlier token, as trained towers have
    total = residual + x
    exact = torch.nn.functional.layer_norm(
        total.double(), (width,), norm.weight.double(), norm.bias.double(), norm.eps
    )
    expected = (norm(total).double() - exact).abs().max()
    with torch.inference_mode():
        ours, normed = vision.add_layer_norm(residual.clone(), x.clone(), norm)
    assert torch.equal(ours, total)
    assert (normed.double() - exact).abs().max() <= expected * 1.01


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("side", "width"), [(24, 3584), (7, 96), (2, 5000)])
def test_averages_have_the_bits_of_torch(vision, dtype, side, width):
    features = torch.randn(3, side * side, width, device="cuda", dtype=dtype) * 30
    grid = features.view(3, side, side, width).permute(0, 3, 1, 2).contiguous()
    expected = torch.nn.functional.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)
    assert torch.equal(vision.average_2x2(features, side), expected)


@pytest.mark.parametrize(("height", "width", "size"), [(28, 42, 14), (30, 45, 14), (32, 32, 16)])
def test_patches_are_the_pixels_that_the_convolution_sees(vision, height, width, size):
    frames = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, device="cuda")
    table = torch.randn(3, 256, device="cuda", dtype=torch.float16)
    padded = -(-3 * size * size // 8) * 8
    pixels = torch.stack([table[c][frames[..., c].int()] for c in range(3)], dim=1)
    expected = torch.nn.functional.unfold(pixels, size, stride=size).transpose(1, 2)
    found = vision.patches(frames, table, size, padded)
    assert torch.equal(found[:, : 3 * size * size], expected.reshape(len(found), -1))
    assert not found[:, 3 * size * size :].any()
