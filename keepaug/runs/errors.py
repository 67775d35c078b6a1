"""What a user's settings are refused with."""

from __future__ import annotations

__all__ = ["ConfigError"]


class ConfigError(ValueError):
    """Settings that cannot be meant: names the key, the value and what is allowed."""
