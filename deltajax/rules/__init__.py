"""What is known about primitives, by family: `rule(program, equation, operands) -> values`.

A rule appends operations on tiles to the program and returns their results, or raises `Refused` with the reason
that the user reads in `explain()`; the equation is then done densely.
"""

from . import conv, dot, elementwise, pool, reduce, resample, shape

RULES = {
    **elementwise.RULES,
    **conv.RULES,
    **pool.RULES,
    **reduce.RULES,
    **shape.RULES,
    **resample.RULES,
    **dot.RULES,
}

# These can begin a map again from whole values, or look through a reshape: they are asked even without a map.
READ_WHOLE = frozenset({"conv_general_dilated", "dot_general"})
