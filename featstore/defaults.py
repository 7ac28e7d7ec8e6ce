"""Every default value of featstore's options, with its unit and reason; library and command line read it."""

from __future__ import annotations

# What is stored.
NFRAME = 128  # frames per video; LongVA is evaluated at this number
SAMPLING = "linspace"  # evenly spaced with both ends, as LongVA and lmms-eval sample
VALUES = "int8"  # half the bytes of bf16
GRANULARITY = "channel_token"  # two int8 scales a value: outliers cost others nothing
CODEC = "raw"  # read without a copy; int8 features hardly compress
MAX_ERROR = 0.02  # 99th percentile of a token's relative L2; int8's own on sound features is 0.01
ON_MAX_ERROR = "lossless"  # what is stored of a video that misses it: what the encoder computed

ON_CLASH = "skip"  # what becomes of a file whose id another stored one has: one must not stop all

# Where it is stored.
CACHE_DIR_VARIABLE = "FEATSTORE_CACHE_DIR"  # names the cache directory where no option does

# How it is computed.
ENCODER = "longva"
LAYER = "-1"  # of any frozen encoder: its last hidden state
POOL = "patch"  # of any frozen encoder: every patch's token
DEVICE = "auto"  # CUDA if there is a GPU, else the CPU
DTYPE = "auto"  # fp16 on CUDA, as LongVA computes; fp32 on a CPU
BATCH_FRAMES_CUDA = 128  # frames encoded at once: one whole video
BATCH_FRAMES_CPU = 16  # frames encoded at once: keeps memory small
ENGINE = "local"  # processes of this machine; ray is an extra

# Decoding.
DECODER = "auto"  # PyAV if its frames are certain to be decord's, else decord
DECODE_WORKERS = None  # processes; None is one for each core that this process may use
DECODE_TIMEOUT = 600.0  # seconds per video; a file that hangs its decoder must not hang the run
DECODE_MEMORY = 4 << 30  # bytes per worker; 128 frames of an hour of 1080p have needed 1.8 GB

# Writing.
COMMIT_BYTES = 32 << 20  # bytes per commit: a 63 MiB record fills it, small ones share its sync
MIN_FREE_BYTES = 1 << 30  # bytes that stay free on the disk, for everyone else on it
SHARD_BYTES = 64 << 30  # bytes of a shard; it is copied whole, and again if that is cut off
LOCK_WAIT = 10.0  # seconds; the writer of an ingest that was just killed may still commit

# Reading from an object store or a network file system.
LOCAL_BYTES = 200 << 30  # bytes of the folder that records are fetched into: some 3,000 of 66 MB
REMOTE_TIMEOUT = 30.0  # seconds of one answer, which is resumed: a stall costs no more
REMOTE_CONNECT_TIMEOUT = 5.0  # seconds
REMOTE_RETRIES = 3  # of a request that fails; a server that is gone is named after about a second
REMOTE_REFRESH = 60.0  # seconds until a dataset's list of shards is asked for again

# Progress.
PACE_VIDEOS = 3  # since the first one was done, before which a rate says nothing
PACE_SECONDS = 3.0  # likewise

# Answering.
ON_MISS = "encode"  # features that are missing are made and stored
PREFIX_CACHE = 1  # videos whose keys and values stay on the device: 1 GB each at 128 frames, 7B
MAX_NEW_TOKENS = 1024  # tokens per answer
BENCHMARK_MAX_NEW_TOKENS = 2048  # tokens per answer, as for LLaVA's models in VLMEvalKit
ATTENTION = "sdpa"  # in torch itself; needs no further package

# Comparing stored features with newly encoded ones.
COMPARE_SAMPLES = 100  # videos
COMPARE_SEED = 0
COMPARE_PROMPT = "Describe this video."
COMPARE_MAX_NEW_TOKENS = 64  # tokens per answer
MAX_RELATIVE_L2 = 0.05  # of each video; leaves int8 some room on heavy-tailed features
MIN_COSINE = 0.998  # of each video
MIN_IDENTICAL = 0.0  # share of identical answers, 0 to 1; int8 may change some

# Pictures.
STRIP_COLUMNS = 8  # frames of a strip: as wide as a screen
REPORT_FILE = "report.html"
