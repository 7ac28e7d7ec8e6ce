"""Our walk of LMDB's pages: the same as LMDB's on sound files, an error and nothing else on others."""

import os
import random
import struct
from itertools import chain
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from quick import examples

from featstore.errors import StoreDamaged, StoreError, StoreMismatch
from featstore.store.engine.pages import HEADER, read_metas
from featstore.store.engine.tree import BRANCH, LEAF, NODE, Tree
from featstore.system.file_map import FileMap

PAGE = 4096
KEYS = st.binary(min_size=1, max_size=511)
SIZES = st.one_of(st.integers(0, 300), st.integers(1500, 2500), st.integers(4000, 13_000))


def write(folder: Path, rows: dict[bytes, bytes | None]) -> Path:
    """Put, or delete where the value is None, in one commit."""
    with lmdb.open(os.fspath(folder), map_size=1 << 30, lib_version=0) as environment:
        with environment.begin(write=True) as txn:
            for key, value in rows.items():
                if value is None:
                    txn.delete(key)
                else:
                    txn.put(key, value)
        environment.sync(True)
    return folder / "data.mdb"


def open_tree(file: Path) -> Tree:
    fd = os.open(file, os.O_RDONLY)
    try:
        newest = max(read_metas(fd, file.parent), key=lambda meta: meta.txn_id)
        return Tree(FileMap(fd), newest, file.parent)
    finally:
        os.close(fd)


def read_all(tree: Tree, prefix: bytes = b"") -> dict[bytes, bytes]:
    pages = tree.rows(prefix, lambda place: tree.mapping.read(*place))
    return dict(chain.from_iterable(zip(*page, strict=True) for page in pages))


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.dictionaries(KEYS, SIZES, max_size=120),
    smaller=st.sets(st.integers(0, 119)),
    gone=st.sets(st.integers(0, 119)),
    asked=st.lists(KEYS, max_size=10),
)
def test_it_finds_what_lmdb_finds(tmp_path_factory, rows, smaller, gone, asked):
    folder = tmp_path_factory.mktemp("tree")
    kept = {key: bytes([len(key) & 255]) * size for key, size in rows.items()}
    write(folder, kept)
    names = list(kept)
    changed = {names[i]: kept[names[i]][: 1 + i] for i in smaller if i < len(names)}
    removed = {names[i]: None for i in gone if i < len(names)}
    file = write(folder, {**changed, **removed})
    kept = {key: value for key, value in {**kept, **changed}.items() if key not in removed}
    tree = open_tree(file)
    assert read_all(tree) == kept
    assert list(read_all(tree)) == sorted(kept)
    for key in [*names, *asked]:
        place = tree.find(key)
        assert (None if place is None else tree.mapping.read(*place)) == kept.get(key)
        for prefix in (key, key[:1]):
            below = {key: kept[key] for key in sorted(kept) if key.startswith(prefix)}
            assert list(tree.keys(prefix)) == list(below)
            assert list(read_all(tree, prefix).items()) == list(below.items())


@pytest.fixture
def deep(tmp_path):
    """A tree of three levels, whose newest commit is in page 0."""
    rows = {f"{i:04}".encode() * 120: bytes([i]) * (i % 40) for i in range(90)}
    rows[b"large"] = b"x" * 10_000
    write(tmp_path, rows)
    return write(tmp_path, {b"last": b""})


def test_levels_and_large_values_are_walked(deep):
    tree = open_tree(deep)
    assert tree._meta.depth >= 3
    assert len(read_all(tree)) == 92
    assert tree.mapping.read(*tree.find(b"large")) == b"x" * 10_000


def test_rows_are_read_up_to_the_last_with_the_prefix_and_no_further(tmp_path):
    kept = {b"a/%02d" % i: b"x" * i for i in range(30)}
    tree = open_tree(write(tmp_path, {**kept, b"b/large": b"y" * 40_000, b"c": b""}))
    read: list[object] = []
    [(keys, values)] = tree.rows(b"a/", read.append)
    assert dict(zip(keys, values, strict=True)) == kept
    assert read == []


