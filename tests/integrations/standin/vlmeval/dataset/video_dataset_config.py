from functools import partial

from vlmeval.dataset import LongVideoBench, VideoMME

supported_video_datasets = {
    "Video-MME_8frame_subs": partial(VideoMME, dataset="Video-MME", nframe=8, use_subtitle=True),
    "Video-MME_1fps": partial(VideoMME, dataset="Video-MME", fps=1.0),
    "LongVideoBench_8frame": partial(LongVideoBench, dataset="LongVideoBench", nframe=8),
}
