"""What an operator can do to a running router through the admin listener."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from router.backend.backend import Backend
from router.backend.tracked import Tracked
from router.errors import ModelNotFound, ReloadRefused

Reload = Callable[[], Awaitable[dict[str, object]]]


class Actions:
    """Changes a running router. `set_draining` makes it report that it is not ready, or ready again.

    `reload` reads the configuration again, and returns what that has changed; None = it was not read from anywhere.
    """

    def __init__(
        self, backend: Backend, set_draining: Callable[[bool], None] = lambda _: None, reload: Reload | None = None
    ) -> None:
        self._backend = backend
        self._reload = reload
        self._set_draining = set_draining

    async def reload(self) -> dict[str, object]:
        """Read the configuration again; return how it was taken over, and which keys differ. Raise ReloadRefused."""
        if self._reload is None:
            raise ReloadRefused("the configuration of this router does not come from a file or from the environment")
        return await self._reload()

    async def forget(self, model: str | None) -> dict[str, object]:
        """Forget what loads of `model` (None: of all models) have taught; raise ModelNotFound or BadRequest.

        That includes bans after spills and pauses after failed loads. What is loaded stays loaded.
        """
        if model is None:
            return {"model": None, "forgotten": await self._backend.forget(None)}
        weights = self._backend.installed.weights_if_installed(model)
        if weights is None:
            raise ModelNotFound(f"model '{model}' not found")
        return {"model": model, "forgotten": await self._backend.forget(weights)}

    def unload(self, model: str) -> dict[str, object]:
        """Let a loaded model go as soon as it is idle, even one of `defaults.keep`; raise ModelNotFound.

        It may come back with the next request for it.
        """
        tracked = self._loaded(model)
        self._backend.keepalive.apply(tracked, 0.0)
        return {"model": tracked.name, "unloads": "now" if tracked.in_flight == 0 else "when idle"}

    def keep(self, model: str, *, is_kept: bool) -> dict[str, object]:
        """Keep a loaded model as if it were listed in `defaults.keep`, or no longer; until it is unloaded."""
        tracked = self._loaded(model)
        self._backend.world.residents.keep(tracked, is_kept=is_kept)
        return {"model": tracked.name, "kept": is_kept}

    def drain(self, *, is_draining: bool) -> dict[str, object]:
        """Report at `/readyz` that the router takes no more requests, or that it does again: load balancers go by it.

        Requests that come nevertheless are served.
        """
        self._set_draining(is_draining)
        return {"draining": is_draining}

    def _loaded(self, model: str) -> Tracked:
        weights = self._backend.installed.weights_if_installed(model)
        tracked = self._backend.world.residents.get(weights) if weights is not None else None
        if tracked is None:
            raise ModelNotFound(f"model '{model}' is not loaded")
        return tracked
