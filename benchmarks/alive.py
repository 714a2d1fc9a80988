"""How much memory tensors take: of those that come into being in a `with` block, on the CPU or on CUDA."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def alive(device: torch.device, known: Sequence[Tensor]) -> AliveOnCPU | AliveOnCUDA:
    """A counter that starts at zero. `known`: tensors from before, of which operations may return views."""
    return AliveOnCUDA() if device.type == "cuda" else AliveOnCPU(known)


class AliveOnCPU(TorchDispatchMode):
    """Bytes of the tensors that come into being inside of it: `now`, and `most` at any time since `restart`."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: dict[int, Any] = {id(tensor.untyped_storage()): tensor for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and take note of new storages."""
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self.known:
                self._born(storage, id(storage), storage.nbytes())
        return found

    def restart(self) -> None:
        """Forget the largest size so far."""
        self.most = self.now

    def _born(self, storage: Any, key: int, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)
        self.known[key] = weakref.ref(storage, lambda _: self._died(key, size))

    def _died(self, key: int, size: int) -> None:
        self.now -= size
        del self.known[key]


class AliveOnCUDA:
    """The same from the allocator of the device."""

    def __init__(self) -> None:
        self.before = torch.cuda.memory_allocated()

    def __enter__(self) -> AliveOnCUDA:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def now(self) -> int:
        """Bytes."""
        return torch.cuda.memory_allocated() - self.before

    @property
    def most(self) -> int:
        """Bytes."""
        return torch.cuda.max_memory_allocated() - self.before

    def restart(self) -> None:
        """Forget the largest size so far."""
        torch.cuda.reset_peak_memory_stats()
