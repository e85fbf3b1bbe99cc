"""Stub."""

from dataclasses import dataclass


@dataclass
class Outcome:
    command: str


def run(names, work):
    return []
