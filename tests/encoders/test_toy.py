"""The encoder that tests take for a real one."""

import hashlib

import numpy as np
from toys import oldest_kernels, run_python

from featstore.encoders.toy import ToyEncoder

ENCODE = """
import hashlib
import numpy as np
from featstore.encoders.toy import ToyEncoder
frames = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)
print(hashlib.sha256(ToyEncoder().encode(frames).tobytes()).hexdigest())
"""


def test_its_features_are_the_same_bytes_on_the_oldest_processor():
    frames = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)
    there = run_python(ENCODE, **oldest_kernels())
    assert there.returncode == 0, there.stderr
    here = ToyEncoder().encode(frames)
    assert there.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()


def test_a_frame_has_the_same_features_in_any_batch():
    frames = np.random.default_rng(0).integers(0, 256, (7, 28, 28, 3), dtype=np.uint8)
    one_by_one = [ToyEncoder().encode(frame[None])[0] for frame in frames]
    assert np.array_equal(ToyEncoder().encode(frames), one_by_one)


def test_its_repr_is_a_line_that_says_what_it_is():
    encoder = ToyEncoder(grid=3)
    weights = encoder.identity.weights[:8]
    assert repr(encoder) == f"<featstore.encoders.ToyEncoder: weights {weights}, 9 x 8 a frame>"
