"""What an operator can do to a running router through the admin listener."""

from __future__ import annotations

from router.backend.backend import Backend
from router.errors import ModelNotFound


class Actions:
    """Changes a running router."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

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
