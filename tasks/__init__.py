"""The project's seqio tasks and mixtures. Importing a module registers its tasks."""
