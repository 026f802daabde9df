"""The loop that every training here shares: epochs, progress, curve, checkpoints, weights.

A run writes into one folder, after each epoch:

    weights.safetensors   float16, flat names
    curve.png             loss, and what `evaluate` measured
    checkpoints/EPOCH     orbax: params, optimiser state, history, the settings of the run

Everything random in epoch e depends on (seed, e) alone, so a run resumed after any epoch ends with the
same bits as one that was never interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jaxtyping import Array, Float, PyTree
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deltajax.models._weights import write_params

POINTS_PER_EPOCH = 50  # of the loss curve: each is a mean, so that noise does not hide the course

Params = dict[str, Any]
Batch = PyTree[Array | np.ndarray]


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
      name: for messages.
      init: key -> params.
      loss: (params, batch, key) -> scalar; the key is for augmentation.
      batches: epoch (from 1) -> its batches, all of one shape.
      steps: batches in an epoch.
      evaluate: params -> {what: share in 0..1}, measured after each epoch.
    """

    name: str
    init: Callable[[Array], Params]
    loss: Callable[[Params, Batch, Array], Float[Array, ""]]
    batches: Callable[[int], Iterable[Batch]]
    steps: int
    evaluate: Callable[[Params], dict[str, float]]


def fit(
    task: Task,
    *,
    out: Path,
    epochs: int,
    rate: float,
    decay: float,
    seed: int,
    resume: bool,
    settings: dict[str, Any],
) -> Params:
    """Trains with AdamW, one cosine from `rate` to 0 over all epochs after a short warm-up.

    Args:
      task: what is trained.
      out: folder for everything the run writes.
      epochs: how many.
      rate, decay: peak learning rate, weight decay.
      seed: decides everything random.
      resume: go on after the last epoch found in `out`; False refuses a folder that holds one.
      settings: what else the result depends on; a run goes on only with equal settings.

    Returns:
      The trained params, float32.

    Raises:
      ValueError: `out` holds checkpoints and `resume` is False, or holds none and it is True, or they are of
        other settings.
    """
    console = Console(stderr=True, soft_wrap=True)
    settings = {"epochs": epochs, "rate": rate, "decay": decay, "seed": seed, **settings}
    total = epochs * task.steps
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(total // 10, 500), total)
    optimiser = optax.adamw(schedule, weight_decay=decay)

    @jax.jit
    def step(params: Params, memory: PyTree, batch: Batch, key: Array) -> tuple[Params, PyTree, Array]:
        loss, gradient = jax.value_and_grad(task.loss)(params, batch, key)
        updates, memory = optimiser.update(gradient, memory, params)
        return optax.apply_updates(params, updates), memory, loss  # pyright: ignore[reportReturnType]

    key = jax.random.key(seed)
    params = task.init(jax.random.fold_in(key, 0))
    memory = optimiser.init(params)
    out.mkdir(parents=True, exist_ok=True)
    history: dict[str, Any] = {"loss": [], "epochs": []}
    with ocp.CheckpointManager((out / "checkpoints").absolute(), options=_keep_last_two()) as manager:
        first = 1
        if resume or manager.latest_step() is not None:
            state = {"params": params, "memory": memory}
            state, history = _restore(manager, out, state, resume, settings)
            params, memory = state["params"], state["memory"]
            first = len(history["epochs"]) + 1
            console.print(f"{task.name}: resumed after epoch {first - 1} of {epochs}")
        for epoch in range(first, epochs + 1):
            started = time.perf_counter()
            epoch_key = jax.random.fold_in(key, epoch)
            losses = []
            with _progress(console) as progress:
                bar = progress.add_task(f"epoch {epoch}/{epochs}", total=task.steps, loss=float("nan"))
                for i, batch in enumerate(task.batches(epoch)):
                    params, memory, loss = step(params, memory, batch, jax.random.fold_in(epoch_key, i))
                    losses.append(float(loss))
                    progress.update(bar, advance=1, loss=np.mean(losses[-50:]))
            measured = task.evaluate(params)
            seconds = time.perf_counter() - started
            history["loss"] += _course(epoch, losses)
            history["epochs"].append({"epoch": epoch, "loss": float(np.mean(losses)), **measured})
            write_params(out / "weights.safetensors", params)
            draw_curve(out / "curve.png", task.name, history)
            manager.save(
                epoch,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave({"params": params, "memory": memory}),  # pyright: ignore
                    run=ocp.args.JsonSave({"settings": settings, "history": history}),  # pyright: ignore
                ),
            )
            manager.wait_until_finished()
            told = ", ".join(f"{what} {share:.2%}" for what, share in measured.items())
            console.print(f"epoch {epoch}/{epochs}: loss {np.mean(losses):.4f}, {told}, {seconds:.0f} s")
    return params


def command(run: Callable[[], None], out: Path) -> int:
    """Runs a training from the command line; the exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    console = Console(stderr=True, soft_wrap=True)
    try:
        run()
    except (OSError, ValueError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print(f"interrupted; what was written is in {out}, go on with --resume", markup=False)
        return 130
    return 0


def draw_curve(path: Path, title: str, history: dict[str, Any]) -> None:
    """A PNG of the loss (log scale) above, what was measured after each epoch below."""
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    if history["loss"]:
        above.plot(*np.transpose(history["loss"]), color="#3b6ea5", linewidth=1.2)
    above.set(yscale="log", ylabel="training loss", title=title)
    rows = history["epochs"]
    for what in [name for name in rows[0] if name not in ("epoch", "loss")] if rows else []:
        shares = [100 * row[what] for row in rows]
        told = f"{what}: {shares[-1]:.2f} %"
        below.plot([row["epoch"] for row in rows], shares, "o-", markersize=4, label=told)
    if rows:
        below.legend(loc="best", frameon=False)
    below.set(xlabel="epoch", ylabel="%", xlim=(0, None))
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    beside = path.with_name(f".{path.name}.part")
    figure.savefig(beside, dpi=120, format="png")
    beside.replace(path)


def _course(epoch: int, losses: list[float]) -> list[list[float]]:
    """Points (epochs done, mean loss), at most `POINTS_PER_EPOCH`."""
    parts = np.array_split(np.asarray(losses), min(POINTS_PER_EPOCH, len(losses)))
    return [[epoch - 1 + (i + 1) / len(parts), float(part.mean())] for i, part in enumerate(parts)]


def _restore(
    manager: ocp.CheckpointManager, out: Path, like: dict[str, Any], resume: bool, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and history after the last epoch in `out`."""
    epoch = manager.latest_step()
    if epoch is None:
        raise ValueError(f"`{out}` holds no checkpoint to resume from; leave out --resume to start.")
    if not resume:
        raise ValueError(
            f"`{out}` already holds a run (epoch {epoch}); add --resume to go on, or give another --out."
        )
    run = manager.restore(epoch, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]  # pyright: ignore
    now = json.loads(json.dumps(settings))
    differ = [name for name in now | run["settings"] if now.get(name) != run["settings"].get(name)]
    if differ:
        told = ", ".join(f"{name} was {run['settings'].get(name)}, is {now.get(name)}" for name in differ)
        raise ValueError(f"`{out}` was begun with other settings ({told}); resume with the same.")
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restored = manager.restore(epoch, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))  # pyright: ignore
    return restored["state"], run["history"]


def _keep_last_two() -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(max_to_keep=2)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    loss = TextColumn("loss {task.fields[loss]:.4f}")
    return Progress(*columns, loss, console=console, transient=True, disable=not console.is_terminal)
