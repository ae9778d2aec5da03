"""The rules of a decision for one backend: the operator's, how that Ollama is set up, and what was learned."""

from __future__ import annotations

from collections.abc import Callable

from router.config import BackendSection, Defaults
from router.core.decision.context import ContextRules
from router.core.decision.need import MachineRules
from router.core.decision.verdict import Rules
from router.core.learning.residuals import Learned
from router.core.ollama.options import ServerSettings
from router.core.units import MIB

KEPT_S = 10
"""The rules are rebuilt at least this often, because what was learned ages."""


class DecisionRules:
    """See the module. `unix_now` is the wall clock, for the age of what was learned."""

    def __init__(self, section: BackendSection, defaults: Defaults, unix_now: Callable[[], float]) -> None:
        self._section = section
        self._defaults = defaults
        self._unix_now = unix_now
        self._context = ContextRules(
            defaults.num_ctx,
            defaults.min_num_ctx,
            defaults.num_ctx_steps,
            defaults.max_num_ctx,
            defaults.answer_tokens,
        )
        self._rules = Rules()
        self._valid_for: tuple[object, ...] = ()

    def current(self, learned: Learned, version: str) -> Rules:
        """The rules now; the same object until something was learned, the version changed, or `KEPT_S` passed."""
        unix_s = self._unix_now()
        valid_for = (learned, version, int(unix_s) // KEPT_S)
        if valid_for != self._valid_for:
            self._valid_for = valid_for
            safety_mib = self._defaults.safety_mib
            machine = MachineRules(
                settings=self.server_settings(version),
                safety_bytes=None if safety_mib is None else safety_mib * MIB,
                learned=learned,
                step=self._defaults.num_ctx_steps,
                now_s=unix_s,
            )
            self._rules = Rules(self._context, machine)
        return self._rules

    def server_settings(self, version: str) -> ServerSettings:
        """How the Ollama is set up, by what the configuration says of it."""
        server = self._section.server
        target = ServerSettings().fit_target_bytes if server.fit_target_mib is None else server.fit_target_mib * MIB
        return ServerSettings(
            num_parallel=server.num_parallel,
            kv_type=server.kv_type,
            flash_attention=server.flash_attention,
            context_length=server.context_length,
            gpu_overhead_bytes=server.gpu_overhead_mib * MIB,
            sched_spread=server.sched_spread,
            max_loaded_models=server.max_loaded_models or 0,
            fit_target_bytes=target,
            version=version,
        )
