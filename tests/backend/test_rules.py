"""The rules of a decision: out of the configuration, kept while they are the same."""

import pytest

from router.backend.rules import KEPT_S, DecisionRules
from router.config import load_config
from router.core.decision.costs import LoadCosts
from router.core.learning.residuals import Learned
from router.core.ollama.options import ServerSettings
from router.core.units import MIB

NOTHING, COSTS = Learned.of(()), LoadCosts()
SERVER = {
    "num_parallel": 4,
    "kv_type": "q8_0",
    "flash_attention": "on",
    "context_length": 4096,
    "gpu_overhead_mib": 100,
    "sched_spread": True,
    "max_loaded_models": 2,
    "fit_target_mib": 512,
}


class Clock:
    def __init__(self):
        self.unix_s = 1000.0


def rules_of(clock, **options):
    config = load_config(env={}, options=options)
    return DecisionRules(config.backends["local"], config.defaults, lambda: clock.unix_s)


def test_the_rules_are_what_the_operator_has_set():
    """Contexts, safety, and how the server is set up."""
    defaults = {"num_ctx": 16384, "min_num_ctx": 4096, "num_ctx_steps": 1024, "max_num_ctx": 65536, "safety_mib": 300}
    rules = rules_of(Clock(), **{f"defaults.{key}": value for key, value in defaults.items()}).current(
        NOTHING, "0.33", COSTS
    )
    context, machine = rules.context, rules.machine
    assert (context.default_num_ctx, context.min_num_ctx, context.step, context.max_num_ctx) == (
        16384,
        4096,
        1024,
        65536,
    )
    assert (machine.step, machine.safety_bytes, machine.now_s, machine.learned) == (1024, 300 * MIB, 1000.0, NOTHING)
    assert rules_of(Clock()).current(NOTHING, "", COSTS).machine.safety_bytes is None


def test_the_server_is_set_up_as_the_operator_says():
    """In bytes where the configuration says MiB."""
    options = {f"backends.local.server.{key}": value for key, value in SERVER.items()}
    assert rules_of(Clock(), **options).server_settings("0.33.0") == ServerSettings(
        num_parallel=4,
        kv_type="q8_0",
        flash_attention="on",
        context_length=4096,
        gpu_overhead_bytes=100 * MIB,
        sched_spread=True,
        max_loaded_models=2,
        fit_target_bytes=512 * MIB,
        version="0.33.0",
    )


def test_what_the_operator_does_not_say_is_ollamas_own():
    """But for the version, which the server tells."""
    assert rules_of(Clock()).server_settings("0.33.0") == ServerSettings(version="0.33.0")


@pytest.mark.parametrize("change", ["learned", "version", "costs", "time"])
def test_the_same_object_is_kept_until_something_changes(change):
    """Needs are remembered by it: a new one for each request would cost them all."""
    clock = Clock()
    rules = rules_of(clock)
    first = rules.current(NOTHING, "0.33", COSTS)
    clock.unix_s += KEPT_S - 1
    assert rules.current(NOTHING, "0.33", COSTS) is first
    if change == "time":
        clock.unix_s += 1
    learned = Learned.of(()) if change == "learned" else NOTHING
    costs = LoadCosts() if change == "costs" else COSTS
    assert (rules.current(NOTHING, "0.33", costs).machine is first.machine) is (change != "time")
    assert rules.current(learned, "0.34" if change == "version" else "0.33", costs) is not first
