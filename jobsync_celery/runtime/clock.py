"""The one clock by which a node trusts its lease."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

# CLOCK_BOOTTIME goes on while the machine sleeps, as macOS's CLOCK_MONOTONIC does; Linux's CLOCK_MONOTONIC does not,
# and a laptop or a suspended virtual machine would wake up believing in a lease that ended long ago.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


#: Seconds since the machine booted, sleep included: the same in every process of this machine. No function of ours, as
#: every question of what is whose asks for it.
boot_clock: Callable[[], float] = partial(time.clock_gettime, _CLOCK)
