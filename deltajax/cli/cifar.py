"""`deltajax cifar`: ResNets and a MobileNet on clips made from CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltajax.cli.network import UserError
from deltajax.cli.reports import folder


@dataclass(frozen=True)
class Cifar:
    """Run ResNets and a MobileNet on clips of CIFAR-10 pictures: what tau costs and saves, how a change grows."""

    data: Path
    """CIFAR-10: a binary file or the folder of them, or a folder or tar of pictures by class."""

    weights: tuple[Path, ...]
    """The authors' weight files of resnet8, resnet20, resnet56 or mobilenet-vww, any of them."""

    out: Path = Path()
    """The folder for the figures (PNG)."""

    count: int = 12
    """How many pictures become clips."""

    tau: tuple[float, ...] = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Thresholds on the frame, in grey levels."""

    def run(self) -> None:
        """Prints the tables and writes the figures.

        Raises:
            UserError: data or weights are missing, damaged or another's, or an option is out of its range.
        """
        from deltajax.cifar import cifar, name_weights
        from deltajax.datasets import read_cifar10

        try:
            cifar(read_cifar10(self.data), name_weights(self.weights), folder(self.out), self.count, self.tau)
        except (OSError, ValueError) as error:
            raise UserError(error) from error
