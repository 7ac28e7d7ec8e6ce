"""The benchmarks in VLMEvalKit: configs at 128 frames, prompts without decoding, and lists of their videos."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.decoding.video_file import Video
from featstore.errors import ListingError
from featstore.integrations.benchmarks import (
    canonical_dataset,
    video_id,
)
from featstore.integrations.vlmevalkit.find_vlmevalkit import import_vlmevalkit
from featstore.pipeline.listing import Listing, check_listing
from featstore.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from types import ModuleType

NFRAME = 128  # frames of each config, as their names say
# Name on VLMEvalKit's command line -> class in vlmeval.dataset.
CONFIGS = {
    "Video-MME_128frame": "VideoMME",
    "Video_Holmes_128frame": "Video_Holmes",
    "TempCompass_128frame": "TempCompass",
    "MLVU_128frame": "MLVU",
    "VideoMMMU_128frame": "VideoMMMU",
    "MMBench_Video_128frame_nopack": "MMBenchVideo",
    "LongVideoBench_128frame": "LongVideoBench",
}
OPTIONS: dict[str, dict[str, Any]] = {"MMBench_Video_128frame_nopack": {"pack": False}}
# Classes whose build_prompt calls save_video_frames even for a model that takes the video itself, and ignores the
# frames. VideoMME with subtitles does use their times, but not their content.
DECODING = ("LongVideoBench", "Video_Holmes", "VideoMME")
_MARK = "left_out_by_featstore"


@dataclass(frozen=True)
class BenchmarkVideos:
    """The videos of a dataset config; `dataset` is its name in the store, `nframe` its number of frames per video.

    It is below 1 for a config by time. `questions` is how many are asked about them.
    """

    dataset: str
    nframe: int
    videos: Listing
    questions: int


def list_videos(config: str, rate: float | None = None) -> BenchmarkVideos:
    """Return the videos of a dataset config of VLMEvalKit, each once, as its own class names them in prompts.

    The class may download the benchmark first.

    Args:
        config: Name of the config on VLMEvalKit's command line.
        rate: Frames per second by which videos are sampled; None for a number of frames.

    Raises:
        ListingError: If there is no such config, or it samples by time, at another rate.
        MissingExtra: If VLMEvalKit is not available.
    """
    supported = import_vlmevalkit("vlmeval.dataset.video_dataset_config").supported_video_datasets
    add_datasets(supported)
    if config not in supported:
        raise ListingError(
            f"VLMEvalKit has no video dataset config {config!r}; the benchmarks at {NFRAME} frames are "
            f"{' '.join(CONFIGS)}"
        )
    dataset = supported[config]()
    if not dataset.nframe > 0 and dataset.fps != rate:
        raise ListingError(
            f"{config} samples {dataset.fps} frames a second; the LongVA models take a fixed number of frames: "
            "name a config with a number of frames, or Qwen-VL's rule at this rate, as --sampling "
            f"qwen:fps={dataset.fps:g},min=4,max=768"
        )
    dataset.use_subtitle = False  # listing paths does not need to open the files
    name = canonical_dataset(dataset.dataset_name)
    paths: dict[str, None] = {}
    for row in range(len(dataset.data)):
        message = dataset.build_prompt(row, video_llm=True)
        paths |= {
            os.path.abspath(item["value"]): None for item in message if item["type"] == "video"
        }
    videos = [Video(video_id(name, path), path) for path in sorted(paths)]
    return BenchmarkVideos(name, dataset.nframe, check_listing(videos), len(dataset.data))


def add_datasets(supported: MutableMapping[str, Callable[..., Any]]) -> None:
    """Add the configs at 128 frames that `supported_video_datasets` lacks, and call `leave_out_frames`."""
    classes = import_vlmevalkit("vlmeval.dataset")
    for config, name in CONFIGS.items():
        cls = getattr(classes, name, None)
        if cls is not None:  # an older VLMEvalKit does not have all of them
            dataset, options = canonical_dataset(config), OPTIONS.get(config, {})
            build = functools.partial(cls, dataset=dataset, nframe=NFRAME, **options)
            supported.setdefault(config, build)
    leave_out_frames(classes)


def leave_out_frames(classes: ModuleType | None = None) -> None:
    """Stop the benchmarks' classes from decoding frames for a model that takes the video itself.

    Nothing changes for other models.

    Args:
        classes: The module vlmeval.dataset; imported by default.
    """
    classes = classes or import_vlmevalkit("vlmeval.dataset")
    for name in DECODING:
        cls = getattr(classes, name, None)
        if cls is not None and not hasattr(cls.save_video_frames, _MARK):
            cls.save_video_frames = _only_for_frames(name, cls.save_video_frames)


def _only_for_frames(cls: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save_video_frames(self: Any, video: str, video_llm: bool = False) -> Any:
        if not video_llm:
            return original(self, video, video_llm)
        if cls == "VideoMME" and self.use_subtitle:
            return [], *_times(self, os.path.join(self.data_root, "video", f"{video}.mp4"))
        return [], [], {"fps": 1.0, "n_frames": 0}

    setattr(save_video_frames, _MARK, True)
    return save_video_frames


def _times(dataset: Any, path: str) -> tuple[list[int], dict[str, float]]:
    """Return the frames that VLMEvalKit would take: their times select the subtitles in the prompt."""
    import decord

    reader = decord.VideoReader(path)
    count, fps = len(reader), float(reader.get_avg_fps())
    if dataset.nframe > 0:
        indices = Sampling(dataset.nframe, "vlmevalkit").indices(count, fps)
    else:
        step = fps / dataset.fps
        indices = [int(i * step) for i in range(int(count / fps * dataset.fps))]
    return indices, {"fps": fps, "n_frames": count}
