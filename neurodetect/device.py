"""Where and how precisely the network computes."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from neurodetect.files import UserError

#: Of glibc's malloc.h, by number: M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX; so that all memory is from one
#: heap which never shrinks, and as they are by default.
MALLOC_OPTIONS = {-4: (0, 65536), -1: (-1, 128 * 1024), -8: (1, 0)}


def devices_here() -> list[str]:
    """The devices that PyTorch has here, by its names: cpu, and cuda, xpu (Intel) and mps (Apple) where they
    are; several of a kind also as cuda:0, cuda:1, ..."""
    names = ["cpu"]
    for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if module.is_available():
            names += [kind, *(f"{kind}:{number}" for number in range(module.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def choose_device(device: str) -> torch.device:
    """The device of a name of `devices_here`; "auto" is "cuda" where there is one, else "cpu".

    Raises
    ------
    UserError
        There is no such device here.
    """
    here = devices_here()
    if device == "auto":
        device = "cuda" if "cuda" in here else "cpu"
    if device not in here:
        raise UserError(
            f"--device {device}: PyTorch {torch.__version__} finds no such device here; "
            f"choose from auto, {', '.join(here)}"
        )
    return torch.device(device)


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision for "auto", "float32" or "bfloat16": "auto" is bfloat16 where that is faster.

    Raises
    ------
    UserError
        bfloat16 on another device than a CPU or a CUDA GPU.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"unknown precision {precision!r}, use auto, float32 or bfloat16")
    if device.type not in ("cpu", "cuda"):
        if precision == "bfloat16":
            raise UserError(f"--precision bfloat16: is for cpu and cuda; on {device} use float32 or auto")
        return "float32"
    if precision != "auto":
        return precision
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


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Context in which the C library, where it is glibc's, keeps the memory that this process frees for what
    it asks for next. Afterwards it gives all back.

    Large pieces go back to the system at once otherwise, which clears every page before it gives it out
    again. A training step on a CPU asks for gigabytes, and takes a tenth longer by that.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    for parameter, (kept, _) in MALLOC_OPTIONS.items():
        libc.mallopt(parameter, kept)
    try:
        yield
    finally:
        for parameter, (_, usual) in MALLOC_OPTIONS.items():
            libc.mallopt(parameter, usual)
        libc.malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on another device.

    PyTorch has a type of error only for some of its allocators. Those of CPU and MPS and CUDA's libraries
    raise a plain `RuntimeError`, known by its words alone.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    signs = (
        "DefaultCPUAllocator",
        "std::bad_alloc",
        "CUDA error: out of memory",
        "STATUS_ALLOC_FAILED",
        "MPS backend out of memory",
    )
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
    # Not every device knows autocast, not even to be told that it is off.
    cast = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    with repeatable(), cast:
        yield
