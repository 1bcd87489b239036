"""Compares seqio.Evaluator with this project's evaluation on the same predictions."""

import json

import jax
import numpy as np
import seqio

from ofa_jax.data.feature_converter import OFAFeatureConverter
from ofa_jax.data.features import Stream
from ofa_jax.evaluation.load_tasks import TaskLoader
from ofa_jax.evaluation.prediction_lines import make_line
from ofa_jax.evaluation.scoring import compute_metrics
from ofa_jax.sharding import Partitioner


def some_predictions(targets, vocabulary):
    """Returns ids of one length: correct ones, those of another example, truncated and odd ones."""
    rows = []
    for number, target in enumerate(targets):
        other = targets[(number + 1) % len(targets)]
        choices = (target, other, target, [*target[:-2], 2], [vocabulary.unk_id, 5, 2], [2])
        rows.append(np.asarray(choices[number % len(choices)], np.int32))
    length = max(map(len, rows))
    return [np.append(row, [1] * (length - len(row))).astype(np.int32) for row in rows]


def compare(name, settings, split="validation", num_examples=8, **options):
    """Evaluates the same predictions both ways; returns the metrics of both and the predictions."""
    first = next(
        seqio.get_mixture_or_task(name)
        .get_dataset(None, split, shuffle=False)
        .take(1)
        .as_numpy_iterator()
    )
    size = first["image"].shape[0] or None
    lengths = {"inputs": 128, "targets": 1100}
    stream = Stream("s", name, 4, lengths, image_size=size, code_targets=True)
    converter = OFAFeatureConverter(stream)
    evaluator = seqio.Evaluator(name, converter, split, num_examples=num_examples, **options)
    assert [task.name for task in evaluator.eval_tasks] == [name]
    examples = list(evaluator.cached_task_datasets[name].as_numpy_iterator())
    predictions = some_predictions([own["targets"] for own in examples], settings.vocabulary)

    def predict(dataset, model_feature_shapes=None):
        numbers = [int(index) for index, _ in dataset.as_numpy_iterator()]
        return [(index, predictions[index]) for index in reversed(numbers)]

    theirs = evaluator.evaluate(compute_metrics=True, predict_fn=predict)[0].result()[name]
    partitioner = Partitioner(devices=jax.devices()[:1])
    loader = TaskLoader(split, partitioner, num_examples, settings=settings)
    (task,) = loader.load(stream, [name], print)
    numbers = range(-(-task.source.num_examples // stream.batch_size))
    known = [
        own for batch in task.source.batches(numbers) for own in batch.examples if own is not None
    ]
    valid = [own for own in known if own.error is None]
    assert len(valid) == len(predictions)
    lines = [
        json.loads(json.dumps(make_line(task.spec, task.vocabulary, own, ids, 0.0)))
        for own, ids in zip(valid, predictions, strict=True)
    ]
    return dict(theirs), dict(compute_metrics(task.spec, lines).metrics), lines
