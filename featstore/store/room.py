"""Whether a write failed for want of room, where the error does not say so."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from typing import TYPE_CHECKING

from featstore.store.paths import DATA_FILE

if TYPE_CHECKING:
    from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a commit may need beyond its records; a disk that has less is full.
_PROBE_BYTES = 1 << 20


def is_full(path: Path) -> bool:
    """Return whether the disk, a quota or the limit on the size of files leaves no room for more in the folder `path`.

    LMDB calls a write that was cut short an input/output error, whatever cut it. So this tries to write.
    """
    try:
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY:
            size = os.stat(path / DATA_FILE).st_size
            if size + _PROBE_BYTES > limit:
                return True
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as exc:
        return exc.errno in NO_ROOM
    return False
