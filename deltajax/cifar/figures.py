"""The results as tables for the terminal and as pictures for a talk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from deltajax.cifar.measurements import Growth, Row

COLOURS = ("#3b6ea8", "#c8501e", "#5a9c4b", "#8a5aa8")
QUARTERS = (0.25, 0.5, 0.75, 1.0)


def tau_table(rows: Sequence[Row]) -> Table:
    """One network's row for each sequence and threshold."""
    table = _table(rows[0].network, ("sequence",))
    for heading in ("tau", "right", "agree", "issued", "useful", "dense", "step", "x", "diff"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        table.add_row(
            row.sequence,
            f"{row.tau:g}",
            "-" if row.accuracy is None else _percent(row.accuracy),
            _percent(row.agreement),
            f"{_percent(row.issued_median)}/{_percent(row.issued_mean)}",
            f"{_percent(row.useful_median)}/{_percent(row.useful_mean)}",
            *(f"{x:.3g}" for x in (row.dense_ms, row.step_ms, row.dense_ms / row.step_ms)),
            f"{row.difference:.0e}",
            end_section=row.sequence != rows[min(number + 1, len(rows) - 1)].sequence,
        )
    return table


TAU_LEGEND = (
    "tau: grey levels; right: % of the frames named rightly (-: other classes); agree: % named as the dense network "
    "names them; issued, useful: % of the dense FLOPs, median/mean of the frames; dense, step: ms a frame; x: dense / "
    "step; diff: the largest from the dense logits, relative"
)


def growth_table(growths: Sequence[Growth]) -> Table:
    """A row for each network and change."""
    table = _table("how far a change has spread, tau 0, %", ("network", "change"))
    for heading in ("first", *(f"at {100 * depth:g}" for depth in QUARTERS), "ideal", "tiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, growth in enumerate(growths):
        table.add_row(
            growth.network,
            growth.change,
            _percent(growth.reached[0]),
            *(_percent(growth.reached_at(depth)) for depth in QUARTERS),
            *(_percent(growth.saved(work)[-1]) for work in (growth.reached, growth.issued)),
            end_section=growth.network != growths[min(number + 1, len(growths) - 1)].network,
        )
    return table


GROWTH_LEGEND = (
    "share of positions that the change reaches in the first layer, and where 25 to 100 % of the FLOPs are done; "
    "ideal, tiles: share of the dense FLOPs saved if those positions alone are computed, and by the tiles that were"
)


def _table(title: str, names: Sequence[str]) -> Table:
    """At most 80 columns wide, for a terminal that is not made wider."""
    table = Table(box=SIMPLE_HEAD, title=title, padding=0, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"


def tau_figure(rows: Sequence[Row]) -> Figure:
    """For each network, over tau: how often the step is right (or agrees) above, and what it computes below."""
    networks = list(dict.fromkeys(row.network for row in rows))
    sequences = list(dict.fromkeys(row.sequence for row in rows))
    taus = sorted({row.tau for row in rows})
    figure = Figure(figsize=(1.2 + 3.1 * len(networks), 6.2), layout="constrained")
    panels = figure.subplots(2, len(networks), sharex=True, sharey="row", squeeze=False)
    for network, (above, below) in zip(networks, panels.T, strict=True):
        # Lines may cover each other: what is drawn first has the larger marks.
        for sequence, colour, size in zip(sequences, COLOURS, (10, 8, 6, 4), strict=False):
            course = [row for row in rows if (row.network, row.sequence) == (network, sequence)]
            places = [taus.index(row.tau) for row in course]
            right = [row.agreement if row.accuracy is None else row.accuracy for row in course]
            above.plot(places, [100 * share for share in right], "o-", color=colour, markersize=size, label=sequence)
            below.plot(places, [100 * row.issued_mean for row in course], "o-", color=colour, markersize=size)
            below.plot(places, [100 * row.useful_mean for row in course], "--", color=colour)
        labelled = any(row.network == network and row.accuracy is not None for row in rows)
        above.set_title(f"{network}\n{'named rightly' if labelled else 'agrees with dense'}", fontsize=11)
        below.set_xticks(range(len(taus)), [f"{tau:g}" for tau in taus])
        below.set_xlabel("tau, grey levels")
        for axes in (above, below):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    lowest = min(line.get_ydata().min() for axes in panels[0] for line in axes.lines)
    panels[0, 0].set(ylabel="frames, %", ylim=(max(-3, lowest - 8), 103))
    panels[1, 0].set(ylabel="FLOPs, % of dense", ylim=(-3, None))
    handles = [*panels[0, 0].lines]
    for style, label in (("-", "FLOPs issued"), ("--", "FLOPs useful")):
        handles += panels[1, 0].plot([], [], style, color="0.4", label=label)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def growth_figure(growths: Sequence[Growth]) -> Figure:
    """For each change, over depth: the share of positions reached; the area above a line is what can be saved."""
    changes = list(dict.fromkeys(growth.change for growth in growths))
    networks = list(dict.fromkeys(growth.network for growth in growths))
    figure = Figure(figsize=(1 + 3.8 * len(changes), 4.4), layout="constrained")
    panels = figure.subplots(1, len(changes), sharey=True, squeeze=False)[0]
    for change, axes in zip(changes, panels, strict=True):
        for network, colour in zip(networks, COLOURS, strict=False):
            growth = next(g for g in growths if (g.network, g.change) == (network, change))
            saved = growth.saved(growth.reached)[-1]
            axes.stairs(
                100 * growth.reached,
                np.concatenate([[0], 100 * growth.depth]),
                baseline=None,
                color=colour,
                linewidth=2,
                label=f"{network}: {100 * saved:.0f} % can be saved",
            )
        axes.set(title=change, xlabel="FLOPs done, % of the network", xlim=(0, 100), ylim=(-2, 104))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, fontsize=9)
    panels[0].set_ylabel("positions that the change reaches, %")
    return figure
