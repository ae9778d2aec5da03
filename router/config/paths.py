"""The rule for every path of the configuration: relative to the file that names it; ``~`` is the home directory.

A path from the environment or the command line is relative to router.yaml, too. Without a file it is relative to the
working directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo, WithJsonSchema

from router.config.values import allowed

FOLDER = "folder"
"""The name under which a validation has the folder of the file that is read."""

IN_MEMORY = ":memory:"
_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1}


def folder_of(file: Path | None) -> Path:
    """Return the folder to which paths in `file` are relative; links are not followed, as in a Kubernetes ConfigMap."""
    return file.parent if file is not None else Path()


def placed(text: str, folder: Path) -> Path:
    """Return the path that `text` means in a file of `folder`."""
    return folder / Path(text).expanduser()


def _placed(value: str, info: ValidationInfo) -> str:
    if not value.strip() or "\0" in value:
        raise allowed("the path of a file, absolute or relative to this file")
    if info.context is None:
        return value
    try:
        return str(placed(value, info.context[FOLDER]).absolute())
    except RuntimeError:  # the home of nobody who is known
        raise allowed("a path that does not begin with ~ and a user who does not exist") from None


def _placed_or_memory(value: str, info: ValidationInfo) -> str:
    return value if value == IN_MEMORY else _placed(value, info)


FileName = Annotated[str, AfterValidator(_placed), WithJsonSchema(_SCHEMA)]
StoreName = Annotated[str, AfterValidator(_placed_or_memory), WithJsonSchema(_SCHEMA)]
