"""Run folders: one detection, its evidence and its report, which goes on where it was interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realign.errors import RealignError
from realign.files import atomic_write, check_free

_CONFIG = "config.yaml"
_AFRESH = "Choose another folder, or pass --overwrite."


def check(run: Path, *, overwrite: bool = False) -> None:
    """Refuses a folder that cannot become a run folder; call it before long work.

    A folder that holds a run can be resumed or overwritten. One that holds something else is left alone whatever the
    user says: it is hardly what they meant.

    Raises:
        RealignError: the folder is a file, holds something else than a run, or holds the working or home folder and is
            to be overwritten.
    """
    holds_a_run = (run / _CONFIG).is_file()
    if overwrite and holds_a_run:
        check_free(run, overwrite=True)
    if not holds_a_run and run.is_dir() and any(run.iterdir()):
        raise RealignError(f"cannot write a run to {run}", "it holds something else", "Choose another folder.")
    if not holds_a_run:
        check_free(run)


def claim(run: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Makes the folder a run of these settings (YAML values), or finds that it is one already.

    Raises:
        RealignError: as `check`; or the run was made with other settings and is not to be overwritten.
    """
    import yaml

    check(run, overwrite=overwrite)
    path = run / _CONFIG
    if path.exists() and not overwrite:
        known = _known(path)
        other = [key for key in {**known, **config} if known.get(key) != config.get(key)]
        if other:
            what = f"it was made with another {' and another '.join(other)}"
            raise RealignError(f"cannot resume the run {run}", what, _AFRESH)
        return
    if overwrite and run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)
    atomic_write(path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def _known(path: Path) -> dict[str, Any]:
    import yaml

    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError) as error:
        raise RealignError(
            f"cannot resume the run {path.parent}", f"{_CONFIG} is damaged ({error})", _AFRESH
        ) from error
