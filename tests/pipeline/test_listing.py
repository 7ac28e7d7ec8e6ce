import gzip
import json
import os
from pathlib import Path

import pytest

from featstore.decoding.video_file import Video
from featstore.errors import ListingError
from featstore.pipeline import listing
from featstore.pipeline.listing import check_listing, list_videos, read_listing


def ids(videos):
    return [video.video_id for video in videos]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_a_video_is_named_by_its_path_in_the_folder_without_the_suffix(tmp_path):
    touch(tmp_path, "b.mp4", "a.MKV", "sub/deep/c d.webm", "notes.txt", ".hidden.mp4")
    assert ids(list_videos([tmp_path])) == ["a", "b", "sub/deep/c d"]


def test_files_and_folders_mix(tmp_path):
    touch(tmp_path, "one/a.mp4", "b.mp4")
    assert ids(list_videos([tmp_path / "one", tmp_path / "b.mp4"])) == ["a", "b"]


def test_what_follows_a_dot_and_is_no_videos_suffix_tells_files_apart(tmp_path):
    touch(tmp_path, "s1.e1", "s1.e2", "v1.5.MP4")
    places = [tmp_path / name for name in ("s1.e1", "s1.e2", "v1.5.MP4")]
    assert ids(list_videos(places)) == ["s1.e1", "s1.e2", "v1.5"]


def test_a_folder_named_like_a_video_is_listed_and_not_entered(tmp_path):
    touch(tmp_path, "x.mp4/inside.mp4")
    assert ids(list_videos([tmp_path])) == ["x"]


def test_a_loop_of_links_ends(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert ids(list_videos([tmp_path])) == ["a"]


def test_links_to_folders_are_followed(tmp_path):
    touch(tmp_path, "disk/one/a.mp4", "disk/b.mp4", "videos/c.mp4")
    (tmp_path / "videos" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "one" / "back").symlink_to(tmp_path / "videos")
    (tmp_path / "disk" / "one" / "up").symlink_to("..")
    assert ids(list_videos([tmp_path / "videos"])) == ["c", "more/b", "more/one/a"]


@pytest.mark.parametrize(
    "suffix", ["gif", "mxf", "vob", "mpe", "y4m", "h264", "264", "hevc", "asf", "rm", "nut", "DV"]
)
def test_every_kind_of_video_file_is_listed(tmp_path, suffix):
    touch(tmp_path, f"a.{suffix}")
    assert ids(list_videos([tmp_path])) == ["a"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "videos/a.mp4")
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(json.dumps({"video_id": "a", "path": "~/videos/a.mp4"}))
    videos = [Video("a", str(tmp_path / "videos/a.mp4"))]
    assert list_videos(["~/videos"]) == videos
    assert list_videos([Path("~/videos/a.mp4")]) == videos
    assert read_listing(manifest) == videos


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("https://example.org/a.mp4", "download it, and name the file"),
        ("s3://bucket/a.mp4", "download it, and name the file"),
        ("file:///data/a.mp4", "write its path, /data/a.mp4"),
        ("file:///my%20data/a%231.mp4", "write its path, /my data/a#1.mp4"),
        (Path("https://example.org/a.mp4"), "download it"),
    ],
)
def test_a_url_is_refused_in_words(tmp_path, url, remedy):
    with pytest.raises(ListingError, match=f"{url} is a URL; .*{remedy}"):
        list_videos([url])
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(json.dumps({"video_id": "a", "path": str(url)}))
    with pytest.raises(ListingError, match=f"list.jsonl, line 1: {url} is a URL; .*{remedy}"):
        read_listing(manifest)


@pytest.mark.parametrize("video_id", ["", "a\n", "x" * 5000])
def test_an_id_that_cannot_be_is_refused_with_its_line(tmp_path, video_id):
    manifest = tmp_path / "list.jsonl"
    rows = [{"video_id": name, "path": "a.mp4"} for name in ("a", video_id)]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ListingError, match=r"list.jsonl, line 2: a video id of .*; write another"):
        read_listing(manifest)


