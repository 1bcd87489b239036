"""How the model learns; knows nothing of where batches come from, nor of gin."""
