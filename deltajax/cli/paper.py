"""`deltajax paper`: the source paper's experiments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deltajax.cli.network import UserError
from deltajax.cli.reports import folder


@dataclass(frozen=True)
class Paper:
    """Repeat the experiments of arXiv 2407.01782 beside its own numbers, and answer what it left open."""

    mnist: Path | None = None
    """Folder with the four original MNIST .gz files. Left out: digits drawn by deltajax."""

    out: Path = Path()
    """The folder for tables (paper.txt) and figures (PNG)."""

    parts: tuple[Literal["table", "whole", "figures", "accounts", "threshold", "slow", "noise"], ...] = ()
    """Which parts; all if left out."""

    def run(self) -> None:
        """Prints tables and writes figures, part by part; what was written stays if it is stopped.

        Raises:
            UserError: the data is missing or damaged, or the folder cannot be made or written to.
        """
        from deltajax.datasets import read_mnist
        from deltajax.paper import PARTS, paper

        try:
            digits = None if self.mnist is None else read_mnist(self.mnist)
        except (OSError, ValueError) as error:
            raise UserError(error) from error
        paper(digits, folder(self.out), self.parts or PARTS)
