"""The seqio registry: what OFA learns, as tasks and mixtures. Importing a module registers them."""
