"""Bytes of the weights by where llama.cpp puts them: block, output, host, vision tower (docs/memory.md, "Weights")."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from router.core.ollama.model import Tensor

# ggml's type traits: elements per block, bytes per block (ggml-common.h).
BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "F64": (1, 8),
    "I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8),
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q8_1": (32, 36),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "Q8_K": (256, 292), "Q1_0": (128, 18), "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17), "NVFP4": (64, 36),
}  # fmt: skip
_BLOCK = re.compile(r"blk\.(\d+)\.")
_TOWER = ("v.", "mm.", "a.", "s.", "t.")
# Tensors of the input layer, which always stays on the host (llama-arch.cpp, LLM_TENSOR_LAYER_INPUT).
_INPUT = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")


@dataclass(frozen=True, slots=True)
class Weights:
    """The bytes of one file's tensors, by place.

    `block_bytes` are per block (0 for those that are not loaded), `output_bytes` go with the output, `host_bytes` never
    leave main memory, `tower_bytes` are vision or audio tensors inside the file, `file_bytes` are all tensors.
    `nextn_bytes` are those for multi-token prediction, which are loaded only if the runner drafts tokens.
    `unknown_types` names tensor types without a known size: they are counted as F32, an upper bound.
    """

    block_bytes: tuple[int, ...]
    output_bytes: int
    host_bytes: int
    tower_bytes: int
    unknown_types: frozenset[str]
    file_bytes: int = 0
    nextn_bytes: int = 0

    @property
    def device_bytes(self) -> int:
        """The bytes that a full offload puts on the GPU."""
        return sum(self.block_bytes) + self.output_bytes

    @staticmethod
    def of(tensors: Iterable[Tensor], *, blocks: int, copies_embedding: bool) -> Weights:
        """Add up the tensors of one file by place.

        `blocks` is how many blocks are loaded; later ones (multi-token prediction) are skipped. `copies_embedding`:
        without an `output.weight` the token embedding is copied to the GPU as output.
        """
        per_block, output, host, tower, embedding, nextn, has_output = [0] * blocks, 0, 0, 0, 0, 0, False
        unknown: set[str] = set()
        total = 0
        for tensor in tensors:
            size = tensor_bytes(tensor)
            total += size
            if tensor.type not in BLOCKS:
                unknown.add(tensor.type)
            if match := _BLOCK.match(tensor.name):
                if int(match[1]) < blocks:
                    per_block[int(match[1])] += size
                else:
                    nextn += size
            elif tensor.name.startswith("mtp."):
                nextn += size
            elif tensor.name.startswith(_TOWER):
                tower += size
            elif tensor.name.startswith(_INPUT):
                host += size
                embedding += size if tensor.name.startswith("token_embd.") else 0
            else:
                output += size
                has_output = has_output or tensor.name == "output.weight"
        output += embedding if copies_embedding and not has_output else 0
        return Weights(tuple(per_block), output, host, tower, frozenset(unknown), total, nextn)


def tensor_bytes(tensor: Tensor) -> int:
    """Return the tensor's bytes in the file and on the device; an unknown type counts as F32."""
    elements = 1
    for side in tensor.shape:
        elements *= side
    per_block, size = BLOCKS.get(tensor.type, (1, 4))
    return elements * size // per_block


def row_bytes(kind: str, elements: int) -> float:
    """Return the bytes of `elements` values in a cache of type `kind` (``f16``, ``q8_0`` …); an unknown one is f32."""
    per_block, size = BLOCKS.get(kind.upper(), (1, 4))
    return elements * size / per_block
