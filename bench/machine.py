"""What the numbers were measured on; nothing that names the machine or its owner."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CORES = len(os.sched_getaffinity(0))
_TELLING_FLAGS = ("sse4_2", "avx2", "avx512f", "aes", "vaes", "pclmulqdq", "vpclmulqdq", "sha_ni")


def facts() -> dict[str, str | int | list[str]]:
    """Cores, memory, processor and system of this machine."""
    processor = _first_values(Path("/proc/cpuinfo"))
    flags = processor.get("flags", "").split()
    memory = int(_first_values(Path("/proc/meminfo"))["MemTotal"].split()[0]) * 1024
    return {
        "cores": CORES,
        "memory_bytes": memory,
        "processor": processor.get("model name", platform.machine()),
        "processor_flags": [flag for flag in _TELLING_FLAGS if flag in flags],
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def _first_values(path: Path) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        values.setdefault(name.strip(), value.strip())
    return values
