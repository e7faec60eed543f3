"""How property tests run: the same examples each time, and no deadline, so that a busy machine fails nothing."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

steady = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
few = settings(steady, max_examples=30)
