"""Borji, arXiv 2407.01782, from one command: its tables and figures beside its own numbers, and what it left open.

    deltajax paper --mnist FOLDER --out FOLDER
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from deltajax.datasets import Mnist
from deltajax.models import simple_cnn

from . import _accounts, _figures, _table, _threshold
from ._noise import noise
from ._sequences import Digits, drawn_digits, repeated, shifted, turning

PARTS = ("table", "whole", "figures", "accounts", "threshold", "slow", "noise")
COUNT = 11  # digits in an experiment, as in the paper
NOISY = 50  # digits of the noise check
DRAWN = 200  # digits, where there is no MNIST
TAUS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
WIDTH = 100


class _Paper:
    """One run: everything printed is also in `paper.txt`, after each part."""

    def __init__(self, digits: Digits, out: Path, count: int, taus: Sequence[float]) -> None:
        self.params: dict[str, Any] = simple_cnn.load_params()
        self.digits, self.out, self.taus = digits, out, taus
        self.few = Digits(digits.images[:count], digits.labels[:count], digits.origin)
        self.console = Console(record=True)
        self.console.width = max(self.console.width, WIDTH)

    def show(self, *things: Any) -> None:
        for thing in things:
            self.console.print(thing, highlight=False)
        (self.out / "paper.txt").write_text(self.console.export_text(clear=False), encoding="utf-8")

    def save(self, name: str, figure: Any) -> None:
        figure.savefig(self.out / name, dpi=130)
        self.show(f"wrote {self.out / name}")

    def table(self) -> None:
        """Table 1 and its ratios."""
        experiments = [_table.experiment(self.params, make(self.few)) for make in (repeated, shifted)]
        self.show(_table.table(experiments, self.few.origin), _table.ratios(experiments))

    def whole(self) -> None:
        """All digits, where the paper had eleven."""
        rows, total = [], len(self.digits.images)
        with Progress(console=self.console, transient=True) as progress:
            for make in (repeated, shifted):
                bar = progress.add_task(make.__name__, total=-(-total // 100))

                def part(which: slice, make=make):
                    return make(Digits(self.digits.images[which], self.digits.labels[which], self.digits.origin))

                rows.append(_table.whole(self.params, part, total, lambda bar=bar: progress.advance(bar)))
        self.show(_table.whole_table(rows, f"{total:,} {self.digits.origin}"))

    def figures(self) -> None:
        """Figures 4 and 5."""
        self.save("figure4.png", _figures.figure4(self.params, [repeated(self.few), shifted(self.few)]))
        self.save("figure5.png", _figures.figure5(self.params, shifted(self.few).frames[0]))

    def accounts(self) -> None:
        """The paper's savings formula, and the memory that it leaves open."""
        sequences = shifted(self.few)
        self.show(_accounts.savings_table(_accounts.savings(self.params, sequences), f"Experiment {sequences.name}"))
        self.show(*_accounts.memory_tables(*_accounts.memory(self.params)))

    def threshold(self) -> None:
        """Figure 6, with norms, references and slow change."""
        experiments = [shifted(self.few), turning(self.few)]
        settings = 1 + len(_threshold.NORMS) * len(_threshold.REFERENCES) * sum(tau > 0 for tau in self.taus)
        with Progress(console=self.console, transient=True) as progress:
            bar = progress.add_task("thresholds", total=settings)
            sweeps = _threshold.sweep(self.params, experiments, self.taus, lambda: progress.advance(bar))
        self.show(*map(_threshold.table, sweeps))
        self.save("figure6.png", _figures.figure6(sweeps))

    def slow(self) -> None:
        """A change of one grey level a frame."""
        fade = _threshold.fade(self.params, self.digits)
        ends = {name: named[-1] for name, named in fade.named.items()}
        self.show(
            f"Slow change: a {fade.first} becomes a {fade.last} by a grey level a frame, tau {fade.tau:g} grey levels. "
            f"At the end the dense network reads {ends['dense']}, deltajax with the held reference {ends['held']}, "
            f"with the previous one {ends['previous']}; behind by at most {fade.behind['held'].max():.0f} and "
            f"{fade.behind['previous'].max():.0f} grey levels."
        )
        self.save("slow_change.png", _figures.slow_change(fade))

    def noise(self) -> None:
        """What the paper hopes for: whether ignoring small changes makes a network robust."""
        count = min(NOISY, len(self.digits.images))
        noise(self.digits.images, self.digits.labels, self.out, count=count, console=self.console)
        self.show("")


def paper(
    mnist: Mnist | None, out: Path, parts: Sequence[str] = PARTS, *, count: int = COUNT, taus: Sequence[float] = TAUS
) -> None:
    """Run the paper's experiments with the shipped weights; print tables, write `paper.txt` and PNGs into `out`.

    Args:
        mnist: its test digits are used; None draws digits of the same form.
        out: an existing folder.
        parts: some of `PARTS`.
        count: digits in Experiments I and II.
        taus: thresholds of figure 6, on the norm over 3x3 pixels of 0..1.

    Raises:
        ValueError: an unknown part, fewer than two digits, or more than there are.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"`parts` names {unknown[0]!r}; the parts are {', '.join(PARTS)}.")
    digits = drawn_digits(DRAWN) if mnist is None else Digits(mnist.test_images, mnist.test_labels, "MNIST test digits")
    if not 2 <= count <= len(digits.images):
        raise ValueError(f"`count` (={count}) must be 2..{len(digits.images)}: that many digits there are.")
    run = _Paper(digits, out, count, taus)
    for part in dict.fromkeys(parts):
        getattr(run, part)()