def test_a_folder_with_a_colon_in_its_name_is_not_a_url(tmp_path, monkeypatch):
    touch(tmp_path, "take:/a.mp4")
    monkeypatch.chdir(tmp_path)
    assert ids(list_videos(["take:/a.mp4"])) == ["a"]


def test_a_file_name_that_is_no_text_is_listed(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"l\xe9.mp4"), "wb") as file:
        file.write(b"x")
    assert ids(list_videos([tmp_path])) == ["l\udce9"]


@pytest.mark.parametrize("missing", ["nowhere", "empty"])
def test_a_place_without_videos_is_refused(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ListingError, match=missing):
        list_videos([tmp_path / missing])


def test_all_that_is_odd_in_a_folder_is_told_at_once(tmp_path):
    """The first name that cannot be an id hid the others; of two files of a name only five pairs were shown."""
    touch(
        tmp_path,
        "good.mp4",
        "b\x07.mp4",
        "c\n.mp4",
        *(f"{i}.{end}" for i in range(7) for end in ("avi", "mkv")),
    )
    with pytest.raises(ListingError) as told:
        list_videos([tmp_path])
    head, *lines = str(told.value).split("\n")
    assert head.startswith("9 videos have no id of their own; rename the file, or give it an id")
    assert len(lines) == 9
    assert not any("good" in line for line in lines)
    touch(tmp_path, *(f"{i}\a.mp4" for i in range(listing.MOST_TOLD)))
    with pytest.raises(ListingError, match=r"(?s)^109 videos.*\n  and 9 more$"):
        list_videos([tmp_path])


def test_all_lines_and_all_places_that_name_no_video_are_told_at_once(tmp_path):
    manifest = tmp_path / "list.csv"
    manifest.write_text("video_id,path\na,a.mp4\n,b.mp4\nc,\n")
    with pytest.raises(ListingError, match=r"(?s)^2 lines of .* name no video:\n.*line 3.*line 4"):
        read_listing(manifest)
    with pytest.raises(ListingError, match=r"(?s)^2 places cannot be listed:\n.*nowhere.*gone"):
        list_videos([tmp_path / "nowhere", tmp_path / "gone"])


def test_two_files_of_one_id_are_refused_and_both_are_named(tmp_path):
    touch(tmp_path, "a.mp4", "a.webm")
    with pytest.raises(ListingError, match=r"'a' names more than one file, .*a\.mp4 and .*a\.webm"):
        list_videos([tmp_path])


