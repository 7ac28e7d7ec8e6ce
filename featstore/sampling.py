"""Which frames of a clip are taken: pure arithmetic on frame counts.

`128 frames` means different frames to different programs, so the policy is part of what identifies features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from featstore import defaults

POLICIES = ("linspace", "midpoint", "vlmevalkit", "fps")


@dataclass(frozen=True)
class Sampling:
    """A rule that picks frame indices from a clip of any length.

    nframe: frames taken; for the policy `fps` the most that are taken.
    policy: one of `POLICIES`.
    rate: frames a second of playing time, for the policy `fps` alone.

    >>> Sampling(4).indices(total_frames=100, fps=25.0)
    [0, 33, 66, 99]
    >>> Sampling(4).indices(total_frames=2, fps=25.0)
    [0, 0, 0, 1]
    """

    nframe: int = defaults.NFRAME
    policy: str = defaults.SAMPLING
    rate: float | None = None

    def __post_init__(self) -> None:
        """Refuse rules that pick nothing."""
        if not 1 <= self.nframe <= 65_536:
            raise ValueError(f"nframe is {self.nframe}; it must lie between 1 and 65536")
        if self.policy not in POLICIES:
            raise ValueError(
                f"sampling policy is {self.policy!r}; it must be one of {', '.join(POLICIES)}"
            )
        if (self.policy == "fps") != (self.rate is not None):
            raise ValueError("a rate belongs to the policy fps, and fps needs one: write fps:1")
        if self.rate is not None and not 0 < self.rate <= 1_000:
            raise ValueError(f"the rate is {self.rate} frames a second; it must lie in (0, 1000]")
        if self.rate is not None:  # 1 and 1.0 are one rule and must have one digest
            object.__setattr__(self, "rate", float(self.rate))

    @classmethod
    def parse(cls, text: str, nframe: int = defaults.NFRAME) -> Sampling:
        """Read `linspace`, `midpoint`, `vlmevalkit` or `fps:R` as the command line writes them."""
        policy, _, rate = text.partition(":")
        try:
            return cls(nframe, policy, float(rate) if rate else None)
        except ValueError as exc:
            raise ValueError(f"sampling {text!r} cannot be used: {exc}") from None

    def indices(self, total_frames: int, fps: float) -> list[int]:
        """Return the indices to decode, ascending, with repeats where the clip is too short.

        linspace: `numpy.linspace(0, n - 1, nframe, dtype=int)`, as LongVA and lmms-eval sample.
        midpoint: the middle frame of each of nframe equal stretches, `int((i + 0.5) * n / nframe)`.
        vlmevalkit: `int(i * (n / (nframe + 1)))` for i = 1..nframe, as VLMEvalKit's frame mode samples.
        fps: every `1 / rate` seconds from the first frame on (VLMEvalKit's `_1fps` sets); where that gives
        more than nframe, those thinned evenly with both ends kept.
        """
        n, k = total_frames, self.nframe
        if n < 1:
            raise ValueError(f"the clip has {n} frames; there is none to take")
        if self.policy == "linspace":
            return _linspace(n, k)
        if self.policy == "midpoint":
            return [int((i + 0.5) * n / k) for i in range(k)]
        if self.policy == "vlmevalkit":
            step = n / (
                k + 1
            )  # rounded once here: int(i * n / (k + 1)) differs on 1.5 % of lengths
            return [int(i * step) for i in range(1, k + 1)]
        return self._by_rate(n, fps)

    def _by_rate(self, n: int, fps: float) -> list[int]:
        count = n / fps * self.rate if self.rate is not None and fps > 0 else math.inf
        if self.rate is None or not (math.isfinite(count) and math.isfinite(fps)):
            raise ValueError(
                f"the clip states {fps} frames a second; sampling by time needs a rate"
            )
        step = fps / self.rate
        wanted = max(1, int(count))
        ticks = range(wanted) if wanted <= self.nframe else _linspace(wanted, self.nframe)
        return [min(int(i * step), n - 1) for i in ticks]

    @property
    def rule(self) -> str:
        """Return the policy as the command line writes it."""
        if self.rate is None:
            return self.policy
        return f"fps:{self.rate!r}".removesuffix(".0")  # every digit: the rule must parse back

    def __str__(self) -> str:
        """Return count and rule, for people."""
        return f"{self.nframe} frames, {self.rule}"


def _linspace(n: int, k: int) -> list[int]:
    # numpy's own steps (arange * step, last one set to stop), so that rounding falls the same way.
    if k == 1:
        return [0]
    step = (n - 1) / (k - 1)
    return [int(i * step) for i in range(k - 1)] + [n - 1]
