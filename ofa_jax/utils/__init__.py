"""Small things that every package may use.

files         atomic writes
timers        goodput: where a host's time goes
hardware      published figures of chips, and topologies
distributed   connects the processes of several hosts
platforms     keeps JAX from starting missing platforms
modules       imports modules that a user names
renamed       the table of old names
suggestions   the nearest right name
"""

__all__ = [
    "distributed",
    "files",
    "hardware",
    "modules",
    "platforms",
    "renamed",
    "suggestions",
    "timers",
]
