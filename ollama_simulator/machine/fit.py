"""llama.cpp's fit: the distribution of layers over devices, for any way of counting bytes.

Layers are first distributed in proportion to free memory. If a device then misses its target, dense layers are assigned
back to front, last device first, and a mixture of experts leaves experts on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from ollama_simulator.machine.arithmetic import Buffer

CPU = -1
PIPELINE_COPIES = 4

Owners = tuple[int, ...]
"""Device of each layer, the output last; CPU = −1."""


class Costs(Protocol):
    """Bytes of one model with given options. Layers are the blocks, then the output."""

    @property
    def weights(self) -> Sequence[int]:
        """Bytes of each layer."""
        ...

    @property
    def experts(self) -> Sequence[int]:
        """Bytes of the experts in each block."""
        ...

    @property
    def is_single(self) -> bool:
        """Whether there is no pipeline, for any number of devices."""
        ...

    def cache(self, layer: int, *, sliding: bool) -> int:
        """Bytes of a layer's KV cache; 0 if the layer is of the other kind."""
        ...

    def state(self, layer: int) -> int:
        """Bytes of a layer's recurrent state."""
        ...

    def compute(self, copies: int, *, has_cpu_layers: bool) -> int:
        """Bytes of one device's compute buffer."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """A distribution of the layers, with its bytes per device."""

    owners: Owners
    on_cpu: frozenset[int]
    weights: tuple[int, ...]
    full_cache: tuple[int, ...]
    window_cache: tuple[int, ...]
    state: tuple[int, ...]
    compute: tuple[int, ...]

    def need(self, device: int) -> int:
        """Bytes needed on one device."""
        caches = self.full_cache[device] + self.window_cache[device] + self.state[device]
        return self.weights[device] + caches + self.compute[device]

    @property
    def is_full(self) -> bool:
        """Whether every layer is on a device, with all its experts."""
        return CPU not in self.owners and not self.on_cpu


def layout_of(costs: Costs, owners: Owners, devices: int, on_cpu: frozenset[int] = frozenset()) -> Layout:
    """Return the layout of a distribution; `on_cpu` are the layers whose experts stay on the CPU."""
    sizes = [size - (costs.experts[il] if il in on_cpu else 0) for il, size in enumerate(costs.weights)]

    def per_device(size_of: Callable[[int], int]) -> tuple[int, ...]:
        return tuple(sum(size_of(il) for il, own in enumerate(owners) if own == device) for device in range(devices))

    is_full = CPU not in owners and not on_cpu
    copies = PIPELINE_COPIES if is_full and devices > 1 and not costs.is_single else 1
    compute = costs.compute(copies, has_cpu_layers=not is_full)
    return Layout(
        owners,
        on_cpu,
        per_device(sizes.__getitem__),
        per_device(lambda il: costs.cache(il, sliding=False)),
        per_device(lambda il: costs.cache(il, sliding=True)),
        per_device(costs.state),
        tuple(compute if device in owners else 0 for device in range(devices)),
    )


def by_share(layers: int, offloaded: int, shares: Sequence[int]) -> Owners:
    """Split the last `offloaded` layers by `shares`: each goes to the first device whose running sum exceeds it."""
    offloaded = min(offloaded, layers)
    total = float(sum(shares)) or 1.0
    bounds = [part / total for part in accumulate(float(share) for share in shares)]
    last = len(bounds) - 1
    spread = (next((d for d, b in enumerate(bounds) if il / offloaded < b), last) for il in range(offloaded))
    return (CPU,) * (layers - offloaded) + tuple(spread)


def _in_slices(layers: int, counts: Sequence[int]) -> Owners:
    """Assign `counts` layers per device in contiguous slices, first device first, ending at the output layer."""
    slices = tuple(device for device, count in enumerate(counts) for _ in range(count))
    return (CPU,) * (layers - len(slices)) + slices


def fit(costs: Costs, free: Sequence[int], targets: Sequence[int]) -> Layout:
    """llama.cpp's layout: everything on the devices if each keeps its target, else layers back to front."""
    devices, everything = len(free), len(costs.weights)
    whole = layout_of(costs, by_share(everything, everything, free), devices)
    if all(free[d] - whole.need(d) >= targets[d] for d in range(devices)):
        return whole
    room = [free[d] - targets[d] for d in range(devices)]
    on_cpu = frozenset(range(everything - 1)) if any(costs.experts) else frozenset()
    counts = [0] * devices
    for device in reversed(range(devices)):
        for count in range(everything - sum(counts), -1, -1):
            counts[device] = count
            trial = layout_of(costs, _in_slices(everything, counts), devices, on_cpu)
            if not count or trial.need(device) <= room[device]:
                break
    dense = layout_of(costs, _in_slices(everything, counts), devices, on_cpu)
    if not any(costs.experts) or sum(counts) < everything:
        return dense
    return _with_experts(costs, dense, free, room)


def _with_experts(costs: Costs, dense: Layout, free: Sequence[int], room: Sequence[int]) -> Layout:
    """Return the layout of a mixture of experts whose dense part fits, with as many layers' experts as fit."""
    devices, layers = len(free), len(costs.weights) - 1
    owners = by_share(layers + 1, layers + 1, free) if devices > 1 else dense.owners
    best = dense
    for kept in range(1, layers + 1):
        trial = layout_of(costs, owners, devices, frozenset(range(kept, layers)))
        if any(trial.need(device) > room[device] for device in range(devices)):
            break
        best = trial
    return best


def buffers_of(layout: Layout) -> tuple[Buffer, ...]:
    """Return the allocations of a layout in llama.cpp's order: the sliding cache comes after the full one."""
    found = [Buffer("model", d, size, size) for d, size in enumerate(layout.weights) if size]
    for cache in (layout.full_cache, layout.window_cache):
        found += [Buffer("kv", d, size, size) for d, size in enumerate(cache) if size]
    found += [Buffer("state", d, size, size) for d, size in enumerate(layout.state) if size]
    found += [Buffer("compute", d, size, size) for d, size in enumerate(layout.compute) if size]
    return tuple(found)
