"""Where and how precisely the network computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from neurodetect.files import UserError


def choose_device(device: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda".

    Raises
    ------
    UserError
        "cuda" where PyTorch sees no CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision for "auto", "float32" or "bfloat16": "auto" is bfloat16 where that is faster."""
    if precision in ("float32", "bfloat16"):
        return precision
    if precision != "auto":
        raise ValueError(f"unknown precision {precision!r}, use auto, float32 or bfloat16")
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        # Older PyTorch and other processors do not say; float32 is always right.
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        fast = bool(supported())
    return "bfloat16" if fast else "float32"


def has_graphs(device: torch.device) -> bool:
    """Whether work on a device can be recorded once and replayed as a whole, and is waited for only where a
    number is read."""
    return device.type == "cuda"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a CUDA device.

    PyTorch has a type of error only for its CUDA allocator. The CPU's allocator and CUDA's libraries
    raise a plain `RuntimeError`, known by its words alone.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    signs = "DefaultCPUAllocator", "std::bad_alloc", "CUDA error: out of memory", "STATUS_ALLOC_FAILED"
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


@contextmanager
def repeatable() -> Iterator[None]:
    """Context in which CUDA's convolutions give the same bits every time, and float32 means it.

    Left to itself cuDNN may take algorithms that add in an order left to chance, and rounds to
    TensorFloat-32, with three digits. A convolution looks at this when it is computed, and again when its
    gradient is: both belong into the context.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before


@contextmanager
def arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """Context in which the network computes in this precision, see `repeatable`; weights stay float32."""
    with repeatable(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        yield
