"""Statistics of several processes in one file, which `read_statistics` adds up."""

import json

import pytest
from toys import run_python

from featstore.errors import FeatstoreError
from featstore.models.statistics import CacheStatistics, read_statistics

ASK = """
import logging
logging.basicConfig(level=logging.INFO)
from featstore.models.statistics import CacheStatistics, report_at_exit
report_at_exit(CacheStatistics(hits=3, misses=1, bytes_read=10, decoders=frozenset({"auto"})))
report_at_exit(CacheStatistics(hits=2, seconds_reading=0.5))
"""


def test_each_process_adds_what_it_asked(tmp_path):
    file = tmp_path / "video mme.json"
    for _ in range(2):
        done = run_python(ASK, FEATSTORE_STATISTICS=str(file))
        assert (done.returncode, done.stdout) == (0, "")
        assert "Cache hits: 5" in done.stderr
    assert len(file.read_text().splitlines()) == 2
    found = read_statistics(file)
    assert found == CacheStatistics(10, 2, 20, 1.0, decoders=frozenset({"auto"}))


def test_without_the_variable_or_a_question_nothing_is_written(tmp_path):
    file = tmp_path / "none"
    assert (
        run_python("import featstore.models.statistics", FEATSTORE_STATISTICS=str(file)).returncode
        == 0
    )
    assert not file.exists()


def test_a_file_that_cannot_be_written_is_named_after_the_report(tmp_path):
    done = run_python(ASK, FEATSTORE_STATISTICS=str(tmp_path / "no" / "file"))
    assert done.returncode == 0
    assert "Cache hits: 5" in done.stderr
    assert f"cannot be added to {tmp_path}/no/file: No such file or directory" in done.stderr


def test_what_a_model_says_of_itself_is_such_a_line(tmp_path):
    file = tmp_path / "one"
    asked = CacheStatistics(7, 2, 100, 1.5, 2.5, 3.5, frozenset({"auto", "exact"}))
    file.write_text(json.dumps(asked.to_dict()))
    assert read_statistics(file) == asked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "[]",
        "3",
        '{"hits": 1}',
        '{"hits": -1, "misses": 0}',
        '{"hits": NaN, "misses": 0}',
        '{"hits": "1", "misses": 0}',
        '{"hits": 1, "misses": 0, "decoders": 3}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_other_files_are_refused(text, tmp_path):
    file = tmp_path / "file"
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(FeatstoreError, match=r"is not a file of statistics .*FEATSTORE_STATISTICS"):
        read_statistics(file)
    with pytest.raises(FeatstoreError, match="cannot be read: No such file"):
        read_statistics(tmp_path / "none")
