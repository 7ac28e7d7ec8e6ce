"""When a reader table is whole."""

import os

from featstore.store.engine.handles import _has_whole_table
from featstore.store.engine.settings import TABLE_BYTES


def test_a_table_is_whole_if_it_is_a_file_all_of_which_is_on_disk(tmp_path):
    table = tmp_path / "lock.mdb"
    assert not _has_whole_table(tmp_path)
    table.touch()
    assert not _has_whole_table(tmp_path)
    os.truncate(table, TABLE_BYTES)  # a hole
    assert not _has_whole_table(tmp_path)
    table.write_bytes(b"x" * TABLE_BYTES)
    assert _has_whole_table(tmp_path)
    with table.open("ab") as file:  # and a hole after it
        file.truncate(TABLE_BYTES + (1 << 20))
    assert not _has_whole_table(tmp_path)
    table.unlink()
    table.mkdir()
    (table / "full").write_bytes(b"x" * 100_000)
    assert not _has_whole_table(tmp_path)