@pytest.mark.parametrize("node", range(3))
@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, 5_000),  # a small value's length
        (4, 2),  # flags of a value that is a tree of its own
        (4, 1),  # flags of one with pages of its own, which it has not
        (6, 5_000),  # the key's length
    ],
)
def test_a_node_that_leads_out_of_its_page_is_refused(tmp_path, node, field, value):
    file = write(tmp_path, {b"a": b"1", b"b": b"2", b"c": b"3"})
    tree = open_tree(file)
    page = tree._page(tree._meta.root, LEAF, 1 << 40)
    with open(file, "r+b", buffering=0) as opened:
        at = page.number * PAGE + page.nodes[node] + field
        os.pwrite(opened.fileno(), struct.pack("=H", value), at)
    what = "a node has flags 2" if value == 2 else ""
    for read in (read_all, lambda tree: tree.find(b"abc"[node : node + 1])):
        with pytest.raises(StoreDamaged, match=rf"^{tmp_path}: page \d+ cannot be: {what}"):
            read(open_tree(file))


@pytest.mark.parametrize(
    ("lower", "upper"),
    [(16, PAGE), (17, PAGE), (19, PAGE), (20, 18), (20, PAGE + 2), (PAGE + 2, PAGE + 2)],
)
def test_a_page_whose_bounds_cannot_be_is_refused(tmp_path, lower, upper):
    file = write(tmp_path, {b"a": b"1", b"b": b"2"})
    tree = open_tree(file)
    with open(file, "r+b", buffering=0) as opened:
        at = tree._meta.root * PAGE + HEADER.size - 4
        os.pwrite(opened.fileno(), struct.pack("=HH", lower, upper), at)
    for read in (read_all, lambda tree: tree.find(b"a")):
        with pytest.raises(StoreDamaged, match=f"its bounds are {lower} and {upper}"):
            read(open_tree(file))


def test_a_branch_leads_to_pages_of_48_bits(deep, monkeypatch):
    tree = open_tree(deep)
    page = tree._page(tree._meta.root, BRANCH, 1 << 40)
    data = bytearray(page.data)
    for start in page.nodes:
        NODE.pack_into(data, start, 0x0102, 0x0304, 0x0506, NODE.unpack_from(data, start)[3])
    monkeypatch.setattr(tree, "_page", lambda *words: page._replace(data=bytes(data)))
    assert set(tree._branch(page.number, 1 << 40).children) == {0x0506_0304_0102}


