"""Which frames of a clip are taken: arithmetic on frame counts.

Programs take different frames for `128 frames`, so the policy is part of what identifies features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import index
from typing import Any

from featstore import defaults
from featstore.errors import how_many

POLICIES = ("linspace", "midpoint", "vlmevalkit", "fps", "qwen", "llava-ov")
_QWEN_FRAMES = 2  # frames of a grid step: Qwen-VL takes a multiple of it
_QWEN_LEAST = 4  # frames of a clip that qwen-vl-utils takes at least, by time
UNKNOWN = "unknown"  # the policy of features that were imported


def check_nframe(nframe: Any) -> int:
    """Return the number of frames as an int; numpy's integers are integers, too.

    Raises:
        ValueError: it is not an integer between 1 and 65536.
    """
    whole = hasattr(type(nframe), "__index__") and not isinstance(nframe, bool)
    if not whole or not 1 <= nframe <= 65_536:
        raise ValueError(f"nframe is {nframe!r}; it must be an integer between 1 and 65536")
    return index(nframe)


@dataclass(frozen=True)
class Sampling:
    """A rule that picks frame indices from a clip of any length.

    Args:
        nframe: number of frames taken, 1 to 65536; for the policy `fps` the maximum.
        policy: one of `POLICIES`, see `indices`; `UNKNOWN` if features were imported, whose frames nobody can name.
        rate: frames per second at the clip's average frame rate, for the policy `fps` only.

    Raises:
        ValueError: an argument is invalid.

    >>> Sampling(4).indices(total_frames=100, fps=25.0)
    [0, 33, 66, 99]
    >>> Sampling(4).indices(total_frames=2, fps=25.0)
    [0, 0, 0, 1]
    """

    nframe: int = defaults.NFRAME
    policy: str = defaults.SAMPLING
    rate: float | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "nframe", check_nframe(self.nframe))
        if self.policy not in (*POLICIES, UNKNOWN):
            raise ValueError(
                f"sampling policy is {self.policy!r}; it must be one of {', '.join(POLICIES)}"
            )
        if self.policy != "qwen" and (self.policy == "fps") != (self.rate is not None):
            raise ValueError("a rate belongs to the policy fps, and fps needs one: write fps:1")
        if self.rate is not None and not 0 < self.rate <= 1_000:
            raise ValueError(f"the rate is {self.rate} frames a second; it must be in (0, 1000]")
        if self.rate is not None:  # 1 and 1.0 are one rule and must have one digest
            object.__setattr__(self, "rate", float(self.rate))

    @classmethod
    def parse(cls, text: str, nframe: int = defaults.NFRAME) -> Sampling:
        """Return the rule that the command line writes as `linspace`, `fps:R`, `qwen:fps=2,min=4,max=768` and so on.

        Args:
            text: policy, and rate after a colon.
            nframe: number of frames.

        Raises:
            ValueError: there is no such rule.
        """
        policy, _, rate = text.partition(":")
        if policy == UNKNOWN:
            raise ValueError(f"sampling {text!r} picks no frames; use one of {', '.join(POLICIES)}")
        try:
            if policy == "qwen" and rate:
                return cls(*_qwen_options(rate, nframe))
            return cls(nframe, policy, float(rate) if rate else None)
        except ValueError as exc:
            raise ValueError(f"sampling {text!r} cannot be used: {exc}") from None

    def indices(self, total_frames: int, fps: float) -> list[int]:
        """Return the indices to decode, ascending, with repeats if the clip is too short.

        linspace: `numpy.linspace(0, n - 1, nframe, dtype=int)`, as LongVA and lmms-eval sample.
        midpoint: the middle frame of each of nframe equal parts, `int((i + 0.5) * n / nframe)`.
        vlmevalkit: `int(i * (n / (nframe + 1)))` for i = 1..nframe, as VLMEvalKit's frame mode samples.
        fps: every `fps / rate`-th frame from the first on (VLMEvalKit's `_1fps` sets); if that gives more than nframe,
        those are thinned evenly and both ends kept. Frames are counted, not timed: of a clip whose frame rate varies,
        `fps` is the average, and those taken lie closer together where frames do.
        qwen: as qwen-vl-utils: with a rate so many frames a second, 4 at least and nframe at most, else nframe; an even
        number, of a shorter clip fewer, evenly spaced with both ends.
        llava-ov: as VLMEvalKit for LLaVA-OneVision: every `round(fps)`-th frame; linspace, if those are too many.

        Args:
            total_frames: number of frames of the clip.
            fps: frames per second of the clip, on average.

        Raises:
            ValueError: the clip has no frames, or no frame rate for a policy that needs one, or the rule is unknown.
        """
        if self.policy == UNKNOWN:
            raise ValueError("the rule is unknown by which frames were taken")
        n, k = total_frames, self.nframe
        if n < 1:
            raise ValueError(f"the clip has {n} frames; at least 1 is needed")
        if self.policy == "linspace":
            return _linspace(n, k)
        if self.policy == "midpoint":
            return [int((i + 0.5) * n / k) for i in range(k)]
        if self.policy == "vlmevalkit":
            # Rounded once here: int(i * n / (k + 1)) differs for 1.5 % of lengths.
            step = n / (k + 1)
            return [int(i * step) for i in range(1, k + 1)]
        if self.policy == "llava-ov":
            if not math.isfinite(fps) or round(fps) < 1:
                raise _no_rate(fps)
            ticks = range(0, n, round(fps))
            return list(ticks) if len(ticks) <= k else _linspace(n, k)
        if self.policy == "qwen":
            return self._as_qwen(n, fps)
        return self._by_rate(n, fps)

    def _as_qwen(self, n: int, fps: float) -> list[int]:
        # smart_nframes of qwen-vl-utils; of a clip shorter than nframe VLMEvalKit asks for all, an even number.
        if self.rate is None:
            wanted: float = min(n, round(self.nframe / _QWEN_FRAMES) * _QWEN_FRAMES)
        elif fps > 0 and math.isfinite(n / fps * self.rate):
            wanted = min(max(n / fps * self.rate, _QWEN_LEAST), min(self.nframe, n))
        else:
            raise _no_rate(fps)
        count = math.floor(wanted / _QWEN_FRAMES) * _QWEN_FRAMES
        if count < _QWEN_FRAMES:
            raise ValueError(f"the clip has {n} frames; Qwen-VL takes {_QWEN_FRAMES} or more")
        return _rounded_linspace(n, count)

    def _by_rate(self, n: int, fps: float) -> list[int]:
        count = n / fps * self.rate if self.rate is not None and fps > 0 else math.inf
        if self.rate is None or not (math.isfinite(count) and math.isfinite(fps)):
            raise _no_rate(fps)
        step = fps / self.rate
        wanted = max(1, int(count))
        ticks = range(wanted) if wanted <= self.nframe else _linspace(wanted, self.nframe)
        return [min(int(i * step), n - 1) for i in ticks]

    @property
    def rule(self) -> str:
        """Return the policy as the command line writes it."""
        if self.rate is None:
            return self.policy
        if self.policy == "qwen":
            rate = repr(self.rate).removesuffix(".0")
            return f"qwen:fps={rate},min={_QWEN_LEAST},max={self.nframe}"
        return f"fps:{self.rate!r}".removesuffix(".0")  # every digit: the rule must parse back

    def __str__(self) -> str:
        """Return number of frames and rule, for people."""
        return f"{how_many(self.nframe, 'frame')}, {self.rule}"


def _no_rate(fps: float) -> ValueError:
    return ValueError(f"the clip states {fps} frames a second; sampling by time needs a rate")


def _linspace(n: int, k: int) -> list[int]:
    # numpy's own steps (arange * step, the last one set to stop), so that rounding is the same.
    if k == 1:
        return [0]
    step = (n - 1) / (k - 1)
    return [int(i * step) for i in range(k - 1)] + [n - 1]


def _qwen_options(text: str, nframe: int) -> tuple[int, str, float]:
    """Return number of frames, policy and rate of `fps=2,min=4,max=768`, of which `fps` is needed."""
    given = {name: value for name, _, value in (part.partition("=") for part in text.split(","))}
    unknown = given.keys() - {"fps", "min", "max"}
    if unknown or not given.get("fps"):
        raise ValueError("write qwen, or qwen:fps=2,min=4,max=768")
    if int(given.get("min", _QWEN_LEAST)) != _QWEN_LEAST:
        raise ValueError(
            f"min is {given['min']}; qwen-vl-utils takes at least {_QWEN_LEAST} frames"
        )
    return int(given.get("max", nframe)), "qwen", float(given["fps"])


def _rounded_linspace(n: int, k: int) -> list[int]:
    """Return `torch.linspace(0, n - 1, k).round()`: float32, from both ends, with fused products."""
    import numpy as np

    step = np.float64(np.float32(n - 1) / np.float32(k - 1))
    counted = np.arange(k // 2) * step
    ends = np.float64(np.float32(n - 1)) - np.arange(k - k // 2)[::-1] * step
    return [int(index) for index in np.concatenate((counted, ends)).astype(np.float32).round()]
