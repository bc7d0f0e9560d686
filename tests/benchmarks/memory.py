"""How much memory a process takes."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def megabytes_now() -> float:
    """Memory that this process has now; where the system does not say, the most it ever had."""
    return from_system("VmRSS")


def megabytes_peak() -> float:
    """Most memory that this process ever had."""
    return from_system("VmHWM")


def from_system(field: str) -> float:
    # Linux's getrusage starts from the peak of the process that started this one; its /proc does not.
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split(f"{field}:")[1].split()[0]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
