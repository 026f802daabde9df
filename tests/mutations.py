"""Planted faults: how much does the fast suite see? Every one of these must be caught.

    python tests/mutations.py                    # all of them; about half an hour on two cores
    python tests/mutations.py --only stale-mask  # one

A mutation is one wrong line of the engine or the tuner. The repository is copied to a temporary folder and the fault
planted there; first the named tests run, then, if those pass, the whole fast suite. A test counts only if it passes
without the fault. The table that this prints is in `docs/judges.md`; the exit status is 1 if a fault survived.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", ".hypothesis", "out", "*.egg-info")


@dataclasses.dataclass(frozen=True)
class Mutation:
    """In `file` of the package, `old` becomes `new`; `tests` are files, or tests in them, likely to see it."""

    name: str
    file: str
    old: str
    new: str
    meaning: str
    tests: str

    def likely(self) -> list[str]:
        """`tests` as pytest wants them: ``masks::test_at`` is ``tests/test_masks.py::test_at``."""
        parts = (name.partition("::") for name in self.tests.split())
        return [f"tests/test_{file}.py{mark}{test}" for file, mark, test in parts]

    def planted(self, text: str) -> str:
        """`text` with the fault.

        Raises:
            ValueError: `old` is not there just once; the engine has moved on and the table must follow.
        """
        found = text.count(self.old)
        if found != 1:
            raise ValueError(
                f"mutation {self.name!r}: {self.old!r} is {found} times in deltajax/{self.file}, not once; "
                "give it a text that is there now."
            )
        return text.replace(self.old, self.new)


MUTATIONS = [
    Mutation(*fields)
    for fields in [
        # ------------------------------------------------------------------------------------------- geometry
        ("halo-minus-one", "_geometry.py", "window.stride + window.extent - 1", "window.stride + window.extent - 2",
         "a tile's halo lacks its last row and column", "geometry"),
        ("stride-off-by-one", "_geometry.py", "self.num * window.stride, self.den", "self.num, self.den",
         "a tile of a strided window reads where an unstrided one would", "geometry"),
        ("padding-side-swapped", "_geometry.py", "self.offset * window.stride - window.pad_lo",
         "self.offset * window.stride - window.pad_hi", "halos begin where the high padding says", "geometry"),
        ("kernel-dilation-ignored", "_geometry.py", "(self.size - 1) * self.dilation + 1", "self.size",
         "a dilated window is as long as a dense one", "geometry"),
        ("ragged-edge", "_geometry.py", "minimum(index * self.tile, self.extent - self.tile)", "index * self.tile",
         "the last tile of a ragged axis leaves the picture", "geometry"),
        ("hull-too-short", "_geometry.py", "max(self.offset + self.length, other.offset + other.length)",
         "self.offset + self.length", "of two readers' halos only one counts on the far side", "geometry"),
        ("margin-one-short", "_geometry.py", "max(0, high - extent)", "max(0, high - extent - 1)",
         "storage is one position too narrow for a halo", "geometry"),
        ("tile-not-aligned", "_geometry.py", "if tile % alignment == 0 and (extent - tile) % alignment == 0",
         "if tile % alignment == 0", "the moved last tile of an upsampling begins between two inputs", "geometry"),
        ("reading-window-too-late", "_geometry.py", "pad_lo = max(o * stride - spread * f",
         "pad_lo = min(o * stride - spread * f", "a resize's or take's window begins after what it reads",
         "resample::test_the_window_holds_what_is_read"),
        # ---------------------------------------------------------------------------------------------- tiles
        ("wrong-stream", "_tiles.py", "starts[0] = stream", "starts[0] = jnp.zeros_like(stream)",
         "every stream's tiles are read from and written to the first stream",
         "tiles::test_gather_window_read_write"),
        ("rows-for-columns", "_tiles.py", "self.rows.origin(lax.div(within, columns)",
         "self.rows.origin(lax.div(within, np.int32(self.rows.count))",
         "tile numbers are taken apart by the wrong count",
         "tiles::test_grid_numbers_every_tile_once"),
        ("margin-side-swapped", "_tiles.py", "(above, _), (before, _) = self.margins",
         "(_, above), (before, _) = self.margins",
         "rows are counted from the far margin",
         "tiles::test_gather_window_read_write"),
        ("window-of-the-far-margin", "_tiles.py", "starts[row], starts[col] = y + self.margins[0][0]",
         "starts[row], starts[col] = y + self.margins[0][1]", "the dense path reads pictures from the far margin",
         "tiles::test_gather_window_read_write"),
        ("outside-from-the-edge", "_tiles.py", "config[row], config[col] = (-y, y + height - stored.shape[row], 0)",
         "config[row], config[col] = (0, height - stored.shape[row], 0)",
         "without margins a whole picture's window begins at the edge",
         "tiles::test_gather_window_read_write"),
        ("outside-unseen", "_tiles.py", "replace(self, margins=self.outside, outside=NONE)",
         "replace(self, margins=((0, 3), (0, 3)), outside=NONE)", "without margins tiles lie where margins would be",
         "tiles::test_gather_window_read_write"),
        ("margin-of-ones", "_tiles.py", "jnp.squeeze(tiles, self.axes.stream + 1)\n        if self.margins == NONE:"
         "\n            return value\n        return lax.pad(value, jnp.zeros(",
         "jnp.squeeze(tiles, self.axes.stream + 1)\n        return lax.pad(value, jnp.ones(",
         "the dense path leaves margins that are no padding",
         "tiles::test_gather_window_read_write"),
        ("fixed-map-of-one-call", "_tiles.py", "self._starts(lax.rem(s, np.int32(stored.shape[0]))", "self._starts(s",
         "further calls of a vmap read the last stream's part of a fixed map",
         "transforms::test_vmap_with_a_fixed_map_for_each_stream"),
        # ---------------------------------------------------------------------------------------------- masks
        ("dilation-one-short", "_masks.py", "in range(0, window.extent, window.dilation)",
         "in range(0, max(1, window.extent - 1), window.dilation)", "a change does not reach the last tap",
         "masks::test_reach_is_exact"),
        ("mask-not-padded", "_masks.py", "_fit(mask, axis, window.pad_lo, needed - window.pad_lo - mask.shape[axis])",
         "_fit(mask, axis, 0, needed - mask.shape[axis])", "the paper's own fault: the map is padded, the mask is not",
         "masks::test_reach_is_exact"),
        ("spread-mask-not-spread", "_masks.py", "(0, 0, window.base_dilation - 1)", "(0, window.base_dilation - 1, 0)",
         "a transposed convolution's mask is not spread",
         "masks::test_reach_is_exact"),
        ("span-rest-dropped", "_masks.py", "    if rest:\n", "    if rest and not blocks:\n",
         "a tile is not issued for a change in its halo",
         "masks::test_tiles_reached_is_exact"),
        ("span-offset-dropped", "_masks.py", "_fit(mask, axis, -span.offset, needed + span.offset - mask.shape[axis])",
         "_fit(mask, axis, 0, needed - mask.shape[axis])", "the low side of the halo is not looked at",
         "masks::test_tiles_reached_is_exact"),
        ("nan-unchanged", "_masks.py", "return spread(~(_norms(new, old, channels, norm, cell, field) <= tau)",
         "return spread((_norms(new, old, channels, norm, cell, field) > tau)",
         "with a threshold a NaN counts as unchanged",
         "masks::test_what_is_not_finite_has_changed"),
        ("nan-unchanged-in-a-maximum", "_masks.py",
         "differs = ~(jnp.abs(new.astype(wide) - old.astype(wide)) <= limit)",
         "differs = jnp.abs(new.astype(wide) - old.astype(wide)) > limit", "the same by the norm linf",
         "masks::test_what_is_not_finite_has_changed"),
        ("bytes-wrap", "_masks.py", "wide = jnp.int32 if whole else", "wide = new.dtype if whole else",
         "differences of unsigned bytes wrap round",
         "masks::test_changed_counts_unsigned_and_narrow_differences_right"),
        ("cell-of-one-corner", "_masks.py", "padding.append((0, -size % cell, 0))",
         "padding.append((-size % cell, 0, 0))", "cells are counted from the bottom",
         "laws::test_2_thresholds_by_every_norm"),
        ("mask-turned", "_masks.py", "    if row > col:\n", "    if row < col:\n",
         "a mask selects transposed in a tile",
         "masks::test_at"),
        # -------------------------------------------------------------------------------------------- buckets
        ("bucket-tail-dropped", "_buckets.py", "turns = (rest + size - 1) // size if", "turns = rest // size if",
         "the last, half-filled bucket is not done",
         "tiles::test_every_candidate_is_done_once"),
        ("bucket-slot-dropped", "_buckets.py", "jnp.minimum(size, count - start), carry)",
         "jnp.minimum(size - 1, count - start), carry)", "the last slot of a full bucket is not written",
         "tiles::test_every_candidate_is_done_once"),
        ("dense-never-written", "_buckets.py", "lax.fori_loop(0, is_dense.astype(jnp.int32), lambda",
         "lax.fori_loop(0, jnp.zeros((), jnp.int32), lambda", "the dense path with a threshold does not run",
         "laws::test_2_a_fresh_cache_holds_nothing_back"),
        # ----------------------------------------------------------------------------------------------- plan
        ("second-reader-forgotten", "_plan.py", "_hull([needs[value], spans]) if value in needs else spans",
         "spans", "a value's halo is that of one of its readers only",
         "rules::test_shape_moves"),
        ("whole-group-too-early", "_plan.py", "if group.picture is None and i >= latest]",
         "if group.picture is None]", "a whole operation joins a segment that runs before what it reads",
         "rules::test_whole_values_in_a_row"),
        ("relu-beside-its-input-stored", "_plan.py", "if found is not None and all(", "if found is None and all(",
         "what is pointwise of what is stored anyway is stored as well, and what is not has no slot",
         "rules::test_what_is_pointwise_beside_its_own_input_has_no_slot"),
        ("read-whole-but-not-stored", "_plan.py", "all(group.picture is not None for group in reading)",
         "any(group.picture is not None for group in reading)",
         "what one reader makes itself is not there for another that reads all of it",
         "rules::test_what_is_pointwise_beside_its_own_input_has_no_slot"),
        ("made-before-its-input", "_plan.py", "sorted({*found, *group.ops}, key=order.__getitem__)",
         "list(dict.fromkeys([*found, *group.ops]))",
         "a reader that makes something itself makes it before what it is made of",
         "rules::test_a_reader_that_makes_one_input_itself_and_then_another"),
        # ------------------------------------------------------------------------------------------------ run
        ("crop-at-the-edge", "_compute.py", "starts[axis] = wanted.offset - had.offset", "starts[axis] = 0",
         "of a larger halo the wrong part is used",
         "laws::test_1_a_still_stack_costs_nothing_and_a_moving_one_is_exact rules::test_shape_moves"),
        ("fill-of-the-margin", "_compute.py", "known = op.fill == 0 and value in clean", "known = value in clean",
         "a maximum finds the margin's zeros outside the picture",
         "rules::test_pools"),
        ("halo-not-cleared", "_compute.py", "known = op.fill == 0 and value in clean", "known = op.fill == 0",
         "what a bias makes of the halo outside the picture is taken for padding",
         "rules::test_shape_moves rules::test_networks"),
        ("inside-by-one", "_compute.py", "(position >= 0) & (position < extent)",
         "(position >= 0) & (position <= extent)",
         "one row and column outside counts as inside",
         "rules::test_pools"),
        ("fresh-cache-held-back", "_by_bucket.py", "position_mask(layout, new, old, tau, norm) | env.fresh[stream]",
         "position_mask(layout, new, old, tau, norm)", "a fresh cache's zeros count as held values",
         "laws::test_2_a_fresh_cache_holds_nothing_back"),
        ("threshold-drifts", "_by_bucket.py", "layout.write(stored, jnp.where(keep, new, old), stream, y, x)",
         "layout.write(stored, new, stream, y, x)",
         "a segment's threshold compares with the previous result, not with the held one",
         "laws::test_2_thresholds_inside_hold_too"),
        ("stale-reference", "_detect.py", "layout.write(stored, jnp.where(keep, tile, held), stream, y, x)",
         "layout.write(stored, held, stream, y, x)", "the held frame is not brought up to date",
         "laws::test_2_a_slow_ramp_never_drifts"),
        ("frame-drifts", "_detect.py", "layout.write(stored, jnp.where(keep, tile, held), stream, y, x)",
         "layout.write(stored, tile, stream, y, x)", "the neighbours of a change are taken over unmarked",
         "laws::test_2_thresholds_by_every_norm"),
        ("previous-frame", "_detect.py", 'if how.reference == "previous":',
         'if how.reference == "previous" or how.tau > 0:',
         "the frame is compared with the previous frame: slow change goes unseen",
         "laws::test_2_a_slow_ramp_never_drifts"),
        ("ragged-mask-unset", "_by_bucket.py", "if grid.ragged:  #", "if False:  #",
         "where tiles overlap the later one unsets the mask of the earlier",
         "laws::test_3_masks_are_exact_in_every_geometry conv::test_every_form"),
        ("flag-of-the-last-tile", "_by_bucket.py", "jnp.any(mask)[None] | slice_at(flags, (stream,), (1,))",
         "jnp.any(mask)[None]", "a map has changed only if its last tile did",
         "laws::test_4_one_changed_tile_is_enough"),
        ("stale-mask", "_compute.py", "(stored, jnp.zeros_like(masks), jnp.zeros_like(flags))",
         "(stored, masks, jnp.zeros_like(flags))", "the last frame's mask is not taken back",
         "laws::test_3_masks_are_exact_in_every_geometry"),
        ("stale-flag", "_by_bucket.py", "(s, m, jnp.zeros_like(f)) for s, m, f in state",
         "(s, m, f) for s, m, f in state",
         "after a still frame the last change counts again",
         "laws::test_1_a_still_stack_costs_nothing_and_a_moving_one_is_exact"),
        ("dense-forgets-the-cache", "_compute.py", "(env.plan.layouts[v].store_whole(values[v]), masks[v]",
         "(state[segment.writes.index(v)][0], masks[v]", "the dense path does not write what it computed",
         "laws::test_6_paths_agree"),
        ("join-not-united", "_compute.py", "found = found | _masks.reach(masks[value]",
         "found = _masks.reach(masks[value]",
         "on the dense path a join's mask is that of its last operand",
         "rules::test_shape_moves"),
        ("candidates-not-united", "_compute.py", "found |= next(reached)",
         "found = next(reached)",
         "a segment of two maps is issued for the last one's changes",
         "rules::test_networks"),
        ("whole-operand-unseen", "_compute.py", "        for value in segment.wholes:\n            found |=",
         "        for value in segment.wholes[:0]:\n            found |=",
         "tiles are not issued when a whole operand changed",
         "rules::test_broadcasts"),
        ("whole-flag-unseen", "_whole.py",
         "flags += [env.whole_flags[v] for v in segment.reads if v.kind is Kind.WHOLE]", "flags += []",
         "whole values made from whole values stay",
         "rules::test_whole_values_in_a_row"),
        ("operand-of-the-first-call", "_compute.py", "return array[stream // inner]", "return array[stream * 0]",
         "every call of a vmap reads the first one's whole operand",
         "transforms::test_vmap_with_a_gate_of_each_call"),
        ("all-streams-must-move", "_env.py", "return jnp.any(flags.reshape(self.calls, self.plan.streams), axis=1)",
         "return jnp.all(flags.reshape(self.calls, self.plan.streams), axis=1)",
         "whole values are recomputed only if every stream moved",
         "transforms::test_one_of_the_streams_moves_what_all_of_them_make"),
        ("mask-believed", "_detect.py", "if given is None or not how.trust:", "if given is None:",
         "a given mask is believed without being asked to be",
         "laws::test_4_a_mask_that_claims_too_little_is_only_a_hint"),
        ("output-mask-stale", "_run.py", "masks.append(env.mask(value))", "masks.append(env.masks[value])",
         "an output that did not run still shows its old mask",
         "transforms::test_frames_of_bytes"),
        ("always-fresh", "_run.py", 'older(jnp.where(env.fresh, 0, state["age"]))', 'state["age"]',
         "a cache never grows old: everything is computed in every frame",
         "laws::test_1_a_still_stack_costs_nothing_and_a_moving_one_is_exact"),
        # ---------------------------------------------------------------------------------------------- rules
        ("max-pool-of-zeros", "rules/pool.py", '"max": bounds(value.dtype)[0]', '"max": 0',
         "a maximum finds zero outside the picture",
         "rules::test_pools"),
        ("partial-maximum-of-zeros", "rules/reduce.py", '"reduce_max": low', '"reduce_max": 0',
         "a maximum over a picture that squares do not divide is at least 0",
         "rules::test_reductions"),
        ("pads-swapped", "rules/conv.py", "padding[order[0]], padding[order[1]] = pads",
         "padding[order[1]], padding[order[0]] = pads", "rows are padded as columns",
         "conv::test_every_form"),
        ("depthwise-dilation", "rules/conv.py", "first = tap * w.dilation", "first = tap",
         "a dilated depthwise kernel reads its taps side by side",
         "conv::test_every_form"),
        ("interior-padding", "rules/slices.py", "config[a][1], 1, config[a][2] + 1)", "config[a][1], 1, 1)",
         "padding between positions is forgotten",
         "rules::test_shape_moves"),
        ("join-at-the-seam", "rules/join.py", 'side="right"', 'side="left"',
         "the first position of the second picture is taken from the first",
         "rules::test_shape_moves"),
        ("resize-of-the-corner", "rules/resample.py", "jnp.asarray(place.result)[:, None] + jnp.arange",
         "0 * jnp.asarray(place.result)[:, None] + jnp.arange", "every tile is resized as the first one",
         "resample::test_streams_and_channels_first"),
        ("flatten-edge", "rules/reduce.py", "edges[row], edges[col] = (0, rows.pad_hi), (0, cols.pad_hi)",
         "edges[row], edges[col] = (rows.pad_hi, 0), (0, cols.pad_hi)",
         "a dense layer's kernel is padded at the wrong side",
         "rules::test_reductions"),
        ("windows-of-the-first", "_program.py", "self.each or ((self.rows, self.cols),) * len(self.inputs)",
         "(self.each[:1] if self.each else ((self.rows, self.cols),)) * len(self.inputs)",
         "the second operand of a product of tokens is read where the first is", "axes::test_the_law"),
        ("broadcast-of-the-first", "_masks.py", "window.extent - window.pad_lo, window.dilation, axis)",
         "1 - window.pad_lo, window.dilation, axis)",
         "of a whole row that is read only the first position moves what reads it", "axes::test_dense_paths"),
        ("scan-not-reversed", "rules/control.py", 'reversed(turns) if p["reverse"] else turns', "turns",
         "a reversed loop runs forwards", "axes::test_the_law"),
        ("branch-of-false", "rules/control.py", "branches[min(max(int(found), 0), len(branches) - 1)]", "branches[0]",
         "a decided branch is always the first", "axes::test_the_law"),
        ("gather-outside", "rules/gather.py", "if outside is not None and (inside != begins).any()", "if False",
         "what is taken from outside is the last position", "axes::test_the_law"),
        ("warp-of-the-corner", "rules/warp.py", "at = at.at[..., which].add(-first)", "pass",
         "a warped tile reads where it would if it held the whole picture", "resample::test_indices_that_go_together"),
        ("warp-of-its-own-axis", "rules/warp.py", "at.min(others)", "at.take(0, others[0]) if others else at",
         "a warp reads as far as its first row does", "resample::test_indices_that_go_together"),
        ("unpooled-one-late", "rules/unpool.py", "low = sizes[a] - 1 - padding[a][0]", "low = sizes[a] - padding[a][0]",
         "the gradient of a pool lies one position off", "rules::test_gradients_of_pools"),
        ("slid-as-padded", "rules/sliding.py", "padding[i] = pad", "pass",
         "a tile is convolved along its rows with the picture's padding", "conv::test_along_one_axis_and_along_three"),
        ("applied-as-set", "rules/slices.py", "how.outvars[0] is not how.invars[1]", "False",
         "a function applied in place is taken for zeros put there",
         "axes::test_a_function_applied_in_place_is_no_update"),
        ("replaced-too-wide", "rules/slices.py", "(at < n - low - high)", "(at <= n - low - high)",
         "a replaced square is one position too wide", "axes::test_the_law"),
        # --------------------------------------------------------------------------------------------- error
        ("turn-of-the-next", "_age.py", "== self.age[stream] % self.max_age",
         "== (self.age[stream] + 1) % self.max_age",
         "a tile is computed in its turn, but in the next one's its threshold falls",
         "age::test_every_tile_has_one_turn"),
        ("turn-held-back", "_compute.py", "jnp.where(env.turn.has(grid, numbers, stream), 0.0, tau)", "tau",
         "in its turn a tile is computed, and held back all the same",
         "age::test_what_was_held_back_is_let_in"),
        ("standing-never-forgotten", "_detect.py", "jnp.where(found, stood + 1, 0)", "stood + found",
         "a change that came and went three times has stood for three frames",
         "age::test_a_change_has_to_stand"),
        ("audit-of-itself", "_audit.py", "(jax.vmap(fn)(frames), outputs)", "(outputs, outputs)",
         "an audit compares the output with itself",
         "audit::test_an_audit_finds_the_true_error"),
        ("level-only-rises", "_control.py", "jnp.where(bad, SHARE - 1,", "jnp.where(bad, SHARE,",
         "too large an error does not lower the thresholds",
         "audit::test_the_law_of_the_share"),
        ("bound-of-the-centre", "_bound.py", "jnp.maximum(at - low, high - at)", "jnp.abs(at - (low + high) / 2)",
         "the bound is the distance from the middle of what may be",
         "bound::test_one_linear_layer_attains_it"),
        # -------------------------------------------------------------------------------------------- native
        ("native-rest-of-a-panel", "native/convolution.h", "value, last);", "value, last - 1);",
         "of a panel that is not full the last channel is not written",
         "native::test_every_form"),
        ("native-overlap-twice", "native/window.h", "const int64_t at = std::min(v, channels - width);",
         "const int64_t at = std::min(v, std::max<int64_t>(0, channels - 2 * width));",
         "the last vector of a depthwise kernel's channels begins too early",
         "native::test_every_form"),
        ("native-row-of-the-first-tap", "native/window.h", "load<V>(weights + kernels[t] * from_weight)",
         "load<V>(weights)", "every tap of a depthwise kernel has the weights of the first",
         "native::test_every_form"),
        ("native-threes-of-the-first", "native/window.h", "x[j * SHARED + k], w)", "x[j * SHARED], w)",
         "of three taps side by side all read what the first does",
         "native::test_every_form"),
        ("native-even-too-close", "native/convolution.h", "in + places[4] + offsets[t] : x;",
         "in + places[3] + offsets[t] : x;", "of positions in fours the fifth is the fourth",
         "native::test_every_form"),
        ("native-pairs-for-fours", "native/convolution.h", "even &= m % 4 == 0 ||", "even &= m % 2 == 0 ||",
         "positions are equally far from each other in pairs only, and pass for fours",
         "native::test_where_a_position_is_computed_makes_no_difference_to_a_bit"),
        ("native-half-of-the-first", "native/convolution.h", "begin<Half>(NV * LANES)", "begin<Half>(0)",
         "half a vector behind a whole one begins with the numbers of the first channels",
         "native::test_every_form"),
        ("native-halves-skipped", "native/window.h", "v < channels; v += width)", "v < channels; v += LANES)",
         "behind half a vector of channels half a one is left out",
         "native::test_every_form"),
        ("native-side-by-side-too-short", "native/convolution.h", "++together.back();", "",
         "of taps side by side the first alone counts",
         "native::test_every_form"),
        ("native-vector-of-its-neighbour", "native/change.h", "exchanged<half>(mixed<half>(b, a))", "mixed<half>(b, a)",
         "of two positions whose norms become one vector half of the lanes are lost",
         "native::test_thresholds_and_turns"),
        ("native-inverse-of-any", "native/_encode.py", "abs(math.frexp(number)[0]) == 0.5 and", "number != 0 and",
         "what is divided by any number is multiplied by its inverse",
         "native::test_what_is_divided_by_a_power_of_two_is_the_same_to_the_bit"),
        ("native-rest-unequal-unseen", "native/change.h", "if (!bits && rest)", "if (false)",
         "of channels that fill no vector no change is seen",
         "native::test_every_form"),
        ("native-phase-of-the-first", "native/_slots.py", "at = [(k, phase * window.stride + k", "at = [(k, k",
         "every phase of a transposed convolution reads the first one's taps",
         "native::test_every_form"),
        ("native-outside-not-filled", "native/_encode.py", "        self.ops.append(Operation(OUTSIDE,",
         "        _ = (Operation(OUTSIDE,",
         "what a bias makes of the halo outside the picture is taken for padding",
         "native::test_every_form"),
        ("native-tile-of-its-neighbour", "native/tile.h", "for (int64_t r = top - here.y; r < segment.tile_rows; ++r)",
         "for (int64_t r = top - here.y + 1; r < segment.tile_rows; ++r)",
         "the first row of every tile is not written",
         "native::test_every_form"),
        ("native-place-taken-too-soon", "native/_slots.py", "r.slot.last == here and", "r.slot.last >= here and",
         "a result takes the place of one that is read again",
         "native::test_every_form"),
        ("native-shift-scaled-late", "native/_packing.py", "(scale * by, shift * by) if", "(scale * by, shift) if",
         "what was added before a factor is not multiplied by it",
         "native::test_every_form"),
        ("native-nan-bounded", "native/convolution.h", "x = least > x ? least : x;", "x = x > least ? x : least;",
         "a NaN ends at the lower bound",
         "native::test_a_frame_of_bytes_with_nan_in_the_params_and_streams_under_vmap"),
        ("native-always-exact", "native/_segment.py", "isinstance(tau, jax.Array) or tau > 0, NORMS", "0, NORMS",
         "a threshold inside holds nothing back",
         "native::test_thresholds_and_turns"),
        ("native-turn-held-back", "native/kernels.cc", "due(here[k]) ? 0.0f : tau[stream]",
         "tau[stream]",
         "in its turn a tile is computed, and held back all the same",
         "native::test_thresholds_and_turns"),
        ("native-run-skips", "native/kernels.cc", "at += widths[width];", "at += length;",
         "of tiles side by side those that the widest run does not hold are left out",
         "native::test_where_a_position_is_computed_makes_no_difference_to_a_bit"),
        ("native-blocks-moved", "native/kernels.cc", "apart = widths.tiles[0].blocks &&", "apart = false &&",
         "blocks of 2x2 begin elsewhere in a run that reaches the ragged edge",
         "native::test_where_a_position_is_computed_makes_no_difference_to_a_bit"),
        ("native-blocks-of-others", "native/winograd.h", "store_part(to.at(r, c, 0).data, x, used);",
         "store(to.at(r, c, 0).data, x);",
         "the last channels of a block overwrite the next position's first",
         "native::test_every_form"),
        ("native-kernel-turned", "native/winograd.h",
         "Axis::KERNELS * Axis::KERNEL[f / FREQUENCIES] + Axis::KERNEL[f % FREQUENCIES]",
         "Axis::KERNELS * Axis::KERNEL[f % FREQUENCIES] + Axis::KERNEL[f / FREQUENCIES]",
         "in blocks a kernel's rows are its columns",
         "native::test_every_form"),
        ("native-blocks-from-the-wrong-tap", "native/_packing.py", "Blocks(3, 4,", "Blocks(2, 4,",
         "blocks of a spread input begin with two taps where they have one",
         "native::test_every_form"),
        ("native-blocks-of-four-by-two", "native/_encode.py", "% (found.side * cols.den)", "% (2 * cols.den)",
         "blocks of 4x4 begin elsewhere in every second tile",
         "native::test_where_a_position_is_computed_makes_no_difference_to_a_bit"),
        ("native-larger-blocks-of-two", "native/_encode.py", "span.length % found.side == 0 for",
         "span.length % 2 == 0 for",
         "blocks of 4x4 are cut off where a tile has other sides",
         "native::test_where_a_position_is_computed_makes_no_difference_to_a_bit"),
        ("native-other-points", "native/_packing.py", "_by_points(0, 0.625, -0.625, 1.5, -1.5)",
         "_by_points(0, 0.625, -0.625, 1.75, -1.75)",
         "kernels of 4x4 results are made for other points than inputs and results",
         "native::test_every_form"),
        ("native-points-exchanged", "native/winograd.h", "A = 0.625f, B = 1.5f;", "A = 1.5f, B = 0.625f;",
         "of blocks of 4x4 results the points have changed places, but those of kernels",
         "native::test_every_form"),
        ("native-larger-everywhere", "native/_encode.py", "if self.held else None, BLOCKS", "if True else None, BLOCKS",
         "exact changes grow by blocks of 4x4, for what differs by rounding has changed",
         "native::test_blocks_are_larger_where_results_are_held_within_a_threshold"),
        ("native-never-larger", "_incremental.py", "for name, tau in self.options.taus.items() if tau > 0",
         "for name, tau in self.options.taus.items() if tau < 0",
         "convolutions whose results are held within a threshold take the smaller blocks",
         "native::test_blocks_are_larger_where_results_are_held_within_a_threshold"),
        ("native-run-too-early", "native/kernels.cc",
         "std::min(left(run), segment.width - widths.tiles[run.width].segment.tile_cols)",
         "std::max<int64_t>(0, std::min(left(run), segment.width - widths.tiles[run.width].segment.tile_cols) - 1)",
         "tiles that are done as one begin one position too early",
         "native::test_every_form"),
        ("native-run-of-other-turns", "native/kernels.cc", "turn[k] == turn[j]", "true",
         "the turn of one tile is that of those beside it",
         "native::test_thresholds_and_turns"),
        ("native-norm-of-some", "native/change.h", "if constexpr (AWAY >= GROUP)", "if constexpr (AWAY > 0)",
         "of every vector only the first channels count for a norm",
         "native::test_thresholds_and_turns"),
        ("native-norm-without-rest", "native/change.h", "return k < p_.channels ?", "return k < 0 ?",
         "of channels that fill no vector none counts for a norm",
         "native::test_what_has_changed_is_what_the_norm_says"),
        ("native-first-row-of-ones", "native/tile.h", "bits &= bits + (1u << first);", "bits = 0;",
         "of a row of results only those up to the first gap are written",
         "native::test_thresholds_and_turns"),
        ("native-part-of-a-vector", "native/change.h", "(bits >> k * channels() &", "(bits &",
         "of positions that share a vector all have changed as the first has",
         "native::test_every_form"),
        ("native-norm-of-its-neighbour", "native/change.h",
         "in_turn<GROUP>(whole<COUNT>(mixture<COUNT>(0)))", "whole<COUNT>(mixture<COUNT>(0))",
         "the norms of positions that share a vector are taken in another order",
         "native::test_what_has_changed_is_what_the_norm_says"),
        ("native-overlap-for-nothing", "_plan.py", "NATIVE_OVERLAPS = 0.0, 0.15", "NATIVE_OVERLAPS = (0.15,)",
         "tiles overlap where no blocks of 2x2 pay for it",
         "native::test_tiles_overlap_only_where_blocks_of_2x2_pay"),
        ("native-blocks-save-nothing", "native/_encode.py", "flops -= encoder.saved", "flops -= 0 * encoder.saved",
         "no tiling is thought to be cheaper for its blocks of 2x2",
         "native::test_tiles_overlap_only_where_blocks_of_2x2_pay"),
        ("native-other-stream", "native/tile.h", "= at.stream < streams ? at.stream :",
         "= at.stream < streams ? 0 :",
         "every stream reads the first one's pictures",
         "native::test_where_a_position_is_computed_makes_no_difference_to_a_bit"),
        ("native-bytes-behind", "native/kernels.cc", "step = std::min(reached, length - reached);",
         "step = std::min(reached, length - reached), length -= reached == 1;",
         "of the columns that a tile reads the last one's change does not reach it",
         "native::test_every_form"),
        ("native-nothing-added", "native/convolution.h", "if (added) {", "if (false) {",
         "a residual is not added to a convolution by positions",
         "native::test_every_form"),
        ("native-nothing-added-to-blocks", "native/winograd.h", "if (added.data) {", "if (false) {",
         "a residual is not added to a convolution by blocks",
         "native::test_every_form"),
        ("native-added-twice", "native/_packing.py", "if bounded or self.added is not None or", "if bounded or",
         "of two maps that are added to a convolution's results the first is left out",
         "native::test_every_form"),
        ("native-bounded-twice", "native/_packing.py", "if bounded or self.added is not None or",
         "if self.added is not None or",
         "what was bounded before something was added is bounded after it",
         "native::test_every_form"),
        ("native-not-rectified", "native/window.h", "return V{} > x ? V{} : x;", "return x;",
         "a depthwise convolution reads what is stored where it should read relu of it",
         "native::test_every_form"),
        ("native-not-zero", "native/_encode.py", "or float(zero.reshape(())) != 0:", "or False:",
         "what is bounded by another number than zero before a depthwise convolution is bounded by zero",
         "native::test_every_form"),
        ("native-member-of-its-neighbour", "native/winograd.h", "place[m] = {tiles + tile,",
         "place[m] = {tiles + 0 * tile,",
         "of narrow runs that are done together all are the first one",
         "native::test_where_a_position_is_computed_makes_no_difference_to_a_bit"),
        ("native-rows-as-one", "native/window.h", "from[held] = in.data + r * op.row.step * in.row",
         "from[held] = in.data + 0 * r * op.row.step * in.row",
         "of the rows of a narrow tile all are the first one",
         "native::test_where_a_position_is_computed_makes_no_difference_to_a_bit"),
        ("native-one-row-of-a-mask", "native/kernels.cc", "for (int64_t r = 1; r < count; ++r)",
         "for (int64_t r = 1; r < 1; ++r)", "of the rows that a tile reads only the first one's change reaches it",
         "native::test_every_form"),
        ("native-rest-not-reduced", "native/tile.h", "for (; i < op.count; ++i) found", "for (; i < 0; ++i) found",
         "of a sum over channels those that fill no vector are left out",
         "native::test_every_form"),
        ("native-last-of-the-largest", "native/tile.h", "if (!(sign * from[i] <= sign", "if (!(sign * from[i] < sign",
         "of several channels that are as large the last one is chosen",
         "native::test_which_channel_is_the_largest_is_a_whole_number"),
        ("native-nan-is-not-chosen", "native/tile.h", "i < op.count && from[best] == from[best]; ++i)",
         "i < op.count; ++i)",
         "behind a NaN the largest of the other channels is chosen",
         "native::test_which_channel_is_the_largest_is_a_whole_number"),
        ("native-byte-of-a-number", "native/_encode.py", "elif any(made.kind == CHOOSE and",
         "elif any(made.kind < 0 and",
         "what a byte holds of a number is read as all of it",
         "native::test_what_a_byte_holds_of_a_large_number"),
        ("native-terms-out-of-order", "native/_encode.py", "in sorted(zip(contracted, terms, strict=True))",
         "in zip(contracted, terms, strict=True)",
         "a dense layer over two axes of channels takes them in the order in which it is written down",
         "native::test_every_form"),
        ("native-group-of-the-first", "native/convolution.h", "in + group * op.channels_in, op", "in, op",
         "all groups of a convolution read the first one's channels",
         "native::test_every_form"),
        ("native-far-as-near", "native/elementwise.h", "return std::fabs(x) > 1.0f ? error_far",
         "return std::fabs(x) > 3.0f ? error_far",
         "between 1 and 3 the error function is what its series near 0 makes of it",
         "native::test_every_form"),
        ("native-bits-of-a-power", "native/_encode.py", "return product(square, base) if by % 2 else square",
         "return square",
         "of a power only the highest bit counts",
         "native::test_every_form"),
        ("bf16-one-twice", "native/_packing.py", "even[:, :, 1::2]", "even[:, :, 0::2]",
         "of two inputs of a kernel the first is taken twice",
         "native_bf16::test_it_is_what_is_rounded_that_is_multiplied_and_the_rest_is_exact"),
        ("bf16-zeros-of-two-signs", "native/pairs.h", "(__m512)(x + Vector{})", "(__m512)x",
         "zeros of either sign are not the same in bfloat16",
         "native_bf16::test_a_change_below_the_rounding_of_what_is_stored_goes_no_further"),
        ("bf16-second-not-compared", "native/pairs.h",
         "Norm::join(Norm::of(first(a) - first(b)), Norm::of(second(a) - second(b)))", "Norm::of(first(a) - first(b))",
         "of two channels in bfloat16 a threshold sees the first",
         "native_bf16::test_what_has_changed_is_what_the_norm_says_of_what_is_stored"),
        ("bf16-output", "native/_segment.py", "and v not in plan.outputs", "and v not in ()",
         "outputs lie in bfloat16 as well",
         "native_bf16::test_maps_take_half_the_memory_but_those_that_others_read"),
        ("bf16-read-as-floats", "native/_encode.py", "self.as_stored if pairs or depthwise else self.operand",
         "self.as_stored",
         "a convolution of floats reads a map in bfloat16 as it lies",
         "native_bf16::test_where_a_position_is_computed_makes_no_difference_to_a_bit"),
        ("bf16-other-channels", "native/window.h", "half(slot.cols, from + Held::terms(at)",
         "half(slot.cols, from + at",
         "a depthwise convolution reads the wrong channels of a map in bfloat16",
         "native_bf16::test_depthwise_convolutions_read_what_is_stored_and_multiply_floats"),
        ("bf16-blocks-of-floats", "native/winograd.h", "transform(in + Held::terms(i), from, v, apart, [](",
         "transform(in + i, from, v, apart, [](",
         "a block of 3x3 reads the wrong channels of a map in bfloat16",
         "native_bf16::test_where_a_position_is_computed_makes_no_difference_to_a_bit"),
        ("native-frame-not-held", "native/detect.h", "(stop - begin) * channels * sizeof(T));",
         "0 * (stop - begin) * channels * sizeof(T));", "what has changed in the frame is marked and not held",
         "native::test_detection_finds_and_holds_what_xla_does"),
        ("native-mask-not-united", "native/detect.h", "marked[i] |= given[at + i];", "marked[i] |= 0 & given[at + i];",
         "the mask that a step is given counts for nothing",
         "native::test_detection_finds_and_holds_what_xla_does"),
        ("native-cell-of-one-row", "native/detect.h", "sum += SQUARES ?", "sum = SQUARES ?",
         "of a cell only the last row counts for a norm",
         "native::test_detection_finds_and_holds_what_xla_does"),
        ("native-pool-too-tight", "_tiles.py", "(-(-n // LINE) * LINE for n in sizes)",
         "(n // LINE * LINE for n in sizes)",
         "maps that lie side by side overlap",
         "native::test_every_form"),
        ("native-flags-in-one", "native/_segment.py", "return [FLAGS, columns[value], len(writes)]",
         "return [FLAGS, 0, len(writes)]", "all segments of a call share one flag",
         "native::test_every_form"),
        ("native-pool-copied", "native/_segment.py", "or number < last", "or number < 0",
         "XLA reads maps in the middle, and copies all of them for it",
         "native::test_nothing_is_copied_for_what_is_read_whole_in_the_middle"),
        # -------------------------------------------------------------------------------------------- at once
        ("rung-too-small", "_at_once.py", "found[None] > jnp.asarray(sizes", "found[None] // 2 > jnp.asarray(sizes",
         "more tiles than the bucket holds, and the others are not computed",
         "at_once::test_every_rung_holds_what_comes_to_it"),
        ("at-once-rank-by-one", "_buckets.py", "jnp.where(flat, sums - 1, flat.size)",
         "jnp.where(flat, sums, flat.size)", "the list of tiles begins with a filler",
         "tiles::test_the_lists_for_accelerators_are_the_same"),
        ("at-once-next-list", "_buckets.py", "before[::streams]", "after[::streams]",
         "a segment's list begins where the first stream's part of it ends",
         "tiles::test_the_lists_for_accelerators_are_the_same"),
        ("at-once-alike-swapped", "_masks.py", "for n, number in enumerate(numbers))",
         "for n, number in enumerate(reversed(numbers)))", "of maps that are alike one has the other's tiles",
         "masks::test_tiles_of_several_maps"),
        ("at-once-flag-not-set", "_at_once.py", "reach.counts(segment) > 0)", "reach.counts(segment) > 2)",
         "a change that reaches two tiles does not show", "at_once::test_a_small_change_shows"),
        ("at-once-whole-skipped", "_at_once.py", "put(now, segment.writes, packed(segment.writes, after))",
         "now.put(segment.writes, after)", "a whole segment does not see what tiles before it changed",
         "at_once::test_a_whole_segment_behind_tiles"),
        ("at-once-run-goes-on", "_at_once.py", "return any(value.is_tiled for value in segment.writes)",
         "return False", "nobody knows what a whole value that becomes a map reaches",
         "at_once::test_a_whole_value_becomes_a_map_again"),
        ("at-once-previous-claimed", "_at_once.py", ' or options.how.reference == "previous"', "",
         "what small changes of earlier frames do to a tile stays there unmarked",
         "at_once::test_against_the_previous_frame_all_that_differs_is_marked"),
        ("at-once-turn-slept", "_at_once.py", "turn = env.turn is not None and any(", "turn = False and any(",
         "in a still frame nobody has a turn",
         "at_once::test_what_is_held_back_is_what_is_held_back_by_buckets"),
        ("at-once-fresh-held-back", "_at_once.py", "norm) | env.fresh[stream][:, None, None]", "norm)",
         "a fresh cache's zeros count as held values",
         "at_once::test_what_is_held_back_is_what_is_held_back_by_buckets"),
        ("at-once-drifts", "_at_once.py", "new = jnp.where(_masks.at(mask, new.ndim, *layout.tile_picture), new, old)",
         "pass",
         "a segment's threshold compares with the previous result, not with the held one",
         "at_once::test_what_is_held_back_is_what_is_held_back_by_buckets"),
        ("at-once-turn-held-back", "_at_once.py", "if env.turn is not None:", "if False:",
         "on the dense path a tile is held back in its turn, too",
         "at_once::test_what_is_held_back_is_what_is_held_back_by_buckets"),
        ("at-once-last-word", "_masks.py", "lax.scatter_max if overlap else lax.scatter", "lax.scatter",
         "where tiles overlap one unsets the mask of another",
         "masks::test_tiles_that_overlap_are_united"),
        ("at-once-frame-taken-over", "_detect.py", "if how.trust or holds(how.tau):  #", "if False:  #",
         "what the frame's threshold holds back is taken over",
         "at_once::test_what_is_held_back_is_what_is_held_back_by_buckets"),
        # ------------------------------------------------------------------------------------- channels last
        ("turned-output-left", "_plan.py", "[in_own_order(array, order) for array, order in",
         "[array for array, order in", "outputs come with their channels last, whatever the function's order",
         "channels_last::test_the_law_holds"),
        ("turned-bound-left", "_bound.py", "_distance(in_own_order(made, order)[0]", "_distance(made[0]",
         "the bound compares values at other places",
         "channels_last::test_outputs_masks_bounds_and_audits_are_in_the_functions_own_order"),
        ("turned-audit-left", "_incremental.py", "plan.out_tree.unflatten(plan.returned(outputs)))",
         "plan.out_tree.unflatten(outputs))", "an audit compares the dense output with a turned one",
         "channels_last::test_outputs_masks_bounds_and_audits_are_in_the_functions_own_order"),
        ("turned-window-not", "_channels_last.py", "name: _permuted(eqn.params[name], order) for name in names",
         "name: eqn.params[name] for name in names", "windows of a turned map go along other axes",
         "channels_last::test_the_same_function"),
        ("turned-followed-by-nobody", "_channels_last.py", "return settled[0], settled[0]",
         "return tuple(range(len(settled[0]))), None", "what follows a convolution is turned back",
         "channels_last::test_no_map_is_transposed"),
        ("turned-sum-forgets", "_channels_last.py", "_without(value.order, axes), value.home)",
         "_without(value.order, axes))", "an axis that a sum had taken away comes back elsewhere",
         "channels_last::test_no_map_is_transposed"),
        ("turned-picks-elsewhere", "_channels_last.py", "start_index_map=tuple(order[axis] for axis in",
         "start_index_map=tuple(axis for axis in", "positions of a turned map are picked along other axes",
         "channels_last::test_the_same_function"),
        ("turned-reshape-reads-across", "_channels_last.py", "turn = tuple(order[axis] for axis in reading)",
         "turn = tuple(range(len(order)))", "axes that become one are read as they lie, not in their order",
         "channels_last::test_the_same_function"),
        ("turned-product-left", "_channels_last.py", "like = _ranks(places)", "like = tuple(order)",
         "what a resize gives lies as products do",
         "channels_last::test_with_native_kernels_everything_but_the_head_of_scores_is_native"),
        ("turned-loop-left", "_channels_last.py", "        if not as_they_lie:", "        if False:",
         "what a loop's turn gives is taken for the function's own order",
         "channels_last::test_the_law_holds_of_a_loop"),
        ("flat-kernel-not-turned", "rules/dot.py", "[a - flat.first for a in flat.order])", "range(len(flat.order)))",
         "behind a flattening in another order the dense layer's kernel lies in this one",
         "channels_last::test_the_law_holds_of_a_flattening"),
        ("native-band-from-its-tile", "native/tile.h", "static_cast<int64_t>(own[0]) - source;",
         "static_cast<int64_t>(own[0]) - result;", "a resize reads where its results lie",
         "native::test_every_form"),
        ("native-gate-in-turn", "native/_segment.py", "jnp.broadcast_to(array, (len(array), *gate.shape))",
         "jnp.resize(array, (len(array), *gate.shape))", "channels of a norm by groups have other groups' numbers",
         "native::test_every_form"),
        ("native-exchange-inside-out", "native/tile.h", "copy(to + (j * a + i) * n, from + (i * b + j) * n, n);",
         "copy(to + (i * b + j) * n, from + (j * a + i) * n, n);", "runs of channels change places the other way",
         "native::test_every_form"),
        # -------------------------------------------------------------------------------------------- tuning
        ("tuned-stands-still", "tuning/_search.py",
         "return max(trial.error, self.limit * trial.behind) if self.of_error",
         "return trial.error if self.of_error", "boxes that never move again keep the tolerance",
         "tune::test_an_output_that_stands_still_does_not_pass"),
        ("tuned-noise-is-motion", "tuning/_trials.py", "and self.apart > SWAY * self.sway", "and self.apart > 0",
         "where nothing moves the network has to follow its noise", "tune::test_what_may_be_left_of_the_motion"),
        ("tuned-kept-frames-stricter", "tuning/_trials.py",
         "[(first, end), (0, first)] if held_out else [(first, end)]", "[(first, end)]",
         "kept frames in which less moves allow less to be held back",
         "tune::test_what_may_be_left_of_the_motion"),
        # -------------------------------------------------------------------------------------------- init
        ("constants-compiled-in", "_plan.py", "dict(zip(self._sources, sources, strict=True))",
         "{v: x if v in self.params else v.held for v, x in zip(self._sources, sources, strict=True)}",
         "what constants are made into is computed while XLA compiles", "init::test_constants_are_handed_over_to_it"),
        ("params-of-the-first", "_plan.py", "return jax.jit(make)",
         "return lambda sources, made=[]: made[0] if made else made.append(jax.jit(make)(sources)) or made[0]",
         "a cache keeps what the first params of its plan were made into",
         "init::test_the_law_holds_of_any_params_under_one_plan"),
        # -------------------------------------------------------------------------------------------- public
        ("gradient-at-the-frame", "_incremental.py", 'if inc.options.how.reference == "held":', "if False:",
         "with a threshold the derivative is taken where the output was not",
         "transforms::test_gradient_at_the_held_frame"),
    ]
]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`test` is what caught the mutation, None where it survived."""

    mutation: Mutation
    test: str | None
    seconds: float


