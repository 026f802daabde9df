"""Old and new in turns: milliseconds of a step, by several checkouts of deltajax.

    git worktree add ../before COMMIT
    python tests/turns.py ../before . --network slim-320 --changed 1 .01 0

Each round gives every checkout a process of its own, in changing order: memory lies elsewhere in each of them, and
other work comes and goes. Of each process the 20 % quantile of the steps counts; the table has the least of the rounds
and their median.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro

# Runs in a checkout: its deltajax alone is imported, and what is called has had these names for long.
CHILD = """
import itertools, json, pathlib, sys, time
import jax, jax.numpy as jnp, numpy as np
import deltajax as dj
from deltajax._bench import moving_square, subject
folder, network, kernels, count, held, *changed = sys.argv[1:]
found = pathlib.Path(dj.__file__).resolve().parent.parent
if found != pathlib.Path(folder).resolve():
    sys.exit(f"deltajax comes from {found}, not from {folder}")
what = subject(network, None, None)
first = next(moving_square(what.size, what.dtype, 0.0))
segments = dj.incremental(what.fn, kernels=kernels).explain(what.params, first).segments
taus = {segment.name: float(held) for segment in segments if segment.how in ("native", "native-bf16", "tiles")}
inc = dj.incremental(what.fn, kernels=kernels, taus=taus)
cache, _ = inc.init(what.params, first)
def one(cache, frame):
    output, cache, _ = inc.step(what.params, cache, None, frame)
    return cache, output
step, quantiles = jax.jit(one, donate_argnums=0), []
for density in changed:
    frames = [jnp.asarray(frame) for frame in itertools.islice(moving_square(what.size, what.dtype, float(density)), 8)]
    times = []
    for number in range(int(count) + 8):
        start = time.perf_counter()
        cache, output = step(cache, frames[number % 8])
        jax.block_until_ready(output)
        times.append(1e3 * (time.perf_counter() - start))
    quantiles.append(float(np.quantile(times[8:], 0.2)))  # the first compile, and fill the cache
print(json.dumps(quantiles))
"""


def measure(
    checkout: Path, network: str, changed: tuple[float, ...], frames: int, kernels: str, held: float
) -> list[float]:
    """Of each share of the frame that changes the 20 % quantile, in milliseconds."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(checkout), network, kernels, str(frames), str(held), *map(str, changed)],
        check=False, capture_output=True, text=True, cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
    )
    if done.returncode:
        raise RuntimeError(f"{network} in {checkout} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main(
    checkouts: Annotated[tuple[Path, ...], tyro.conf.Positional], network: str,
    changed: tuple[float, ...] = (1.0, 0.01), frames: int = 200, rounds: int = 4, kernels: str = "native",
    held: float = 0.0,
) -> None:
    """Measure a network's step by each of the checkouts, one after the other, `rounds` times.

    Args:
        checkouts: folders with a `deltajax` in them.
        network: any that `deltajax bench` knows; its params are random.
        changed: shares of the frame that change in each frame, as a moving square.
        frames: steps of a process, for each share.
        rounds: processes of each checkout.
        kernels: of the step: native, native-bf16 or xla.
        held: the threshold within which the results of every segment are held.
    """
    checkouts = tuple(checkout.resolve() for checkout in checkouts)
    for checkout in checkouts:
        if not (checkout / "deltajax").is_dir():
            raise ValueError(f"{checkout} has no folder 'deltajax': name a checkout of this repository")
    found: dict[Path, list[list[float]]] = {checkout: [] for checkout in checkouts}
    for number in range(rounds):
        for checkout in checkouts if number % 2 == 0 else reversed(checkouts):
            found[checkout].append(measure(checkout, network, changed, frames, kernels, held))
    print("\n".join(table(found, network, changed)))


def table(found: dict[Path, list[list[float]]], network: str, changed: tuple[float, ...]) -> list[str]:
    """Least and median over the rounds."""
    rows = [f"| {network}, ms | " + " | ".join(f"{100 * share:g} %" for share in changed) + " |",
            "|---" * (len(changed) + 1) + "|"]
    for checkout, rounds in found.items():
        columns = zip(*rounds, strict=True)
        rows.append(f"| {checkout.name} | "
                    + " | ".join(f"{min(ms):.3f} / {statistics.median(ms):.3f}" for ms in columns) + " |")
    return rows


if __name__ == "__main__":
    tyro.cli(main)
