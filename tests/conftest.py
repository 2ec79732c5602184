"""Fixtures that several test files share."""

from __future__ import annotations

from hub_user import server, user

__all__ = ["server", "user"]
