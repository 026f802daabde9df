"""Strict everywhere: no silent promotion, no silent broadcast, types checked, four devices, every warning an error.

Warnings are errors by `filterwarnings` in pyproject.toml. Tracer leaks are looked for in `test_transforms`, for the
check makes every trace several times slower.
"""

import faulthandler
import os

import jax
import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_num_cpu_devices", 4)
if jax.__version_info__ < (0, 11):  # can still make loops by XLA's older way, which takes half the time
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"

# `_incremental` and `tune` are left out: their own checks of bad input, with messages for people, come first.
jaxtyping.install_import_hook(
    [f"deltajax.{name}" for name in ("_age", "_audit", "_bound", "_buckets", "_control", "_detect", "_geometry",
                                     "_masks", "_plan", "_program", "_run", "_stats", "_tiles", "rules",
                                     "tuning._noise", "tuning._result", "tuning._search", "tuning._trials",
                                     "tuning.metrics")],
    "beartype.beartype",
)

import deltajax as dj  # noqa: E402  (behind the hook)

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, print_blob=True,
                          suppress_health_check=list(HealthCheck))
settings.load_profile("ci")

STRICT = ("test_age", "test_audit", "test_bound", "test_conv", "test_errors", "test_laws", "test_masks", "test_random",
          "test_rules", "test_tiles", "test_transforms")

TIMED = ("test_paper", "test_rates")


@pytest.fixture(autouse=True, scope="module")
def _hasty(request):
    """Compiling is most of what the suite does: without optimisations, but where times are measured.

    Together with the older loops that takes a third of the time. `law.AS_RUN` compiles as users do.
    """
    jax.config.update("jax_disable_most_optimizations", request.module.__name__.split(".")[-1] not in TIMED)


def pytest_addoption(parser):
    parser.addoption("--kernels", default="xla", choices=("xla", "native"), help="of every step that names none")
    parser.addoption("--platform", choices=("cpu", "gpu", "tpu"), help="what every step is laid out for")


def pytest_collection_modifyitems(config, items):
    if config.getoption("kernels") != "xla" or config.getoption("platform"):
        for item in items:
            if item.get_closest_marker("xla"):
                item.add_marker(pytest.mark.skip(reason="of XLA's kernels on a CPU"))


@pytest.fixture(autouse=True, scope="session")
def _kernels(request):
    """The whole suite with other kernels or laid out for others: ``pytest --kernels native``, ``--platform gpu``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dj.incremental.__kwdefaults__, "kernels", request.config.getoption("kernels"))
        patch.setitem(dj.incremental.__kwdefaults__, "platform", request.config.getoption("platform"))
        yield


@pytest.fixture(autouse=True, scope="session")
def _default_rates(tmp_path_factory):
    """What was measured on this machine would choose other paths than the tests speak of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltajax._rates.place", lambda: tmp_path_factory.getbasetemp() / "no" / "rates.json")
        yield


@pytest.fixture(autouse=True, scope="module")
def _compiled_for_one_module():
    """Hundreds of compiled networks would fill the memory of a small machine."""
    yield
    jax.clear_caches()


@pytest.fixture
def never_hangs(request):
    """Threads that wait for each other for ever end the whole run, with the stacks of all threads."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        shown = os.dup(2)  # what pytest captures is lost when the process ends so
    faulthandler.dump_traceback_later(300, exit=True, file=shown)
    yield
    faulthandler.cancel_dump_traceback_later()
    os.close(shown)


@pytest.fixture(autouse=True)
def _strict(request):
    """Strict promotion of dtypes and ranks in the engine's tests; models and training use others' code."""
    if request.module.__name__.split(".")[-1] not in STRICT:
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
