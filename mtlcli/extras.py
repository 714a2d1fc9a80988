"""Packages that only some features need."""

from __future__ import annotations

from importlib.util import find_spec


def missing(package: str | None, extra: str | None) -> str | None:
    """What to tell a person where `package` is not installed; None where it is, or none is needed.

    Args:
        package: the module to import.
        extra: the extra of mtlcli that installs it; None where it comes from elsewhere.
    """
    if package is None or find_spec(package) is not None:
        return None
    wanted = package if extra is None else f"'mtlcli[{extra}]'"
    return f"needs the package {package}, which is not installed: pip install {wanted}"
