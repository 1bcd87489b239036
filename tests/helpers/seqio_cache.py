"""Writes a task's cache as `seqio_cache_tasks` does, without Apache Beam."""

import json
import os

import seqio
import tensorflow as tf


def write(task_name, folder, splits, num_shards=2):
    """Caches the records of some splits below a folder, which becomes a cache folder of seqio."""
    task = seqio.TaskRegistry.get(task_name)
    directory = os.path.join(folder, seqio.get_task_dir_from_name(task_name))
    os.makedirs(directory)
    for split in splits:
        shards = task.source.list_shards(split)
        examples = [
            example
            for index in range(len(shards))
            for example in task.preprocess_precache(
                task.source.get_dataset(
                    split, shuffle=False, seed=7, shard_info=seqio.ShardInfo(index, len(shards))
                ),
                seed=7,
            )
        ]
        prefix = seqio.get_cached_tfrecord_prefix(directory, split)
        for shard in range(num_shards):
            path = f"{prefix}-{shard:05d}-of-{num_shards:05d}"
            with tf.io.TFRecordWriter(path) as writer:
                for example in examples[shard::num_shards]:
                    writer.write(seqio.dict_to_tfexample(example).SerializeToString())
        features = {}
        for name, value in examples[0].items():
            shape = value.shape.as_list()
            features[name] = {
                "shape": [None, *shape[1:]] if shape else [],
                "dtype": value.dtype.name,
            }
        info = {"num_shards": num_shards, "features": features, "seqio_version": "0.0.18"}
        with open(seqio.get_cached_info_path(directory, split), "w") as file:
            json.dump(info, file)
        with open(seqio.get_cached_stats_path(directory, split), "w") as file:
            json.dump({"examples": len(examples)}, file)
    open(os.path.join(directory, "COMPLETED"), "w").close()
    seqio.add_global_cache_dirs([str(folder)])
