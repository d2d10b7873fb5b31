"""What the numbers were measured on; a latency without it says nothing."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from typing import Any

from fair_prune_plugins.latency.extras import need

PACKAGES = ("fair-prune-plugins", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch")

FLAG_PREFIXES = (
    "avx",
    "amx",
    "sse4",
    "fma",
    "f16c",
    "neon",
    "asimd",
    "sve",
    "sme",
    "i8mm",
    "bf16",
    "vsx",
    "hypervisor",
)
"""CPU flags that choose ONNX Runtime's kernels; ``hypervisor`` tells that the machine is a virtual one."""


@dataclass(frozen=True)
class Machine:
    """The machine, without anything that names it.

    Attributes:
        cpu: model name, as well as it is known.
        architecture: e.g. ``x86_64``.
        flags: those CPU flags that matter to the runtime; ``None`` where they cannot be read.
        cores: logical cores of the machine, and :attr:`usable_cores` those this process may run on.
        usable_cores: see ``cores``.
        load: average number of runnable processes over the last minute, before anything was timed; ``None`` on Windows.
        system: operating system.
        python: version.
        packages: versions of what takes part.
        providers: execution providers of the installed ONNX Runtime.
    """

    cpu: str
    architecture: str
    flags: tuple[str, ...] | None
    cores: int | None
    usable_cores: int | None
    load: float | None
    system: str
    python: str
    packages: dict[str, str]
    providers: tuple[str, ...]

    def statement(self) -> str:
        """The machine in one line."""
        cores = f"{self.usable_cores} of {self.cores} cores usable"
        runtime = f"ONNX Runtime {self.packages.get('onnxruntime', self.packages.get('onnxruntime-gpu', ''))}".rstrip()
        return f"{self.cpu} ({self.architecture}), {cores}, {self.system}, {runtime}"


def describe_machine() -> Machine:
    """Describe this machine: CPU, flags, cores, system, versions, providers.

    Raises:
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    need("onnx", "onnxruntime", purpose="describe what models are timed on")
    import onnxruntime

    from fair_prune_plugins.onnx.metadata import package_versions

    cpu, flags = _cpu()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = os.cpu_count()
    return Machine(
        cpu=cpu,
        architecture=platform.machine(),
        flags=flags,
        cores=cores,
        usable_cores=len(affinity(0)) if affinity is not None else cores,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=package_versions(PACKAGES),
        providers=tuple(onnxruntime.get_available_providers()),
    )


@functools.cache
def _cpu() -> tuple[str, tuple[str, ...] | None]:
    """Model name and flags; asking takes a second, so once per process."""
    try:
        import cpuinfo
    except ImportError:  # an extra of its own: without it the name is what the standard library knows
        return platform.processor() or platform.machine(), None
    info: dict[str, Any] = cpuinfo.get_cpu_info()
    flags = sorted(flag for flag in info.get("flags", ()) if flag.startswith(FLAG_PREFIXES))
    return info.get("brand_raw") or platform.processor() or platform.machine(), tuple(flags)
