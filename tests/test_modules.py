"""What a module does is counted way by way; modules for GPUs themselves are compiled by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from modules import EVERYTHING, SMALLEST, STILL, Count, Module, main

TEXT = """HloModule jit_step

%still.1 (a: f32[4]) -> f32[4] {
  ROOT %a = f32[4]{0} parameter(0)
}

%some.2 (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %one = f32[4]{0} fusion(%a), kind=kLoop, calls=%f
  ROOT %two = (f32[4]{0}, u8[0]{0}) custom-call(%one), custom_call_target="__cudnn$convForward"
}

%all.3 (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %large = f32[512,512]{1,0} copy(%a)
}

%any (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %small = f32[4]{0} copy(%a)
  ROOT %which = f32[4]{0} conditional(%i, %a, %a, %a), branch_computations={%still.1, %some.2, %all.3}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %found = pred[] fusion(%a), kind=kInput, calls=%g
  ROOT %cond = f32[4]{0} conditional(%found, %a, %a), true_computation=%any, false_computation=%still.1
}
"""


def test_each_way_by_itself():
    module = Module(TEXT)
    assert module.count(STILL) == Count(1, 0, 1)
    assert module.count(SMALLEST) == Count(1 + 1 + 2, 0, 2)
    assert module.count(EVERYTHING) == Count(1 + 1 + 1, 1, 2)


def test_what_xla_prints_is_understood():
    def either(i, x):
        return lax.switch(i, [lambda x: x, lambda x: jnp.sin(x).sum() + x, lambda x: jnp.sort(x)], x)

    text = jax.jit(either).lower(0, jnp.ones(7)).compile().as_text()
    still, some = (Module(text).count(path) for path in (STILL, SMALLEST))
    assert still.questions == some.questions == 1 and still.kernels < some.kernels


def test_an_unknown_network():
    with pytest.raises(ValueError, match="`only` names 'vgg'"):
        main(("vgg",))
