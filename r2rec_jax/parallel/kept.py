"""Compiled programs kept between processes: JAX's persistent compilation cache, on for every entry.

The settings go to the environment, so that processes that are started from here have them too. Which programs are the
same is JAX's decision (program, flags, devices, versions). What is added to it: a folder a kind of CPU, since programs
for one may not run on another that shares the home folder; a bound on its size; and a sweep of what a killed process
left behind. Programs that are compiled faster than ``KEPT_SECONDS`` are not kept: JAX looks at every entry of the
folder before it adds one, so that a folder of many small ones costs more than it saves.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import threading
from functools import cache
from pathlib import Path

from r2rec_jax.progress import say

VARIABLE = "R2REC_COMPILED"
"""Environment variable: another folder for compiled programs, or ``off``."""
FOLDER = "~/.cache/r2rec_jax/compiled"
MAX_BYTES = 4 * 10**9
"""Programs that were used longest ago leave a folder of this size."""
MAX_PROGRAMS = 1000
"""The same, when a process starts, of a folder of so many."""
KEPT_SECONDS = 0.2
"""A program that takes less time to compile is not kept."""


def keep_compiled() -> None:
    """Have JAX keep compiled programs, and read those that it has kept. Call it before anything is compiled.

    ``R2REC_COMPILED`` names another folder or is ``off``. A ``JAX_COMPILATION_CACHE_DIR`` of the user's own is left as
    it is, with every setting of JAX's.
    """
    given = os.environ.get(VARIABLE) or FOLDER
    if given == "off" or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = Path(given).expanduser() / machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
    except OSError as error:
        say(f"compiled programs are not kept: {error}; {VARIABLE} names another folder, or is off")
        return
    settings = {"jax_compilation_cache_dir": str(folder), "jax_compilation_cache_max_size": MAX_BYTES,
                "jax_persistent_cache_min_compile_time_secs": KEPT_SECONDS,
                "jax_persistent_cache_min_entry_size_bytes": -1,
                "jax_persistent_cache_enable_xla_caches": "none"}  # those have no bound
    os.environ.update({name.upper(): str(value) for name, value in settings.items()})
    if "jax" in sys.modules:  # it has read the environment already
        import jax

        for name, value in settings.items():
            jax.config.update(name, value)


def machine() -> str:
    """A name for this kind of CPU, from its model and features."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else [platform.processor()]
    kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))} or {*lines[:1]})
    return f"{platform.machine()}-{hashlib.sha256(''.join(kinds).encode()).hexdigest()[:8]}"


def sweep(folder: Path) -> None:
    """Delete what a process left that was killed while it wrote, and the programs beyond ``MAX_PROGRAMS``.

    The time of use is written after the entry. Of one without it JAX would warn in every run, or store nothing more.
    """
    import filelock

    try:
        with filelock.FileLock(folder / ".lockfile", timeout=10):  # JAX's own lock
            used = {}
            for entry in folder.glob("*-cache"):
                time = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
                if time.is_file():
                    used[entry] = time
                else:
                    entry.unlink()
            for entry in sorted(used, key=lambda entry: used[entry].stat().st_mtime)[:-MAX_PROGRAMS]:
                entry.unlink()
                used[entry].unlink()
    except filelock.Timeout:
        return  # others are at work on it


class Programs:
    """How many programs this process has compiled, of those that are worth keeping, and how many it has read instead.

    Attributes:
        compiled: programs that took ``KEPT_SECONDS`` or longer.
        read: programs that had been kept.
    """

    def __init__(self) -> None:
        import jax

        self.compiled, self.read = 0, 0
        self._hit = threading.local()  # what this thread asks for had been kept
        jax.monitoring.register_event_listener(self._on_event)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)

    def _on_event(self, event: str, **_: object) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            self.read += 1
            self._hit.now = True

    def _on_duration(self, event: str, duration_secs: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.compiled += duration_secs >= KEPT_SECONDS and not getattr(self._hit, "now", False)
            self._hit.now = False


@cache
def programs() -> Programs:
    """The process's counter; it counts from the first call on."""
    return Programs()
