"""LMDB's numbers: which engine, how large its map, how many readers and open environments; fcntl's `struct flock`."""

from __future__ import annotations

import struct

ENGINE = "lmdb-0.9"
# Virtual address space, not disk: the file is as large as its records. Growing a map would kill its views.
MAP_BYTES = 4 << 40
MAX_READERS = 1022
# What LMDB 0.9 makes of its lock file for 1,022 readers: 64 bytes each, and 192 of its own for one of them less.
TABLE_BYTES = 64 << 10
# Environments kept open from one lookup to the next: each takes `MAP_BYTES` of address space, of which there is enough
# for 32, and five descriptors.
KEPT_ENVIRONMENTS = 16
# Records of an environment whose parsed headers are kept, some 2 KB each.
CACHED_RECORDS = 16_384
# Bytes of a record that the disk takes longer to give than it takes to ask for.
LARGE_RECORD_BYTES = 1 << 20
# On 64-bit Linux: type, whence, start, length, pid (0, as locks on open files want it), padding to 8 bytes.
FLOCK = struct.Struct("hhqqi0q")
# Of a row of the catalog; a longer one is refused.
MAX_ROW_BYTES = 1 << 20
