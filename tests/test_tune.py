"""Tuning: traced thresholds do what numbers do; the search keeps its tolerance, its seed and its log."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deltajax as dj
from deltajax.models import get_model
from deltajax.tuning import Setting, Tuning, metrics
from deltajax.tuning._noise import estimate_noise, find_pulses
from deltajax.tuning._search import Goal
from deltajax.tuning._trials import Runner, Standing, identity

SIZE = (64, 96)
TOLERANCE = 0.08


def fn(params, frame):
    """Three convolutions, one of stride 2, and a sum over the picture."""
    x = frame[None].astype(jnp.float32) / 255
    for kernel, stride in zip(params["kernels"], (1, 2, 1), strict=True):
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + 0.1)
    return {"map": x[0], "sum": jnp.tanh(x.mean(axis=(0, 1, 2)) @ params["head"])}


def doubled(params, frame):
    """Without a segment to set a threshold for."""
    return frame * jnp.float32(2)


@functools.cache
def params():
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 3, 8), (3, 3, 8, 8), (3, 3, 8, 4)]
    kernels = [jnp.asarray(rng.normal(size=s) / np.sqrt(9 * s[2]), jnp.float32) for s in shapes]
    return {"kernels": kernels, "head": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}


@functools.cache
def clip(count: int = 16, noise: float = 1.5):
    """A bright square over a ramp under a camera's noise, uint8."""
    rng = np.random.default_rng(1)
    still = np.linspace(40, 180, SIZE[1])[None, :, None] + np.linspace(0, 40, SIZE[0])[:, None, None] + np.zeros(3)
    frames = []
    for number in range(count):
        frame = still + rng.normal(0, noise, still.shape)
        frame[20:32, 10 + 2 * number : 22 + 2 * number] += 60
        frames.append(np.uint8(np.clip(np.round(frame), 0, 255)))
    return tuple(frames)


def mean_error(options, frames, function=fn):
    """Of the tuned function itself, on frames from the first on; with the FLOPs issued."""
    inc = dj.incremental(function, **options)
    step, dense = jax.jit(inc.step), jax.jit(function)
    cache, _ = inc.init(params(), frames[0])
    errors, issued = [], []
    for number, frame in enumerate(frames):
        output, cache, _ = step(params(), cache, None, frame)
        stats = inc.stats(cache)
        if number:
            errors.append(metrics.output_error(dense(params(), frame), output))
            issued.append(float(stats.flops_issued / stats.flops_dense))
    return np.mean(errors), np.mean(issued)


@pytest.fixture(scope="module")
def runner():
    return Runner(dj.incremental(fn), params(), clip(), metrics.output_error, "linf")


