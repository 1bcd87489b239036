"""Small things that every package may use.

bad_input     reasons why input is refused, skipped or changed
files         atomic writes, reads of regular files
text_files    text and JSON as people write them
decode_options  how images are decoded, and the limits
locks         one process in a folder
timers        goodput: where a host's time goes
hardware      published figures of chips, and topologies
distributed   connects the processes of several hosts
platforms     keeps JAX from starting missing platforms
modules       imports modules that a user names
renamed       the table of old names
suggestions   the nearest right name
"""

__all__ = [
    "bad_input",
    "decode_options",
    "distributed",
    "files",
    "hardware",
    "locks",
    "modules",
    "platforms",
    "renamed",
    "suggestions",
    "text_files",
    "timers",
]
