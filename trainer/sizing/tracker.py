"""Bytes of the tensors that are alive while operations run, by kind. Shapes are enough: tensors may be fake."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Kind = Literal["weights", "gradients", "moments", "averages", "activations", "gathered", "buckets", "temporary"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class MemoryTracker(TorchDispatchMode):
    """Inside the block the storage of every tensor that an operation makes counts from then until it is freed.

    What the forward pass makes are activations (kept or not), what the backward pass makes is temporary; `label` says
    more. `peak` are the bytes by kind when their sum was largest.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, tuple[Kind, int]] = {}  # of a storage that is alive, by its id
        self.live: Counter[Kind] = Counter()
        self.peak: Counter[Kind] = Counter()
        self.default: Kind = "activations"
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._resize: Any = None

    def label(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        """The storages of `tensors` count as `kind` from now on."""
        for tensor in tensors:
            self._count(tensor.untyped_storage(), kind)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = Counter(self.live)

    def __enter__(self) -> Self:
        # FSDP2 frees and allocates the gathered weights by resizing their storage, which is no operation.
        self._resize = resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            known = self.sizes.get(storage._cdata)
            self._count(storage, known[0] if known else self.default)
            return result

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign,assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)  # type: ignore[no-untyped-call]
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in self.sizes:
                self._count(value.untyped_storage(), self.default)
        name = str(function)
        if name.startswith("c10d._allgather_base_"):
            self.label([args[0]], "buckets")
        elif name.startswith("c10d._reduce_scatter_base_"):
            self.label([args[0]], "gradients")
            self.label([args[1]], "buckets")
        if self.live.total() > self.peak.total():
            self.peak = Counter(self.live)
        return result

    def _count(self, storage: torch.UntypedStorage, kind: Kind) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes:
            before, bytes_before = self.sizes[key]
            self.live[before] -= bytes_before
        else:
            self._references[key] = weakref.ref(storage, lambda _, key=key: self._freed(key))  # type: ignore[misc]
        self.sizes[key] = kind, size
        self.live[kind] += size
        if self.live.total() > self.peak.total():
            self.peak = Counter(self.live)

    def _freed(self, key: int) -> None:
        kind, size = self.sizes.pop(key)
        self.live[kind] -= size
        del self._references[key]
