"""docs/tutorial.ipynb runs, and prints what is on the page."""

import copy
import json

import pytest
from make_tutorial import PAGE, code_cells, run_cells


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_cells_of_the_tutorial_print_what_is_on_the_page(monkeypatch):
    monkeypatch.chdir(PAGE.parent)
    page = json.loads(PAGE.read_text(encoding="utf-8"))
    ran = copy.deepcopy(page)
    run_cells(ran)
    for cell, again in zip(code_cells(page), code_cells(ran), strict=True):
        for shown, now in zip(cell["outputs"], again["outputs"], strict=True):
            if "varies" in cell["metadata"].get("tags", ()) or "image/jpeg" in shown.get(
                "data", ()
            ):
                assert now.keys() == shown.keys()
            else:
                assert now == shown
