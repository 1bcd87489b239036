"""Evaluation: how each task is decoded and scored, and the metrics.

build               builds an evaluation: checkpoints, tasks, model
run                 evaluates every selected checkpoint
eval_spec           EvalSpec: how a task is decoded, parsed and scored; the registry of all tasks
load_tasks          from the names of seqio tasks to tasks that are ready to be evaluated
eval_example        what is known of an example; a bad record becomes an example with an error
eval_sources        the examples of a task as batches
batch_decoder       decodes batches with one compiled program
pipeline            decodes many batches while the host prepares the next ones
postprocess         parses decoded tokens
image_ranking       chooses the best of several generated images
evaluator           evaluates a task on a checkpoint; resumable
scoring             the metrics of predictions; one that fails does not stop the others
seqio_metrics       the same metrics for plain seqio
prediction_lines    predictions as lines
prediction_files    files of lines, in parts
task_folder         settings and result of a task on a checkpoint
fingerprints        of data and weights, so that predictions are never mixed
event_writer        TensorBoard's events
event_files         their files, without TensorFlow
gallery             examples with image, target and prediction, for the report
gallery_events      the same for TensorBoard
errors              the error of an evaluation that cannot continue
results             metrics of all checkpoints, as JSON and as a table
rewards             the rewards of self-critical training
trivial_baselines   baselines that look neither at the image nor at the text
metrics             the metrics
"""

from ofa_jax.evaluation.eval_spec import EvalSpec

__all__ = ["EvalSpec"]
