"""The instruments: kinds of detectors, the suite that runs them, the verdict.

The package can be called: `realign.detect(checkpoint)` is `realign.detect.suite.detect(checkpoint)`. The import system
binds a package to its name in the parent, so a function of the same name could not live there.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realign.report.report import Report


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        from realign.detect.suite import detect

        return detect(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
