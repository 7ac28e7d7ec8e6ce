"""The seven benchmarks in the shapes featstore relies on: names, paths, prompts, and who decodes for them."""

import os

from standin_rows import rows, snapshot


def decode(path):
    """What a benchmark does by itself; featstore leaves it out where the model takes the video."""
    with open(os.environ["STANDIN_DECODED"], "a") as log:
        print(path, file=log)
    return ["frame.jpg"], [0], {"fps": 25.0, "n_frames": 100}


def text(value, **more):
    return {"type": "text", "value": value, **more}


def video(*parts):
    return {"type": "video", "value": os.path.join(*parts)}


class Table(dict):
    """Columns by name: as much of a DataFrame as is asked of it. len() says how many rows."""

    def __init__(self, rows):
        names = dict.fromkeys(name for row in rows for name in row)
        super().__init__({name: [row.get(name) for row in rows] for name in names})

    def __len__(self):
        return len(self["index"])


class VideoBaseDataset:
    MODALITY = "VIDEO"

    def __init__(self, dataset, nframe=0, fps=-1):
        self.dataset_name, self.nframe, self.fps = dataset, nframe, fps
        self.data_root = str(snapshot(dataset))
        self.rows = [{"index": index, **row} for index, row in enumerate(rows(dataset))]
        self.data = Table(self.rows)

    def evaluate(self, file):
        """Score nothing."""
        assert "STANDIN_SCORING_FAILS" not in os.environ


class VideoMME(VideoBaseDataset):
    def __init__(self, dataset="Video-MME", use_subtitle=False, nframe=0, fps=-1):
        super().__init__(dataset, nframe, fps)
        self.use_subtitle = use_subtitle

    def save_video_frames(self, name, video_llm=False):
        return decode(os.path.join(self.data_root, "video", name + ".mp4"))

    def build_prompt(self, line, video_llm):
        row = self.rows[line]
        prompt = [
            text(""),
            video(self.data_root, "video", row["video"] + ".mp4"),
            text("\nSelect.\n"),
        ]
        if self.use_subtitle:
            _, indices, about = self.save_video_frames(row["video"], video_llm)
            prompt.append(
                text(f"subtitles at {indices} of {about['n_frames']}, {about['fps']} a second")
            )
        return [*prompt, text(f"Question: {row['question']}\nAnswer: ")]


class Video_Holmes(VideoBaseDataset):
    def save_video_frames(self, name, video_llm=False):
        return decode(os.path.join(self.data_root, "video", name + ".mp4"))

    def build_prompt(self, line, video_llm):
        row = self.rows[line]
        frames, _, _ = self.save_video_frames(row["video"], video_llm)
        shown = [video(self.data_root, "video", row["video"] + ".mp4")]
        if not video_llm:
            shown = [{"type": "image", "value": frame} for frame in frames]
        return [text(""), *shown, text(row["question"])]


class ConcatVideoDataset(VideoBaseDataset):
    def __init__(self, dataset, nframe=0, fps=-1):
        super().__init__(dataset, nframe, fps)
        del self.data_root  # it has none: its tables have

    def build_prompt(self, line, video_llm):
        row = self.rows[line]
        root = str(snapshot(self.dataset_name))
        return [
            text("Watch.", role="system"),
            video(root, row["prefix"], row["video"]),
            text(row["question"]),
        ]


class TempCompass(ConcatVideoDataset):
    pass


class MLVU(ConcatVideoDataset):
    pass


class VideoMMMU(VideoBaseDataset):
    def build_prompt(self, line, video_llm):
        row = self.rows[line]
        prompt = [video(self.data_root, row["video"])]
        if "image" in row:
            prompt.append({"type": "image", "value": os.path.join(self.data_root, row["image"])})
        return [*prompt, text(row["question"])]


class MMBenchVideo(VideoBaseDataset):
    def __init__(self, dataset="MMBench-Video", pack=True, nframe=0, fps=-1):
        super().__init__(dataset, nframe, fps)
        self.pack = pack

    def build_prompt(self, line, video_llm):
        assert not self.pack
        row = self.rows[line]
        return [text(row["question"]), video(self.data_root, "video/", row["video"] + ".mp4")]


class LongVideoBench(VideoBaseDataset):
    def save_video_frames(self, path, video_llm=False):
        return decode(os.path.join(self.data_root, path))

    def build_prompt(self, line, video_llm):
        row = self.rows[line]
        _, _, about = self.save_video_frames(row["video_path"], video_llm)
        assert about["fps"]
        return [text(""), video(self.data_root, row["video_path"]), text(row["question"])]