def test_a_file_that_is_named_twice_is_one_video(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "b.mp4")
    assert ids(list_videos([tmp_path, tmp_path / "b.mp4"])) == ["a", "b"]
    monkeypatch.chdir(tmp_path)
    twice = [Video("a", str(tmp_path / "a.mp4")), Video("a", "a.mp4")]
    assert check_listing(twice) == twice[:1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "m.jsonl",
            '{"video_id": "x", "path": "v/x.mp4", "more": 1}\n\n{"video_id": "y", "path": "/y.mp4"}\n',
        ),
        ("m.csv", "\ufeffvideo_id,path\nx,v/x.mp4\ny,/y.mp4\n"),
        ("m.tsv", "path\tvideo_id\nv/x.mp4\tx\n/y.mp4\ty\n"),
        (
            "m.jsonl",
            '\ufeff{"video_id": "x", "path": "v/x.mp4"}\r\n\r\n{"video_id": "y", "path": "/y.mp4"}\r\n',
        ),
        ("m.csv", '\r\nvideo_id,path,,\r\n\r\nx,"v/x.mp4",,\r\ny,/y.mp4\r\n\r\n'),
        ("m.TSV", '"video_id"\t"path"\r\nx\tv/x.mp4\r\n\r\n"y"\t/y.mp4'),
    ],
)
def test_a_manifest_names_paths_relative_to_itself(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    videos = read_listing(tmp_path / name)
    assert ids(videos) == ["x", "y"]
    assert [video.path for video in videos] == [str(tmp_path / "v/x.mp4"), "/y.mp4"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.jsonl", "{\n", "line 1"),
        ("m.jsonl", "[1]\n", "line 1"),
        ("m.jsonl", '{"video_id": 3, "path": "x"}\n', "both strings"),
        ("m.csv", "video_id,file\nx,y\n", "line 2"),
        ("m.csv", "video_id,path\n", "names no video"),
        ("m.txt", "x", "jsonl"),
        ("m.jsonl", json.dumps({"video_id": "a\nb", "path": "x"}), "control characters"),
        ("m.jsonl", json.dumps({"video_id": "a" * 5000, "path": "x"}), "5000 bytes"),
        ("m.jsonl", json.dumps({"video_id": "", "path": "x"}), "0 bytes"),
        ("m.csv", "video_id,path\na,x\na,y\n", "more than one file"),
        ("m.csv", "", "names no video"),
        ("m.jsonl", "\n \r\n", "names no video"),
        ("m.csv", "video_id,path,path\nx,y,z\n", "'path' twice"),
        ("m.jsonl", '{"video_id": "x", "path": "y", "path": "z"}\n', "line 1.*name twice"),
        ("m.csv", "video_id,path\na,x, y.mp4\n", "line 2 has 3 values for 2 columns"),
        ("m.csv", "video_id,path\na,x\0.mp4\n", "line 2"),
        ("m.tsv", 'video_id\tpath\n"a\tx.mp4\nb\ty.mp4\n', "line 3 cannot be read.*quote"),
        ("m.tsv", 'video_id\tpath\n"a" b\tx.mp4\n', "line 2 cannot be read.*quote"),
        ("m.tsv", "video_id\tpath\na\tb\tc\n", "line 2 has 3 values"),
        ("m.jsonl.gz", "x", "ends in '.gz'"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused_with_the_place(tmp_path, name, text, said):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ListingError, match=said):
        read_listing(tmp_path / name)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("encode", [gzip.compress, lambda text: text.decode().encode("utf-16")])
def test_a_manifest_that_is_no_utf8_is_refused(tmp_path, suffix, encode):
    manifest = tmp_path / f"m.{suffix}"
    manifest.write_bytes(encode(b"video_id,path\nx,y.mp4\n"))
    with pytest.raises(ListingError, match=r"is not UTF-8.*save it as UTF-8, uncompressed"):
        read_listing(manifest)


def test_quotes_within_a_value_and_whole_quoted_values_are_read(tmp_path):
    (tmp_path / "m.tsv").write_text('video_id\tpath\n5" disc\t"a ""b"".mp4"\n')
    [video] = read_listing(tmp_path / "m.tsv")
    assert (video.video_id, video.path) == ('5" disc', str(tmp_path / 'a "b".mp4'))


@pytest.mark.parametrize("place", ["x" * 300, "a\0b", "file/below"])
def test_a_place_that_cannot_be_is_refused_in_words(tmp_path, place):
    touch(tmp_path, "file")
    with pytest.raises(ListingError, match="cannot be listed"):
        list_videos([tmp_path / place])


def test_a_quoted_pattern_is_refused_with_the_remedy(tmp_path):
    touch(tmp_path, "a.mp4")
    with pytest.raises(
        ListingError, match=r"\*.mp4 cannot be listed: .*; as a pattern leave it unq"
    ):
        list_videos([tmp_path / "*.mp4"])


def test_an_empty_place_does_not_stand_for_the_current_folder(tmp_path, monkeypatch):
    """As `--videos "$FOLDER"` is where the variable is not set."""
    touch(tmp_path, "a.mp4")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ListingError, match="is empty"):
        list_videos([""])


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "private/b.mp4")
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("private"):  # also where the tests run as root
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ListingError, match="private cannot be listed: Permission denied"):
        list_videos([tmp_path])


def test_a_videos_path_is_absolute_and_stays_the_same_file_after_a_chdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Video("a", "sub/../a.mp4").path == str(tmp_path / "a.mp4")


def test_a_manifest_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ListingError, match="cannot be read"):
        read_listing(tmp_path / "m.csv")