def pytest(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and output of the tests in `folder`, run on the package that lies there."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}  # a fault may keep the size
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--tb=line", *arguments], cwd=folder,
        env=environment, capture_output=True, text=True, check=False,
    )
    if run.returncode not in (0, 1):
        raise RuntimeError(f"pytest {' '.join(arguments)} ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    return run.returncode, run.stdout


def failed(output: str) -> str:
    """The first test that failed, as pytest names it."""
    found = re.search(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", output, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"pytest failed but names no test:\n{output}")
    return found.group(1)


def judge(folder: Path, mutation: Mutation, sound: set[str], whole: bool) -> Verdict:
    """Plant the fault in the copy at `folder`, run the tests, take it back.

    `sound` holds the tests that are known to pass without a fault; one is added.
    """
    path = folder / "deltajax" / mutation.file
    text, start = path.read_text(), time.monotonic()
    path.write_text(mutation.planted(text))
    try:
        status, output = pytest(folder, *mutation.likely())
        if status == 0 and whole:
            status, output = pytest(folder, "-n", str(os.cpu_count()))
    finally:
        path.write_text(text)
    seconds = time.monotonic() - start
    if status == 0:
        return Verdict(mutation, None, seconds)
    test = failed(output)
    if test not in sound:
        status, output = pytest(folder, test)
        if status != 0:
            raise RuntimeError(f"{test} fails without a fault, too:\n{output}")
        sound.add(test)
    return Verdict(mutation, test.removeprefix("tests/"), seconds)


def table(verdicts: Sequence[Verdict]) -> str:
    rows = ["| fault | in | what it means | caught by |", "|---|---|---|---|"]
    rows += [
        f"| {v.mutation.name} | {v.mutation.file} | {v.mutation.meaning} | {v.test or '**survived**'} |"
        for v in verdicts
    ]
    return "\n".join(rows)


def main(only: tuple[str, ...] = (), whole: bool = True) -> int:
    """Plant every fault of the table in a copy of the repository and run the fast tests.

    Args:
        only: names of mutations; all if there are none.
        whole: whether to run the whole fast suite where the named tests see nothing.
    """
    known = {m.name: m for m in MUTATIONS}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"there is no mutation {unknown[0]!r}; there are {', '.join(known)}")
    chosen = [known[name] for name in only or known]
    verdicts, sound = [], set()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "deltajax"
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        for mutation in chosen:
            verdicts.append(judge(folder, mutation, sound, whole))
            print(f"{mutation.name}: {verdicts[-1].test or 'SURVIVED'} ({verdicts[-1].seconds:.0f} s)",
                  file=sys.stderr, flush=True)
    print(table(verdicts))
    survived = [v.mutation.name for v in verdicts if v.test is None]
    print(f"\n{len(verdicts)} faults, {len(verdicts) - len(survived)} caught"
          + (f"; survived: {', '.join(survived)}" if survived else ""))
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
