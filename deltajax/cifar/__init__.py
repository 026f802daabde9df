"""Beyond the paper: ResNets and a MobileNet on clips made from CIFAR-10 pictures.

Two experiments. Over the threshold: how often the networks are still right, and what the step computes. Over depth:
how fast a small change spreads, and so how much of the work a receptive field leaves to be saved.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from deltajax.cifar.figures import GROWTH_LEGEND, TAU_LEGEND, growth_figure, growth_table, tau_figure, tau_table
from deltajax.cifar.measurements import Growth, Row, Subject, compile_courses, watch_all
from deltajax.cifar.sequences import CHANGES, SEQUENCES
from deltajax.datasets import Cifar10
from deltajax.models import get_model

# Each network, and whether its classes are those of CIFAR-10.
NETWORKS = {"resnet8": True, "resnet20": True, "resnet56": True, "mobilenet-vww": False}
TAUS = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # grey levels
TILE = 4  # positions: with the usual 8, the 8x8 maps of a ResNet's last stage would be a single tile


@dataclasses.dataclass(frozen=True)
class Results:
    """What was measured, and the pictures that were written."""

    rows: list[Row]
    growths: list[Growth]
    files: list[Path]


def cifar(
    images: Cifar10,
    weights: Mapping[str, Path],
    out: Path,
    count: int = 12,
    taus: Sequence[float] = TAUS,
    tile: int = TILE,
) -> Results:
    """Runs both experiments, prints their tables, and writes cifar-tau.png and cifar-growth.png.

    Most of the time goes into compiling, some 400 core-seconds for four networks and six thresholds; fewer of either
    take less. Pictures of 32x32 are small for tiles: expect times above the dense network's wherever much changes.

    Args:
        images: the pictures, of which `count` at equal distances are taken.
        weights: the weight file of each network that is to take part, by its name in `NETWORKS`.
        out: the folder for the pictures; made if it is missing.
        count: pictures; each becomes a clip of each kind.
        taus: thresholds on the frame, in grey levels. How a change grows is measured at 0, whether it is here or not.
        tile: side of the tiles of work, in positions.

    Raises:
        ValueError: no weights or those of an unknown network, a weight file that does not fit, no tau, or a count
            that is not within the number of pictures.
    """
    if not weights or not set(weights) <= set(NETWORKS):
        raise ValueError(f"`weights` (of {sorted(weights)}) must name one or more of {', '.join(NETWORKS)}.")
    if not 1 <= count <= len(images.images):
        raise ValueError(f"`count` (={count}) must lie in 1..{len(images.images)}, the number of pictures.")
    if not taus:
        raise ValueError("`taus` is empty; give at least one threshold in grey levels, 0 for exact results.")
    chosen = Cifar10(*(array[np.linspace(0, len(array) - 1, count).astype(int)] for array in images))
    subjects = [subject(name, weights[name]) for name in NETWORKS if name in weights]
    return experiments(chosen, subjects, out, sorted({0.0, *taus}), tile)


def subject(name: str, path: Path) -> Subject:
    """One of `NETWORKS` with the weights of a file.

    Raises:
        ValueError: the file is missing, damaged or another network's.
    """
    model = get_model(name)
    return Subject(model, model.load(path), NETWORKS[name])


def experiments(
    images: Cifar10, subjects: Sequence[Subject], out: Path, taus: Sequence[float], tile: int
) -> Results:
    """Both experiments on all of `images`; `taus` holds 0."""
    console = Console()
    rows, growths = [], []
    with Progress(console=console, transient=True) as progress:
        start = time.perf_counter()
        compiling = progress.add_task("compiling", total=len(subjects) * len(taus))
        courses = compile_courses(subjects, taus, tile, lambda: progress.advance(compiling))
        middle = time.perf_counter()
        clips = len(SEQUENCES) * len(courses) + len(CHANGES) * len(subjects)
        watching = progress.add_task("clips", total=clips * len(images.images))

        def watch(course, sequence):
            return watch_all(course, sequence, images, lambda: progress.advance(watching))

        for course in courses:
            rows += [course.row(made.name, watch(course, made), images.labels.tolist()) for made in SEQUENCES]
            if course.tau == 0:
                growths += [course.growth(made.name, watch(course, made)) for made in CHANGES]
    seconds = f"compiled in {middle - start:.0f} s, measured in {time.perf_counter() - middle:.0f} s"
    order = [(subject.model.name, made.name) for subject in subjects for made in SEQUENCES]
    rows.sort(key=lambda row: (order.index((row.network, row.sequence)), row.tau))
    for subject in subjects:
        console.print(tau_table([row for row in rows if row.network == subject.model.name]))
    console.print(TAU_LEGEND, growth_table(growths), GROWTH_LEGEND, seconds, sep="\n", highlight=False)
    files = _draw(rows, growths, out)
    console.print(f"wrote {' and '.join(map(str, files))}", highlight=False, soft_wrap=True)
    return Results(rows, growths, files)


def _draw(rows: Sequence[Row], growths: Sequence[Growth], out: Path) -> list[Path]:
    """The pictures, written to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    figures = {out / "cifar-tau.png": tau_figure(rows), out / "cifar-growth.png": growth_figure(growths)}
    for file, figure in figures.items():
        figure.savefig(file, dpi=150)
    return list(figures)


def name_weights(paths: Iterable[Path]) -> dict[str, Path]:
    """Which of `NETWORKS` each weight file is for, as `cifar` takes it; found by trying.

    Raises:
        ValueError: a file is missing, damaged or of none of the networks, or two are of the same.
    """
    named: dict[str, Path] = {}
    for path in paths:
        name = next((name for name in NETWORKS if _fits(name, path)), None)
        if name is None:
            raise ValueError(f"'{path}' holds weights of none of {', '.join(NETWORKS)}; leave it out.")
        if name in named:
            raise ValueError(f"'{path}' and '{named[name]}' both hold weights of {name}; leave one out.")
        named[name] = path
    return named


def _fits(name: str, path: Path) -> bool:
    try:
        get_model(name).load(path)
    except ValueError as error:
        if "holds no" in str(error):
            return False
        raise
    return True