def test_a_large_value_may_begin_on_the_first_page_after_the_two(tmp_path):
    chance, first = random.Random(0), set()
    for _ in range(40):
        value = b"y" * chance.choice([10, 4_000])
        tree = open_tree(write(tmp_path, {b"large%d" % chance.randrange(4): value, b"x": value}))
        for key in tree.keys(b"large"):
            place = tree.find(key)
            assert tree.mapping.read(*place) == b"y" * place.length
            first |= {place.offset // PAGE} if place.length > 10 else set()
    assert min(first) == 2


@pytest.mark.parametrize("start", [0, 20, PAGE - 7, PAGE, 65_535])
def test_a_node_that_begins_outside_the_page_is_refused_when_rows_are_read(tmp_path, start):
    file = write(tmp_path, {b"a": b"1", b"b": b"2", b"c": b"3"})
    number = open_tree(file)._meta.root
    with open(file, "r+b", buffering=0) as opened:
        at = number * PAGE + HEADER.size + 2
        os.pwrite(opened.fileno(), struct.pack("=H", start), at)
    for read in (read_all, lambda tree: tree.find(b"b")):
        with pytest.raises(StoreDamaged, match=f"page {number} cannot be"):
            read(open_tree(file))


def copy_page(file: Path, source: int, target: int) -> None:
    """Put a page where another was, as a disk does that writes to the wrong place."""
    with open(file, "r+b", buffering=0) as opened:
        os.pwrite(opened.fileno(), os.pread(opened.fileno(), PAGE, source * PAGE), target * PAGE)


@pytest.fixture
def grouped(tmp_path):
    """Keys of three groups on several leaves, each group beginning and ending within one."""
    keys = [b"%c/%03d" % (group, i) * 9 for group in b"abc" for i in range(100)]
    return write(tmp_path, {key: b"v" for key in keys})


@pytest.mark.parametrize(
    "read", [lambda tree: [*tree.keys(b"b/")], lambda tree: [*read_all(tree, b"b/")]]
)
def test_a_bit_of_a_key_never_shortens_a_walk(grouped, read):
    tree = open_tree(grouped)
    leaves = [page for page, *_ in tree._leaves(tree._meta.root, tree._meta.depth, b"")]
    whole = len(read(tree))
    assert len(leaves) > 3
    refused = 0
    with open(grouped, "r+b", buffering=0) as file:
        for page in leaves:
            for start in page.nodes[::3] + page.nodes[-1:]:
                for at, bit in [(0, 1), (0, 0x40), (1, 4), (3, 8), (20, 1)]:
                    place = page.number * PAGE + start + NODE.size + at
                    [byte] = os.pread(file.fileno(), 1, place)
                    os.pwrite(file.fileno(), bytes([byte ^ bit]), place)
                    try:
                        assert len(read(open_tree(grouped))) == whole
                    except StoreDamaged:
                        refused += 1
                    os.pwrite(file.fileno(), bytes([byte]), place)
    assert refused > 50


def test_a_key_that_is_out_of_its_place_is_not_said_to_be_missing(grouped):
    tree = open_tree(grouped)
    keys = list(tree.keys(b""))
    page = next(tree._leaves(tree._meta.root, tree._meta.depth, b"b/"))[0]
    key = tree._key(page, page.nodes[4])
    with open(grouped, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"z", page.number * PAGE + page.nodes[4] + NODE.size)
    with pytest.raises(StoreDamaged, match="out of order"):
        open_tree(grouped).find(key)
    assert open_tree(grouped).find(keys[0]) is not None


def test_what_can_be_read_is_salvaged(grouped):
    tree = open_tree(grouped)
    assert tree.salvage(b"b/") == (list(tree.keys(b"b/")), [])
    bad, *_ = list(tree._leaves(tree._meta.root, tree._meta.depth, b""))[1]
    lost = {tree._key(bad, start) for start in bad.nodes}
    kept = [key for key in tree.keys(b"") if key not in lost]
    with open(grouped, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), bytes(8), bad.number * PAGE)
    found, [wrong] = open_tree(grouped).salvage(b"")
    assert found == kept
    assert f"page {bad.number} cannot be" in wrong.found


def test_a_page_in_the_place_of_another_is_refused(deep):
    tree = open_tree(deep)
    leaves = [page for page, *_ in tree._leaves(tree._meta.root, tree._meta.depth, b"")]
    first, second = leaves[0].number, leaves[1].number
    key = next(tree.keys(b""))
    copy_page(deep, second, first)
    with pytest.raises(StoreDamaged, match=f"page {first} cannot be: it says it is page {second}"):
        open_tree(deep).find(key)


def test_a_branch_in_the_place_of_another_is_refused(deep):
    root = open_tree(deep)._meta.root
    first, second = open_tree(deep)._branch(root, 1 << 40).children[:2]
    copy_page(deep, second, first)
    with pytest.raises(StoreDamaged, match=f"page {first} cannot be: it says it is page {second}"):
        read_all(open_tree(deep))


