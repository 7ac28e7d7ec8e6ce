"""An evaluation that is interrupted: the exit code says so, and no decoder is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from toys import children_of, python_env

pytestmark = pytest.mark.crash

# A model that decodes and encodes for each question, as on a miss, with an encoder that torch keeps busy.
PROGRAM = """
import os, sys, types
from featstore.encoders.toy import ToyEncoder

def encode(self, frames, encode=ToyEncoder.encode):
    import torch
    print("encoding", file=sys.stderr, flush=True)
    x = torch.randn(1000, 1000)
    for _ in range(50):
        torch.nn.functional.gelu(x @ x)
    return encode(self, frames)

ToyEncoder.encode = encode

class Model:
    def __init__(self, *words, **options):
        from featstore.pipeline.on_demand import OnDemandEncoder
        self.on_demand = OnDemandEncoder(ToyEncoder(), timeout=60)

    def generate(self, *words, **options):
        from featstore.decoding.video_file import Video
        from featstore.sampling import Sampling
        while True:
            self.on_demand.encode(Video("v", os.environ["CLIP"]), Sampling(4))

module = types.ModuleType("featstore.models.longva.model")
module.CachedLongVA = Model
sys.modules[module.__name__] = module
from featstore.__main__ import run
run()
"""


@pytest.mark.parametrize(("send", "times"), [(os.kill, 1), (os.killpg, 2)])
def test_an_interrupted_evaluation_ends_with_130_and_leaves_no_decoder(
    kit, clips, tmp_path, send, times
):
    words = ["vlmeval", "--no-cache", "--", "--model", "LongVA-7B-Cached"]
    words += ["--data", "Video-MME_128frame", "--work-dir", str(tmp_path / "outputs")]
    env = {**python_env(), "VLMEVALKIT_ROOT": str(kit), "CLIP": str(clips / "blink.mp4")}
    env["PYTHONPATH"] += f":{kit}"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        assert any("encoding" in line for line in process.stderr)
        for _ in range(times):
            send(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    deadline = time.monotonic() + 30
    while children_of(process.pid, "featstore.decoding.worker") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children_of(process.pid, "featstore.decoding.worker") == []
