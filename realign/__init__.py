"""Detect emergent misalignment in fine-tuned language models, fix it, and prove it.

```python
import realign

checkpoint = realign.open("ckpt/")
report = realign.detect(checkpoint)
fixed = realign.fix(checkpoint, recipe="good_code_100", out="fixed/")
```
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realign.checkpoint import open
    from realign.detect.suite import detect
    from realign.remedy.fix import fix

__version__ = "0.1.0"
__all__ = ["__version__", "detect", "fix", "open"]


def __getattr__(name: str) -> Any:
    """Imports what is behind a public name when it is first used (PEP 562): `import realign` stays light."""
    if name == "open":
        return import_module("realign.checkpoint").open
    if name == "detect":
        return import_module("realign.detect")  # the package itself can be called
    if name == "fix":
        return import_module("realign.remedy.fix").fix
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
