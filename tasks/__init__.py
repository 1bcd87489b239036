"""The project's tasks and mixtures. Importing a module registers its tasks, with seqio too.

seqio itself is not imported here: whenever a program imports it, before or after, the tasks are in
its registry (`ofa_jax.data.task_registry`).
"""
