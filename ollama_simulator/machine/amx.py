"""Sizes in `/api/ps` on a machine without GPU whose CPU has AMX: its `AMX` buffers count as device memory."""

from __future__ import annotations

from collections.abc import Sequence

from router.core.ollama.model import Tensor
from router.core.units import MIB

# Bytes per block as the kernels pack it (some types get 2 or 4 bytes of compensation) and weights per block.
BLOCKS = {"F16": (2, 1), "Q4_0": (18, 32), "Q4_1": (20, 32), "Q8_0": (38, 32), "Q4_K": (148, 256), "Q5_K": (180, 256)}
BLOCKS |= {"Q6_K": (210, 256), "IQ4_XS": (138, 256)}


def amx_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the AMX buffer as Ollama reads it from the log (MiB with two decimals).

    The kernels take matrices with a multiple of 32 rows. The token embedding counts only if it doubles as the output
    matrix.
    """
    has_output = any(tensor.name == "output.weight" for tensor in tensors)
    total = 0
    for tensor in tensors:
        if tensor.type not in BLOCKS or len(tensor.shape) != 2 or tensor.shape[1] % 32:
            continue
        if tensor.name.startswith("token_embd") and has_output:
            continue
        size, weights = BLOCKS[tensor.type]
        total += tensor.shape[0] * tensor.shape[1] // weights * size
    return int(round(total / MIB, 2) * MIB)
