"""What is left for the garbage collector: objects that nothing refers to but what they refer to themselves."""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import router

FOLDER = router.__path__[0]


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave what is left meanwhile to `errors_left`."""
    errors_left()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def errors_left() -> list[str]:
    """Return the errors that went through the router and are left, with all that their tracebacks refer to."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return [repr(one) for one in gc.garbage if isinstance(one, BaseException) and passed_through_router(one)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()


def passed_through_router(error: BaseException) -> bool:
    return any(frame.f_code.co_filename.startswith(FOLDER) for frame, _ in traceback.walk_tb(error.__traceback__))
