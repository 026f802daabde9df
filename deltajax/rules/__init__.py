"""What is known about primitives, by family: `rule(program, equation, operands) -> values`.

A rule appends operations on tiles to the program and returns their results, or raises `Refused` with the reason
that the user reads in `explain()`; the equation is then done densely.
"""

from . import control, conv, dot, elementwise, gather, join, pool, reduce, resample, reshape, slices, unpool

RULES = {
    **elementwise.RULES,
    **conv.RULES,
    **pool.RULES,
    **unpool.RULES,
    **reduce.RULES,
    **reshape.RULES,
    **slices.RULES,
    **join.RULES,
    **resample.RULES,
    **gather.RULES,
    **dot.RULES,
}

# `lift(program, equation, operands) -> operands`: where a map begins again from a whole value.
LIFTS = {**conv.LIFTS, **dot.LIFTS}

# `see(program, equation, operands, lower) -> values`: loops and branches, by their bodies.
SEEN_THROUGH = control.SEEN_THROUGH