def test_a_large_value_in_the_place_of_another_is_refused(tmp_path):
    file = write(tmp_path, {b"a": b"x" * 5_000, b"b": b"y" * 5_000})
    a, b = (open_tree(file).find(key).offset // PAGE for key in (b"a", b"b"))
    copy_page(file, b, a)
    with pytest.raises(StoreDamaged, match=f"page {a} cannot be: .* it says otherwise"):
        open_tree(file).find(b"a")


def probe(file: Path) -> set[type[Exception]]:
    """Read everything every way; return what was raised. Whatever is not raised would end the process here."""
    raised: set[type[Exception]] = set()
    for read in (read_all, lambda tree: tree.find(b"large"), lambda tree: tree.find(b"0030" * 120)):
        try:
            read(open_tree(file))
        except StoreError as exc:
            raised.add(type(exc))
    return raised


@pytest.mark.slow
def test_no_flipped_byte_of_a_page_header_or_node_leads_out_of_the_file(deep):
    data = bytearray(deep.read_bytes())
    with open(deep, "r+b", buffering=0) as file:
        for page in range(len(data) // PAGE):
            for at in (*range(24), *range(HEADER.size, 200, 31), *range(PAGE - 300, PAGE, 29)):
                offset = page * PAGE + at
                for flip in (0xFF, 1 << (offset % 8)):
                    os.pwrite(file.fileno(), bytes([data[offset] ^ flip]), offset)
                    assert probe(deep) <= {StoreDamaged, StoreMismatch}
                os.pwrite(file.fileno(), data[offset : offset + 1], offset)
    assert probe(deep) == set()


def test_an_empty_tree_has_nothing_to_find_or_to_salvage(tmp_path):
    tree = open_tree(write(tmp_path, {}))
    assert tree.find(b"a") is None
    assert tree.salvage(b"") == ([], [])
    assert read_all(tree) == {}


def test_a_page_behind_the_last_is_refused(deep):
    tree = open_tree(deep)
    root = tree._meta.root
    assert tree._page(root, BRANCH, root + 1).number == root
    with pytest.raises(StoreDamaged, match=f"leads to it, and the file has {root}"):
        tree._page(root, BRANCH, root)


def test_a_large_value_of_more_pages_than_there_are_is_refused(tmp_path):
    file = write(tmp_path, {b"large": b"x" * 40_000})
    page = open_tree(file).find(b"large").offset // PAGE
    with open(file, "r+b", buffering=0) as opened:
        os.pwrite(opened.fileno(), struct.pack("=I", 14), page * PAGE + 12)
    with pytest.raises(StoreDamaged, match=r"it says otherwise"):
        open_tree(file).find(b"large")


def test_a_file_that_ends_early_is_refused_when_it_is_opened_and_while_it_is_open(deep):
    tree = open_tree(deep)
    for end in (3 * PAGE + 5, 2 * PAGE, PAGE + 100, PAGE, 100, 0):
        os.truncate(deep, end)
        with pytest.raises(StoreDamaged, match="the tree leads to it, and the file has"):
            read_all(tree)
        with pytest.raises(StoreError):
            read_all(open_tree(deep))


def test_a_large_value_whose_end_is_missing_is_refused(tmp_path):
    file = write(tmp_path, {b"large": b"x" * 40_000})
    os.truncate(file, file.stat().st_size - 5_000)
    with pytest.raises(StoreDamaged, match="a value of 40000 bytes begins on it, and there are"):
        open_tree(file).find(b"large")


def test_pages_that_a_commit_took_and_gave_back_may_lie_beyond_the_end(tmp_path):
    write(tmp_path, {f"{i:03}".encode(): b"x" * 2000 for i in range(60)})
    file = write(tmp_path, {f"{i:03}".encode(): None for i in range(1, 60)})
    tree = open_tree(file)
    assert read_all(tree) == {b"000": b"x" * 2000}


def test_a_branch_that_leads_to_itself_is_no_endless_walk(deep):
    tree = open_tree(deep)
    root = tree._meta.root
    with open(deep, "r+b", buffering=0) as file:
        node = tree._page(root, 1, 1 << 40).nodes[0]
        os.pwrite(file.fileno(), struct.pack("=HHH", root, 0, 0), root * PAGE + node)
    with pytest.raises(StoreDamaged, match=f"page {root} cannot be"):
        read_all(open_tree(deep))


def test_keys_out_of_order_are_damage(tmp_path):
    file = write(tmp_path, {b"a": b"1", b"b": b"2", b"c": b"3"})
    data = file.read_bytes()
    for other in (b"z2", b"a2"):
        file.write_bytes(data.replace(b"b2", other))
        for read in (read_all, lambda tree: list(tree.keys(b""))):
            with pytest.raises(StoreDamaged, match="out of order"):
                read(open_tree(file))


def test_separators_out_of_order_are_damage(deep):
    """A look-up would turn into the wrong half of the tree, and find nothing there."""
    tree = open_tree(deep)
    read_all(tree)
    number, branch = max(tree._branches.items(), key=lambda item: len(item[1].children))
    page = tree._page(number, BRANCH, 1 << 40)
    data = bytearray(page.data)
    data[page.nodes[-2] + NODE.size] = 0xFF
    with open(deep, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, number * PAGE)
    for look in (lambda tree: tree.find(branch.keys[0]), read_all):
        with pytest.raises(StoreDamaged, match="out of order"):
            look(open_tree(deep))
