"""`against_sige.py`: its table without SIGE, and, where SIGE is there, its outputs against dense torch."""

import io

import against_sige
import pytest
from others import import_or_skip
from rich.console import Console

from deltajax._bench import subject

ROW = against_sige.Row("square", 0.02, 0.023, {"4": 30.0, "8": 20.0}, {"xla": 10.0, "native": 5.0}, 1e-6)


def test_the_fastest_block_counts():
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(against_sige.table(against_sige.Found((384, 512), 2, 50.0, [ROW])))
    line = next(line for line in console.export_text().splitlines() if "square 2 %" in line)
    assert [word for word in line.split() if word not in "│┃"] == [
        "square", "2", "%", "2.30", "%", "30.00", "20.00", "2.50", "10.00", "2.00", "5.00", "4.00", "1.0e-06"
    ]  # fmt: skip


def test_who_has_no_sige_is_told(monkeypatch, capsys):
    monkeypatch.setattr(against_sige, "import_or_reason", lambda name: f"{name} does not import: ImportError")
    assert against_sige.main() == 1
    assert "torch does not import: ImportError; this script says in its first lines" in capsys.readouterr().err


def test_densities_that_are_none_are_named(monkeypatch):
    monkeypatch.setattr(against_sige, "import_or_reason", lambda name: against_sige)
    with pytest.raises(ValueError, match=r"`density` \(=0.0\) must be a share of the frame, above 0"):
        against_sige.main(density=(0.0,))


def test_sige_is_exact():
    import_or_skip("torch")
    import_or_skip("sige.cpu")
    what = subject("stack15", None, (64, 96))
    found = against_sige.measure(
        import_or_skip("sige.nn"), what, ("square", "scattered"), (0.1, 0.25), (4, 8), ("",), 1
    )
    assert [(row.pattern, row.asked) for row in found.rows] == [
        ("square", 0.1), ("square", 0.25), ("scattered", 0.1), ("scattered", 0.25)
    ]  # fmt: skip
    assert all(0 < row.changed < 0.6 and row.sige.keys() == {"4", "8"} for row in found.rows)
    assert max(row.difference for row in found.rows) <= 1e-5
