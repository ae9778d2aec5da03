"""The rules for decisions on one backend: the operator's, the settings of its Ollama, and past measurements."""

from __future__ import annotations

from collections.abc import Callable

from router.config import BackendSection, Defaults
from router.core.decision.context import ContextRules
from router.core.decision.costs import LoadCosts
from router.core.decision.need import MachineRules
from router.core.decision.verdict import Rules
from router.core.learning.residuals import Learned
from router.core.ollama.options import ServerSettings
from router.core.units import MIB

KEPT_S = 10
"""Maximum age of the rules in seconds: past measurements lose weight with time."""


class DecisionRules:
    """The rules for decisions. `unix_now` is the wall clock, for the age of measurements.

    `loaded_limit` returns how many models Ollama keeps loaded as far as loads have shown it, else 0.
    """

    def __init__(
        self,
        section: BackendSection,
        defaults: Defaults,
        unix_now: Callable[[], float],
        loaded_limit: Callable[[], int] = lambda: 0,
    ) -> None:
        self._loaded_limit = loaded_limit
        self._section = section
        self._defaults = defaults
        self._unix_now = unix_now
        self._context = context_rules(defaults)
        self._machine, self._rules = MachineRules(), Rules()
        self._valid_for: tuple[object, ...] = ()

    def current(self, learned: Learned, version: str, costs: LoadCosts) -> Rules:
        """Return the rules; the same object until a measurement is added, the version changes, or `KEPT_S` passes.

        Where only `costs` are new, those of the machine stay the same object: all needs are remembered by it.
        """
        unix_s = self._unix_now()
        valid_for = (learned, version, int(unix_s) // KEPT_S, self._loaded_limit())
        if valid_for != self._valid_for:
            self._valid_for = valid_for
            safety_mib = self._defaults.safety_mib
            self._machine = MachineRules(
                settings=learned.applied_to(self.server_settings(version), unix_s),
                safety_bytes=None if safety_mib is None else safety_mib * MIB,
                learned=learned,
                step=self._defaults.num_ctx_steps,
                now_s=unix_s,
            )
        if self._rules.machine is not self._machine or self._rules.costs is not costs:
            self._rules = Rules(self._context, self._machine, costs)
        return self._rules

    def server_settings(self, version: str) -> ServerSettings:
        """Return the settings of the Ollama according to the configuration, with the limit that loads have shown."""
        server = self._section.server
        target = ServerSettings().fit_target_bytes if server.fit_target_mib is None else server.fit_target_mib * MIB
        return ServerSettings(
            num_parallel=server.num_parallel,
            kv_type=server.kv_type,
            flash_attention=server.flash_attention,
            context_length=server.context_length,
            gpu_overhead_bytes=server.gpu_overhead_mib * MIB,
            sched_spread=server.sched_spread,
            max_loaded_models=min(filter(None, (server.max_loaded_models, self._loaded_limit())), default=0),
            fit_target_bytes=target,
            version=version,
        )


def context_rules(defaults: Defaults) -> ContextRules:
    """Return the operator's rules for contexts."""
    return ContextRules(
        defaults.num_ctx, defaults.min_num_ctx, defaults.num_ctx_steps, defaults.max_num_ctx, defaults.answer_tokens
    )
