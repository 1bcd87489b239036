"""OFA ("One For All", Wang et al. 2022) pretrained at TPU scale in JAX.

The rooms: `vocabulary` <- `data` <- the top-level package `tasks`; `model` <- `training`; `model`,
`vocabulary` <- `decoding`. Importing this package imports none of them, so that a user with an own
loader pays only for the model.
"""
