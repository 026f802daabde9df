"""Audits on real clips: what they say of the error, and what the error is; with and without a maximum age.

    python tests/results.py --out results.json ...
    python tests/audits.py results.json --only blazeface --clips bottle-detection.mp4 asl/no.mkv

Takes the thresholds of finished pairs from the file of `tests/results.py` and runs the step itself, as a user has it,
on the frames behind the clip's first third, of which the search saw none, so often audited that there are enough
audits; beside it the dense network on every frame. Needs the folder that DELTAJAX_DATA names.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from results import WEIGHTS, Judge, load_rows, read

import deltajax as dj
from deltajax._audit import output_error
from deltajax.cli.network import load_network

FRAMES = 400  # of a clip, at most
AUDITS = 60  # in them; at most every other frame is audited
AGES: tuple[int | None, ...] = (None, 30)
HEADINGS = ("network", "clip", "frames", "audited, one in", "oldest", "issued", "task's error", "output error",
            "of audits (95 %)", "frames below the bound")


def watch(
    inc: dj.Incremental, fn: Any, params: Any, frames: list[np.ndarray], judge: Judge
) -> tuple[float, float, float, str, str]:
    """``(issued, the task's error, output error, what audits say of it, share of the frames below their bound)``.

    Means over all frames after the first; the bound is the one known before the frame, from the 19th audit on.
    """

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params, cache, frame):
        output, cache, _ = inc.step(params, cache, None, frame)
        return output, cache

    dense, error_of = jax.jit(fn), jax.jit(output_error)
    cache, _ = inc.init(params, frames[0])
    issued, tasks, errors, below = [], [], [], []
    upper = np.inf
    for number, frame in enumerate(map(jnp.asarray, frames)):
        output, cache = step(params, cache, frame)
        truth, stats = dense(params, frame), inc.stats(cache)
        if number:
            errors.append(float(error_of(truth, output)))
            below += [errors[-1] <= upper] if np.isfinite(upper) else []
            tasks.append(judge.error(*(jax.tree.map(np.asarray, x) for x in (truth, output))))
            issued.append(float(stats.flops_issued / stats.flops_dense))
        upper = float(stats.audit.upper)
    audit = stats.audit
    said = f"{float(audit.mean):.3g} ({float(audit.low):.3g} to {float(audit.high):.3g})"
    held = f"{np.mean(below):.1%}" if below else "-"
    return float(np.mean(issued)), float(np.mean(tasks)), float(np.mean(errors)), said, held


def pair(row: Mapping[str, Any], folder: Path) -> None:
    """Prints a line for each of AGES."""
    options = row["options"]
    network = load_network(row["network"], folder / "weights" / WEIGHTS[row["network"]])
    model, params = network.model, network.params
    frames, size = read(folder / "video" / "static" / row["clip"], model.prepare, options["tuned"], FRAMES)
    every = max(2, len(frames.reported) // AUDITS)
    judge = Judge(model, size, jax.tree.map(np.asarray, jax.jit(model.apply)(params, frames.reported[0])))
    for age in AGES:
        inc = dj.incremental(
            model.apply, tile=options["tile"], dense_share=options["dense_share"], kernels=options["kernels"] or "xla",
            audit=1 / every, max_age=age, **row["setting"],
        )
        issued, task, error, said, below = watch(inc, model.apply, params, frames.reported, judge)
        cells = (row["network"], row["clip"], len(frames.reported), every, age or "-", f"{issued:.1%}",
                 f"{100 * task:.2f}", f"{error:.3g}", said, below)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    jax.clear_caches()


def main(file: tyro.conf.Positional[Path], only: tuple[str, ...] = (), clips: tuple[str, ...] = ()) -> int:
    """Print a table.

    Args:
        file: of `tests/results.py --out`.
        only: names of networks; all if there are none.
        clips: paths in video/static; all if there are none.
    """
    if "DELTAJAX_DATA" not in os.environ:
        raise ValueError("DELTAJAX_DATA names no folder with the real weights and clips; set it")
    rows = [r for r in load_rows(file) if (not only or r["network"] in only) and (not clips or r["clip"] in clips)]
    if not rows:
        raise ValueError(f"`file` (='{file}') has no such pair; make it with tests/results.py")
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for row in rows:
        pair(row, Path(os.environ["DELTAJAX_DATA"]))
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
