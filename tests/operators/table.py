"""The table: all groups of cases by name."""

from __future__ import annotations

from operators import convolution_cases, edge_cases, mlp_cases

GROUPS = {group.name: group for cases in (edge_cases, convolution_cases, mlp_cases) for group in cases.groups()}
ELSEWHERE = {"ghost_exchange", "ghost_reduce", "exchange_ghosts_"}
"""Operators without cases, as they need an engine; tests/test_ghosts.py tests them."""
