"""The operations that are done step by step in the process that is killed: a cached model's miss, removal, export."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from drills.crash.scene import Looping
from drills.shared.content import (
    DEFAULT,
    clip_of,
    drill_spec,
    make_features,
    put,
    source_of,
    stored_form,
    video_of,
)
from drills.shared.journal import Notes, step
from drills.shared.look import Found, look, name_of

from featstore.formats.export import save_features
from featstore.records.quantization import dequantize
from featstore.store.maintenance.remove import remove_dataset
from featstore.store.reader import FeatureStore
from featstore.store.rows import Failure
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from featstore.spec import FeatureSpec

DATASET = "demo"


def fill(cache: Path, dataset: str, videos: Iterable[str], version: int = 1) -> dict[str, int]:
    """Store one version of some videos, and return what is then there."""
    spec = drill_spec()
    videos = list(videos)
    with FeatureWriter(cache, dataset, min_free=0) as writer:
        writer.add_set(spec, origin="drill")
        for video in videos:
            put(writer, spec, video, version)
    return dict.fromkeys((name_of(dataset, spec, video) for video in videos), version)


class Miss(Looping):
    """A cached model stores what it just encoded: one video, one commit, in its own process."""

    name = "miss"
    videos = tuple(f"m{i}" for i in range(8))

    def furnish(self) -> dict[str, int]:
        """Make nothing: the first miss makes the dataset."""
        return {}

    def steps(self, rng: random.Random, journal: Notes, state: dict[str, int]) -> Iterator[None]:
        """Store ever newer versions of a few videos."""
        from featstore.pipeline.on_demand import EncodedVideo, store_features

        spec, version = drill_spec(), max(state.values(), default=0)
        while True:
            version += 1
            video = rng.choice(self.videos)
            parts = [make_features(spec, video, version)]
            encoded = EncodedVideo(video_of(video), clip_of(spec), source_of(version), parts)  # type: ignore[arg-type]
            with step(journal, "a commit", {name_of(DATASET, spec, video): version}):
                store_features(encoded, self.cache, DATASET, spec, "drill", min_free=0)
            yield


class Commit(Looping):
    """One writer commits again and again: new versions of some videos together, failures among them."""

    name = "commit"
    videos = tuple(f"c{i}" for i in range(8))

    def furnish(self) -> dict[str, int]:
        """Make nothing: the writer makes the dataset."""
        return {}

    def steps(self, rng: random.Random, journal: Notes, state: dict[str, int]) -> Iterator[None]:
        """Commit one to four videos and now and then the failure of one that is not stored."""
        spec, version = drill_spec(), max(state.values(), default=0)
        writer = FeatureWriter(self.cache, DATASET, min_free=0)
        writer.add_set(spec, origin="drill")
        while True:
            version += 1
            videos = rng.sample(self.videos, rng.randint(1, 4))
            changes = dict.fromkeys((name_of(DATASET, spec, video) for video in videos), version)
            with step(journal, "a commit of several", changes):
                for video in videos:
                    put(writer, spec, video, version)
                if version % 3 == 0:
                    row = Failure(f"f{version}", "/v", spec.digest, "no frames", float(version))
                    writer.fail(row)
                writer.commit()
            yield


class Remove(Looping):
    """A dataset is removed as a whole and made again."""

    name = "rm dataset"
    videos = ("r0", "r1", "r2")

    def furnish(self) -> dict[str, int]:
        """Make the dataset."""
        return fill(self.cache, DATASET, self.videos)

    def steps(self, rng: random.Random, journal: Notes, state: dict[str, int]) -> Iterator[None]:
        """Remove the dataset where it is there, make it again with other versions."""
        spec, version = drill_spec(), max(state.values(), default=rng.randrange(1 << 20))
        while True:
            if state:
                with step(journal, "rm", dict.fromkeys(state)):
                    remove_dataset(self.cache, DATASET)
                yield
            version += 1
            state = {name_of(DATASET, spec, video): version for video in self.videos}
            with step(journal, "making it again", state):
                fill(self.cache, DATASET, self.videos, version)
            yield


class Export(Looping):
    """Features are written to files, over and over the same two: each is whole, the old one or the new one."""

    name = "export"
    videos = tuple(f"e{i}" for i in range(5))
    files = ("out.npy", "out.safetensors")

    def furnish(self) -> dict[str, int]:
        """Make the dataset and the first files."""
        fill(self.cache, DATASET, self.videos)
        for file in self.files:
            save_features(FeatureStore(self.cache)[DATASET]["e0"], self.folder / file)
        return dict.fromkeys(self.files, 0)

    def steps(self, rng: random.Random, journal: Notes, state: dict[str, int]) -> Iterator[None]:
        """Write one video after the other."""
        shelf = FeatureStore(self.cache)[DATASET]
        while True:
            file, number = rng.choice(self.files), rng.randrange(len(self.videos))
            with step(journal, f"writing {file}", {file: number}):
                save_features(shelf[self.videos[number]], self.folder / file)
            yield

    def seen(self) -> dict[str, Any]:
        """Return which video's features each file holds, beside what is wrong with the store."""
        found = Found(problems=look(self.cache).problems)
        for file in self.files:
            number = self._number_in(self.folder / file)
            if number is None:
                found.problems.append(f"{file} holds no video's features")
            else:
                found.versions[file] = number
        return asdict(found)

    def _number_in(self, path: Path) -> int | None:
        from safetensors.numpy import load_file

        spec = drill_spec()
        for number, video in enumerate(self.videos):
            data, scales = stored_form(spec, video, 1)
            if path.suffix == ".npy":
                wanted = dequantized(spec, data, scales)
                same = np.array_equal(np.load(path, allow_pickle=False), wanted)
            else:
                kept = load_file(path)
                both = kept["token_scale"].tobytes() + kept["channel_scale"].tobytes()
                same = (kept["data"].tobytes(), both) == (data, scales)
            if same:
                return number
        return None


def dequantized(spec: FeatureSpec, data: bytes, scales: bytes) -> NDArray[np.float32]:
    """Return the features whose stored form, with two scales a value, is given."""
    width = spec.encoder.geometry.row_width
    values = np.frombuffer(data, np.int8).reshape(-1, width)
    factors = np.frombuffer(scales, np.float32)
    token, channel = factors[: len(values), None], factors[None, len(values) :]
    return dequantize(values, (token, channel), DEFAULT.values)
