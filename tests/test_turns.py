"""`turns.py` on this checkout and a copy of it."""

import re
import shutil
from pathlib import Path

import pytest
import turns

ROOT = Path(__file__).resolve().parent.parent


def test_each_checkout_is_measured_by_its_own_package(tmp_path, capsys):
    shutil.copytree(ROOT / "deltajax", tmp_path / "copy" / "deltajax")
    turns.main((ROOT, tmp_path / "copy"), network="mobilenet-vww", changed=(1.0, 0.0), frames=4, rounds=1,
               held=1e-3)
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| mobilenet-vww, ms | 100 % | 0 % |"
    assert [row.split(" | ")[0] for row in rows] == [f"| {ROOT.name}", "| copy"]
    for row in rows:
        every, none = (float(ms) for ms in re.findall(r"([\d.]+) /", row))
        assert min(every, none) > 0


def test_a_checkout_that_cannot_be_measured(tmp_path):
    """Whatever stops it there is said."""
    (tmp_path / "deltajax").mkdir()
    (tmp_path / "deltajax" / "__init__.py").write_text("from os import nothing")
    with pytest.raises(RuntimeError, match=r"mobilenet-vww in .* failed"):
        turns.measure(tmp_path, "mobilenet-vww", (1.0,), 2, "native", 0.0)


def test_the_least_and_the_median_of_the_rounds():
    table = turns.table({Path("/old"): [[3.0], [1.0], [2.5]]}, "slim-320", (0.01,))
    assert table == ["| slim-320, ms | 1 % |", "|---|---|", "| old | 1.000 / 2.500 |"]


def test_a_folder_without_the_package():
    with pytest.raises(ValueError, match="name a checkout"):
        turns.main((Path("/"),), network="slim-320")
