"""The page: one file that asks for nothing, in which no text of a store is markup."""

import builtins
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from surveyed_rows import ENTRY, ROW, surveyed

from featstore.errors import MissingExtra
from featstore.report.page import Evaluation, render_page
from featstore.report.survey import CacheSurvey, Coverage, Reason, SetSurvey

HOSTILE = "<script>alert(1)</script>\"'&\u202e\x1b[2J\udcff"
VOID = {"meta", "link"}


def page_of(name: str = "a video", **changes) -> str:
    entries = [
        ENTRY._replace(video_id=name, decoder=name, doubt=name, token_p99=0.01 * i)
        for i in range(20)
    ]
    found = surveyed(entries)
    found.dataset = name
    found.failures = {"k": Reason(name, 3, [name])}
    survey = CacheSurvey([found], {name: name}, [Coverage(name, 9, 3, 1, (name,))])
    evaluations = [Evaluation(name, 3, 1, 4096, (1.0, 2.0, 3.0))]
    return render_page(survey, name, evaluations=evaluations, now=1.7e9, version="1", **changes)


class Outline(HTMLParser):
    """Checks that tags are closed in order, and keeps what is looked at."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_no_text_is_markup_or_a_control_character():
    page = page_of(HOSTILE)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 9
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\udc80-\udcff]", page)
    page.encode()
    assert [tag for tag, _ in Outline(page).tags] == [tag for tag, _ in Outline(page_of()).tags]


def test_it_asks_for_nothing():
    outline = Outline(page_of())
    for _, attributes in outline.tags:
        for name in ("src", "href", "action", "poster", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:,"))
    [policy] = [row for row in outline.named("meta") if "http-equiv" in row]
    assert policy["content"].startswith("default-src 'none'; ")
    assert "url(" not in page_of()
    assert "@import" not in page_of()


def test_it_can_be_heard():
    """Tables with captions and scopes, headings in order, pictures with titles and descriptions, links that lead on."""
    outline = Outline(page_of())
    names = [tag for tag, _ in outline.tags]
    assert names.count("table") == names.count("caption") == names.count("thead") == 7
    assert all(row.get("scope") in ("col", "row") for row in outline.named("th"))
    levels = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [row["id"] for _, row in outline.tags if "id" in row]
    assert len(ids) == len(set(ids))
    pictures = outline.named("svg")
    assert len(pictures) == 2
    for picture in pictures:
        assert picture["role"] == "img"
        assert set(picture["aria-labelledby"].split()) <= set(ids)
    assert names.count("title") == 1 + names.count("desc") == 3
    assert {row["href"][1:] for row in outline.named("a")} <= set(ids)
    assert outline.named("html") == [{"lang": "en"}]


def test_an_empty_cache_has_a_page():
    page = render_page(CacheSurvey([], {}, []), "c", now=1.7e9, version="1")
    Outline(page)
    assert "No feature set is stored yet." in page
    assert "Hit rates" not in page
    empty = SetSurvey("demo", ROW, is_default=True)
    Outline(render_page(CacheSurvey([empty], {}, []), "c", now=1.7e9, version="1"))


def test_numbers_are_those_of_the_survey():
    page = page_of()
    assert re.search(r"Highest bar: \d of 20 videos\.", page)
    assert "1 stored exactly" in page
    assert '<span class="warn">which 17 missed</span>' in page
    assert "75%" in page
    assert "3 of 9" in page


def test_a_set_is_named_with_what_its_videos_are_stored_as():
    page = render_page(
        CacheSurvey(
            [surveyed([ENTRY._replace(values="fp32", granularity="none", codec="planes")])], {}, []
        ),
        "c",
        now=1.7e9,
        version="1",
    )
    assert "fp32 planes" in page
    assert f"{ROW.storage}" not in page


def test_without_jinja2_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'featstore\[report\]'"):
        page_of()


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_it_without_complaint(width, scheme, tmp_path):
    """At this width nothing sticks out, the colours follow the scheme, and the console stays empty."""
    page = page_of("a_name_without_a_place_to_break_" * 6)
    (tmp_path / "page.html").write_text(page)
    # Chromium makes no window as narrow as a phone, but a frame; its page has no scripts, ours looks at it.
    (tmp_path / "frame.html").write_text(
        f"""<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe><script>
        onload = () => {{ const page = frames[0].document, style = getComputedStyle(page.body);
        document.title = [page.documentElement.scrollWidth, style.backgroundColor].join(" "); }}</script>"""
    )
    done = subprocess.run(
        [
            *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            "--hide-scrollbars",
            *("--enable-logging=stderr", "--allow-file-access-from-files"),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
            (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    background = {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 22, 26)"}[scheme]
    assert f"<title>{width} {background}</title>" in done.stdout
    assert "CONSOLE" not in done.stderr