@pytest.mark.parametrize(
    ("cell", "tau", "octaves", "first"), [(1, 3.0, None, 0), (4, 5.0, -3.0, 0), (1, 0.0, -2.0, 1)]
)
def test_a_trial_is_what_the_tuned_function_does(runner, cell, tau, octaves, first):
    """Traced thresholds give the same error and the same FLOPs as numbers, zeros among them included."""
    names = list(runner.units) if octaves is not None else []
    taus = {name: runner.scale(name, "linf") * 2.0**octaves for name in names[first:]}
    trial = runner.run(Setting("linf", cell, tau, taus), 0, 8)
    error, issued = mean_error({"norm": "linf", "cell": cell, "tau": tau, "taus": taus}, clip()[:8])
    np.testing.assert_allclose(trial.error, error, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(trial.issued, issued, rtol=1e-6)


def test_only_segments_that_others_read_have_a_threshold(runner):
    """A threshold on the output saves nothing; the others' unit is their deviation."""
    known = [s.name for s in dj.incremental(fn).explain(params(), clip()[0]).segments]
    assert set(runner.units) < set(known)
    assert len(runner.units) >= 3
    x = jax.lax.conv_general_dilated(
        jnp.stack(clip()).astype(jnp.float32) / 255, params()["kernels"][0], (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    first = runner.units[next(name for name in known if name in runner.units)]
    np.testing.assert_allclose(first, np.std(jax.nn.relu(x + 0.1)), rtol=0.02)
    name = next(iter(runner.units))
    np.testing.assert_allclose(runner.scale(name, "l2"), runner.units[name] * np.sqrt(8))


@pytest.fixture(scope="module")
def tuned():
    return dj.tune(fn, params(), clip(), tolerance=TOLERANCE, norms=("linf",), trials=24)


def test_the_tolerance_is_kept_on_frames_not_seen_and_flops_are_saved(tuned):
    assert tuned.met
    assert tuned.chosen.error <= TOLERANCE
    assert tuned.check is not None
    more = clip(40)[16:]
    error, issued = mean_error(tuned.options, more)
    assert error <= TOLERANCE
    exact = tuned.trials[0]
    assert exact.setting.tau == 0
    assert exact.error < 1e-5
    assert issued < 0.6 * exact.issued


def test_what_is_chosen_is_the_cheapest_within_the_tolerance_that_passed_its_check(tuned):
    within = [trial for trial in tuned.trials if trial.error <= TOLERANCE]
    assert tuned.chosen in within
    issued = [trial.issued for trial in tuned.curve]
    errors = [trial.error for trial in tuned.curve]
    assert issued == sorted(issued)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.slow
def test_a_metric_that_is_blind_does_not_buy_blindness():
    """Where nothing was to be found, what comes later must still be seen: thresholds end at a deviation."""
    found = dj.tune(fn, params(), clip()[:6], tolerance=0.1, metric=lambda dense, output: 0.0, norms=("linf",),
                    cells=(4,), trials=16, held_out=0)
    assert found.met
    assert all(tau <= found.units[name] * 1.001 for name, tau in found.chosen.setting.taus.items())
    assert found.chosen.setting.tau < 128


def test_an_output_that_stands_still_does_not_pass():
    """By a blind metric everything does; with `follow` at most half of the motion may be missed."""
    options = {"tolerance": 0.1, "metric": lambda dense, output: 0.0, "norms": ("linf",), "cells": (4,), "trials": 12}
    blind = dj.tune(fn, params(), clip(), **options)
    seeing = dj.tune(fn, params(), clip(), **options, follow=metrics.output_error)
    searched = clip()[:12]
    first = fn(params(), searched[0])
    standing = np.mean([metrics.output_error(fn(params(), frame), first) for frame in searched[1:]])
    assert seeing.standing is not None
    np.testing.assert_allclose(seeing.standing.apart, standing, rtol=1e-4)
    assert blind.met and seeing.met
    assert mean_error(blind.options, searched)[0] > 0.6 * standing
    apart, issued = mean_error(seeing.options, searched)
    np.testing.assert_allclose(seeing.chosen.apart, apart, rtol=1e-4)
    np.testing.assert_allclose(seeing.chosen.behind, 2 * apart / standing, rtol=1e-3)
    assert apart <= 0.5 * standing
    assert issued < 0.7
    assert seeing.check is not None and seeing.check.behind <= 1
    closer = dj.tune(fn, params(), clip(), **options, follow=metrics.output_error, lag=0.2)
    assert closer.standing is not None
    assert closer.chosen.apart <= closer.standing.allowed(0.2) < 0.4 * standing  # the noise's sway is more than .2
    assert "a network that computed the first frame and then nothing: error 0, by the finer error" in str(closer)
    assert "It would pass" not in str(closer)
    assert "It would pass" in str(blind)


def test_what_may_be_left_of_the_motion():
    assert Standing(0.0, 0.1, 0.01).allowed(0.5) == 0.05
    assert Standing(0.0, 0.1, 0.05).allowed(0.5) == pytest.approx(0.075)  # as the camera's noise makes it sway
    assert Standing(0.0, 0.1, 0.08).allowed(0.5) == np.inf  # nothing moves but noise
    assert Standing(0.0, 0.0, 0.0).allowed(0.5) == Standing(0.3).allowed(0.5) == np.inf

    def followed(frames):
        return Runner(dj.incremental(fn), params(), frames, lambda dense, output: 0.0, "linf",
                      metrics.output_error, 0.5, 1.5)

    rng = np.random.default_rng(0)
    still = followed([np.uint8(np.round(100 + rng.normal(0, 1.5, (*SIZE, 3)))) for _ in range(6)])
    assert still.standing(0, 6).apart > 0
    assert still.run(Setting("linf", 4, 50.0, {}), 0, 6).behind == 0
    slower = followed(clip()[:8] + clip()[7:8] * 2 + clip()[8:9])  # of the last four only the last moves on
    large, small = (slower.standing(*span).apart for span in ((0, 7), (7, 11)))
    assert small < 0.7 * large
    frozen = slower.run(Setting("linf", 4, 255.0, {}), 7, 11, held_out=True)
    assert frozen.behind == pytest.approx(small / (0.5 * large))
    assert slower.fingerprint() != Runner(slower._inc, params(), slower.frames, slower._metric, "linf").fingerprint()


def test_of_equal_errors_within_a_budget_less_behind_is_better(tuned):
    near, far = (dataclasses.replace(tuned.chosen, error=0.0, issued=0.2, behind=behind) for behind in (0.5, 0.9))
    goal = Goal(None, 0.3)
    assert goal.rank(near) < goal.rank(far) < goal.rank(dataclasses.replace(near, error=0.01))


def test_where_the_check_fails_thresholds_are_lowered_until_it_does_not():
    """The searched frames only flicker, so that everything passes; in those kept from the search something moves."""
    frames = [clip()[0] + np.uint8(number % 2) for number in range(8)] + list(clip()[8:12])
    found = dj.tune(fn, params(), frames, tolerance=TOLERANCE, norms=("linf",), cells=(4,), trials=4, held_out=1 / 3)
    assert found.check is not None
    assert 0 < found.check.error <= TOLERANCE
    assert found.chosen in found.trials
    assert 0 < found.chosen.setting.tau < max(trial.setting.tau for trial in found.trials)
    assert found.check.issued < 0.95


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_a_resumed_run_too(tmp_path, tuned):
    log = tmp_path / "log.jsonl"
    seen = []

    def stop_after_ten(done, total, trial):
        seen.append((done, total))
        return done == 10

    options = {"tolerance": TOLERANCE, "norms": ("linf",), "trials": 24, "log": log}
    early = dj.tune(fn, params(), clip(), **options, progress=stop_after_ten)
    assert seen == [(number, 24) for number in range(1, 11)]
    assert len(early.trials) == 10
    assert early.met
    log.write_text(log.read_text() + '{"setting": {"norm": "li')  # killed while writing
    again = dj.tune(fn, params(), clip(), **options)
    assert again == tuned
    assert len(log.read_text().splitlines()) >= 1 + len(tuned.trials) + 1  # none was made twice
    assert len(set(log.read_text().splitlines())) == len(log.read_text().splitlines())
    with pytest.raises(ValueError, match="holds trials of another network, other frames or another metric"):
        dj.tune(fn, params(), clip()[1:], tolerance=TOLERANCE, log=log)


def test_a_budget_buys_the_least_error(tuned):
    cheap = dj.tune(fn, params(), clip(), budget=0.3, norms=("l2",), cells=(4,), trials=12, held_out=0)
    assert cheap.met
    assert cheap.chosen.issued <= 0.3
    assert cheap.check is None
    within = [trial.error for trial in cheap.trials if trial.issued <= 0.3]
    assert cheap.chosen.error == min(within)


@pytest.mark.slow
def test_a_time_budget_is_kept_by_the_clock_and_resumed_from_the_log(tmp_path):
    """Times are not the same twice: what is tested is what was noted of them."""
    options = {"norms": ("l2",), "cells": (4,), "trials": 6, "log": tmp_path / "log.jsonl"}
    frames = [frame.astype(np.float32) for frame in clip()]
    plenty = dj.tune(doubled, (), frames, time_budget=60, **options)
    assert plenty.met
    assert plenty.goal == {"time_budget": 60.0}
    assert plenty.chosen.error == 0
    assert all(0 < trial.seconds < 60 for trial in plenty.trials)
    assert f"{1000 * plenty.chosen.seconds:.3g} ms a frame" in str(plenty)
    plenty.plot(tmp_path / "curve.png")
    plenty.save(tmp_path / "taus.json")
    assert Tuning.load(tmp_path / "taus.json") == plenty
    lines = options["log"].read_text()
    assert dj.tune(doubled, (), frames, time_budget=60, **options) == plenty
    assert options["log"].read_text() == lines
    nothing = dj.tune(doubled, (), frames, time_budget=1e-9, **options)
    assert not nothing.met
    assert nothing.chosen == min(nothing.trials, key=lambda trial: trial.seconds)
    untimed = dj.tune(doubled, (), frames, budget=1.0, **options)
    assert all(trial.seconds is None for trial in untimed.trials)


def test_a_tolerance_that_nothing_meets_gives_the_exact_setting():
    """A metric that grudges every difference but none."""
    def strict(dense, output):
        return float(metrics.output_error(dense, output) > 1e-5)

    found = dj.tune(fn, params(), clip(), tolerance=1e-3, metric=strict, norms=("linf",), cells=(1,), trials=4)
    assert found.met
    assert found.options == {"norm": "linf", "cell": 1, "tau": 0.0, "taus": {}}


def test_what_saves_next_to_nothing_is_not_worth_an_error():
    """Every value changes much in every frame; the tolerance would let some of them be."""
    rng = np.random.default_rng(0)
    frames = [np.uint8(rng.integers(0, 256, (*SIZE, 3))) for _ in range(8)]
    found = dj.tune(fn, params(), frames, tolerance=0.02, norms=("linf",), cells=(1,), trials=8)
    exact = found.trials[0]
    within = [trial for trial in found.trials if trial.error <= 0.02 and trial.setting.tau > 0]
    assert min(trial.issued for trial in within) > 0.9 * exact.issued
    assert found.chosen is exact
    assert found.check is not None and found.check.setting.tau == 0
    assert found.met


def test_save_load_and_plot(tmp_path, tuned):
    tuned = dataclasses.replace(tuned, pulses=find_pulses(pulsing(7, 8.0)))
    tuned.save(tmp_path / "taus.json")
    assert Tuning.load(tmp_path / "taus.json") == tuned
    dj.incremental(fn, **Tuning.load(tmp_path / "taus.json").options).explain(params(), clip()[0])
    tuned.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert f"{len(tuned.trials)} trials" in str(tuned)
    assert "compression pulses: every 7 frames" in str(tuned)
    for text in ("", "{}", "[1]", '{"deltajax": "tuning"}', "\x00"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match=r"other.json' holds no thresholds of `deltajax tune`"):
            Tuning.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"no.json' cannot be read"):
        Tuning.load(tmp_path / "no.json")


def test_options_of_the_incremental_form_are_kept(tuned):
    """NCHW frames of two cameras, and floats."""
    def sums(params, frames):
        x = jax.lax.conv_general_dilated(frames, params, (1, 1), "SAME")
        return jax.lax.conv_general_dilated(jax.nn.relu(x), params[:3] + 1, (1, 1), "SAME")

    rng = np.random.default_rng(0)
    frames = rng.normal(0, 0.01, (6, 2, 3, 24, 32)).astype(np.float32)
    frames += np.linspace(0, 1, 32, dtype=np.float32)
    for number in range(6):
        frames[number, 1, :, 4:10, 4 + number : 10 + number] = 2
    inc = dj.incremental(sums, spatial_axes=(-2, -1), tile=8)
    kernel = rng.normal(size=(3, 3, 3, 3)).astype(np.float32)
    found = dj.tune(inc, kernel, frames, tolerance=0.05, norms=("l1",), cells=(4,), trials=8)
    assert found.met
    np.testing.assert_allclose(found.noise, 0.01, rtol=0.1)
    dj.incremental(sums, spatial_axes=(-2, -1), tile=8, **found.options).explain(kernel, frames[0])


@pytest.mark.parametrize("deviation", [0.0, 1.0, 4.0])
def test_the_noise_is_that_of_the_still_part(deviation):
    frames = np.stack(clip(12, deviation)).astype(np.float32)[:, None]
    noise = estimate_noise(frames)
    # Rounding to whole levels is noise of its own, of variance 1/12.
    expected = np.hypot(deviation, np.sqrt(1 / 12)) if deviation else 0
    np.testing.assert_allclose(noise.deviation, expected, rtol=0.05)
    assert noise.still > 0.7
    if deviation:
        gaps = np.random.default_rng(2).normal(0, expected * np.sqrt(2), (200_000, 48))
        sizes = {"linf": np.abs(gaps).max(1), "l1": np.abs(gaps).sum(1), "l2": np.sqrt((gaps**2).sum(1))}
        for norm, size in sizes.items():
            np.testing.assert_allclose(noise.guess(norm, 4), np.quantile(size, 0.99), rtol=0.1)


def pulsing(period: int, size: float, count: int = 30) -> np.ndarray:
    """The clip with another quantization of the whole picture from every `period`-th frame to the next such."""
    rng = np.random.default_rng(3)
    frames = np.stack(clip(count)).astype(np.float32)
    for number in range(period, count, period):
        pattern = rng.uniform(-size, size, (SIZE[0] // 8, SIZE[1] // 8, 3)).repeat(8, 0).repeat(8, 1)
        frames[number : number + period] += pattern
    return frames[:, None]


@pytest.mark.parametrize(("period", "size"), [(7, 8.0), (12, 11.0)])
def test_compression_pulses_are_found(period, size):
    found = find_pulses(pulsing(period, size))
    assert found is not None
    assert found.count == 29 // period
    assert found.period == period
    assert found.share > 0.7 > 0.2 > found.usual
    assert size < found.median < found.largest <= 2 * size + 12  # from one pattern to another, and noise
    assert f"every {period} frames" in str(found)


def test_noise_motion_and_cuts_are_no_pulses():
    still = np.stack(clip(20)).astype(np.float32)[:, None]
    assert find_pulses(still) is None
    assert find_pulses(np.zeros_like(still)) is None
    cut = still.copy()
    cut[10:] = 255 - cut[10:]
    assert find_pulses(cut) is None
    started = still.copy()
    started[:4] += np.array([30, 20, 10, 0], np.float32)[:, None, None, None, None]  # settles frame by frame
    assert find_pulses(started) is None
    assert find_pulses(pulsing(7, 8.0, count=10)).period is None


def test_metrics():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 40]], float)
    assert metrics.box_error(boxes, boxes) == 0
    assert metrics.box_error(boxes, boxes[:1]) == pytest.approx(1 / 3)
    assert metrics.box_error(boxes, boxes + np.array([[4, 0, 4, 0], [0, 0, 0, 0]])) == pytest.approx(0.5)
    assert metrics.box_error(boxes, boxes[::-1]) == 0
    assert metrics.box_error(boxes, boxes, ["cat", "dog"], ["cat", "cat"]) == pytest.approx(0.5)
    assert metrics.box_error(boxes[:0], boxes[:0]) == 0
    assert metrics.box_error(boxes[:0], boxes) == 1
    assert metrics.box_error(boxes[:1], boxes[[0, 0]]) == pytest.approx(1 / 3)  # one truth is found once
    nearly = np.array([[0, 0, 9, 10], [20, 20, 30, 35]], float)  # .9 and .75 of each
    assert metrics.placement_error(boxes, boxes) == metrics.box_error(boxes, nearly) == 0
    assert metrics.placement_error(boxes, nearly) == pytest.approx((3 * 1 / 2 + 1) / 10)  # at .8, .85, .9; at .95
    classes = np.array([[0, 0, 1, 1]])
    assert metrics.region_error(classes, classes) == 0
    assert metrics.region_error(classes, np.array([[0, 0, 1, 2]])) == pytest.approx(1 - (1 + 0.5 + 0) / 3)
    dense = {"a": np.array([3.0, 4.0]), "b": np.array([1, 2, 3, 4])}
    assert metrics.output_error(dense, dense) == 0
    assert metrics.output_error(dense, {**dense, "a": np.array([3.0, 4.5])}) == pytest.approx(0.1)
    assert metrics.output_error(dense, {**dense, "b": np.array([1, 2, 3, 0])}) == pytest.approx(0.25)
    assert metrics.output_error({"a": np.zeros(2)}, {"a": np.ones(2)}) == float("inf")
    assert metrics.output_error({"a": np.array([np.nan, 1.0])}, {"a": np.array([np.nan, 1.0])}) == 0
    assert metrics.output_error({"a": np.array([np.nan, 1.0])}, {"a": np.array([1.0, 1.0])}) == float("inf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of `tolerance` (=None), `budget` (=None) and `time_budget` (=None)"),
        ({"tolerance": 0.1, "budget": 0.1}, "give one of `tolerance` (=0.1), `budget` (=0.1) and"),
        ({"time_budget": 0.0}, "`time_budget` (=0.0) must be a number > 0"),
        ({"tolerance": 0}, "`tolerance` (=0) must be a number > 0"),
        ({"tolerance": float("nan")}, "`tolerance` (=nan) must be a number > 0"),
        ({"budget": 1.5}, "`budget` (=1.5) must lie in (0, 1]"),
        ({"tolerance": 0.1, "trials": 0}, "`trials` (=0) must be a whole number >= 1"),
        ({"tolerance": 0.1, "cells": (0,)}, "`cells[0]` (=0) must be a whole number >= 1"),
        ({"tolerance": 0.1, "norms": ("l3",)}, "`norms` (='l3') must be one of 'l1', 'l2', 'linf'"),
        ({"tolerance": 0.1, "norms": ()}, "`norms` and `cells` must name at least one"),
        ({"tolerance": 0.1, "lag": 0.0}, "`lag` (=0.0) must lie in (0, 1]"),
        ({"tolerance": 0.1, "lag": 50}, "`lag` (=50) must lie in (0, 1]"),
        ({"tolerance": 0.1, "held_out": 0.9}, "`held_out` (=0.9) must lie in [0, 0.5]"),
        ({"tolerance": 0.1, "frames": clip()[:3]}, "`frames` (=3 of"),
        ({"tolerance": 0.1, "frames": (*clip()[:4], clip()[0][1:])}, "must be at least 4 frames of one shape"),
    ],
)
def test_bad_input_is_named(options, message):
    options = {"frames": clip(), **options}
    with pytest.raises(ValueError) as caught:
        dj.tune(fn, params(), **options)
    assert message in str(caught.value)


