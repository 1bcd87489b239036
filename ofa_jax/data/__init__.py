"""From records to batches: sources, transforms, objectives, features, the loader.

Plain numpy; knows nothing of the model, and imports neither TensorFlow nor seqio (but for
`seqio_bridge`, which is the door between the two).
"""
