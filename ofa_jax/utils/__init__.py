"""Small things that every package may use: files, timers, hardware figures, distributed start."""