def test_a_metric_must_return_errors():
    frames = [frame.astype(np.float32) for frame in clip()]
    assert dj.tune(doubled, (), frames, tolerance=0.1, norms=("l2",), trials=5).met
    with pytest.raises(ValueError, match="`metric` returned nan for frame 1; it must be >= 0"):
        dj.tune(doubled, (), frames, tolerance=0.1, metric=lambda dense, output: float("nan"))
    with pytest.raises(ValueError, match="`follow` returned nan for frame 1; it must be >= 0"):
        dj.tune(doubled, (), frames, tolerance=0.1, follow=lambda dense, output: float("nan"))


def test_a_metric_is_known_by_its_text():
    """Two that share a name only are two; one that was written elsewhere in its file is the same."""
    def made(text):
        names = {"__name__": "judge"}
        exec(text, names)
        return names["error"]

    text = "def error(dense, output):\n return max(x in {'a', 'b', 'c'} for x in output)"
    first = identity(made(text))
    assert first == identity(made("\n\n" + text))
    assert first != identity(made(text.replace("'c'", "'d'")))
    assert first != identity(made(text.replace("max", "min")))
    assert identity(metrics.output_error).startswith("deltajax.tuning.metrics.output_error ")
    assert identity(max) == "builtins.max "

    class Judge:
        def __call__(self, dense, output):
            return 0.0

    assert identity(Judge()) == identity(Judge())
    assert "Judge" in identity(Judge())


def test_a_setting_is_not_shared(tuned):
    """What `options` returns may be changed by whoever asked."""
    tuned.options["taus"].clear()
    assert tuned.options["taus"] == dataclasses.asdict(tuned.chosen.setting)["taus"]
    assert tuned.options["taus"] or tuned.options["tau"] > 0


@pytest.mark.slow  # some hundred runs of the digit finder
def test_the_search_is_at_least_as_good_as_the_published_ones_on_as_many_trials():
    from strategies import Problem, compare, drawn_clip

    model = get_model("digits")
    rows = list(compare(Problem(model.apply, model.load(None), drawn_clip(12)), (0.2, 0.4), trials=30, seeds=1))
    for tolerance in (0.2, 0.4):
        issued = {row.strategy: row.issued[0] for row in rows if row.tolerance == tolerance}
        assert issued["ours_all"] <= min(issued["greedy"], issued["one_scale"], issued["evolution"])
