"""What an operator can do to a running router through the admin listener."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from router.backend.backend import Backend
from router.backend.tracked import Tracked
from router.errors import BadRequest, ModelNotFound, ReloadRefused

Reload = Callable[[], Awaitable[dict[str, object]]]


class Actions:
    """Changes a running router. `set_draining` makes it report that it is not ready, or ready again.

    `reload` reads the configuration again, and returns what that has changed; None = it was not read from anywhere.
    """

    def __init__(
        self,
        backends: Collection[Backend],
        set_draining: Callable[[bool], None] = lambda _: None,
        reload: Reload | None = None,
    ) -> None:
        self._backends = backends
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
        self._check_owner()
        if model is None:
            return {"model": None, "forgotten": sum([await one.forget(None) for one in self._backends])}
        having = [(one, weights) for one in self._backends if (weights := one.installed.weights_if_installed(model))]
        if not having:
            raise ModelNotFound(f"model '{model}' not found")
        return {"model": model, "forgotten": sum([await one.forget(weights) for one, weights in having])}

    def unload(self, model: str) -> dict[str, object]:
        """Let a loaded model go as soon as it is idle, even one of `defaults.keep`; raise ModelNotFound.

        It may come back with the next request for it.
        """
        loaded = self._loaded(model)
        for backend, tracked in loaded:
            backend.keepalive.apply(tracked, 0.0)
        is_idle = not any(tracked.in_flight for _, tracked in loaded)
        return {"model": loaded[0][1].name, "unloads": "now" if is_idle else "when idle"}

    def keep(self, model: str, *, is_kept: bool) -> dict[str, object]:
        """Keep a loaded model as if it were listed in `defaults.keep`, or no longer; until it is unloaded."""
        loaded = self._loaded(model)
        for backend, tracked in loaded:
            backend.world.residents.keep(tracked, is_kept=is_kept)
        return {"model": loaded[0][1].name, "kept": is_kept}

    def drain(self, *, is_draining: bool) -> dict[str, object]:
        """Report at `/readyz` that the router takes no more requests, or that it does again: load balancers go by it.

        Requests that come nevertheless are served.
        """
        self._set_draining(is_draining)
        return {"draining": is_draining}

    def _check_owner(self) -> None:
        if not self._backends:
            raise BadRequest("a front has no Ollama of its own: ask the admin address of the node")

    def _loaded(self, model: str) -> list[tuple[Backend, Tracked]]:
        """Return the backends that have it loaded."""
        self._check_owner()
        having = [(one, one.installed.weights_if_installed(model)) for one in self._backends]
        found = [(one, one.world.residents.get(weights)) for one, weights in having if weights is not None]
        loaded = [(one, tracked) for one, tracked in found if tracked is not None]
        if not loaded:
            raise ModelNotFound(f"model '{model}' is not loaded")
        return loaded
