"""Small things that every package may use.

bad_input     reasons why input is refused, skipped or changed
files         atomic writes, reads of regular files
output_folders  folders that are complete or absent
text_files    text and JSON as people write them
state_files   JSON that a run writes for itself and reads again
array_files   arrays in .npz and .npy files
json_values   values of Python and numpy as strict JSON
wrong_files   recognises what a file really is
excerpts      shortens what messages quote
decode_options  how images are decoded, and the limits
locks         one process in a folder
timers        goodput: where a host's time goes
progress      shows how far long work is
memory        how much memory there is
allocator     starts a command with huge pages
hardware      published figures of chips, and topologies
distributed   connects the processes of several hosts
collectives   agreement among hosts on plain numbers
platforms     keeps JAX from starting missing platforms
modules       imports modules that a user names
options       types of options; `option_checks` checks them, `option_problems` and `option_text`
              put them into words
renamed       the table of old names
suggestions   the nearest right name
"""

__all__ = [
    "allocator",
    "bad_input",
    "decode_options",
    "distributed",
    "files",
    "hardware",
    "locks",
    "modules",
    "output_folders",
    "platforms",
    "renamed",
    "suggestions",
    "text_files",
    "timers",
]
