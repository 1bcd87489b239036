"""From records to batches: record sources, tasks and the loader.

sources               record sources: OFA TSV, ArrayRecord, TFDS, Scenes, in memory
features              `Stream`; converts examples to features of static shapes
sampling              the deterministic order of a stream's records and random draws
paired_order          the order of a stream that makes two examples of every image
loader                `Loader`: batches for training and validation
task_settings         how the settings of a run reach its tasks
pretraining_settings  settings of the pretraining tasks
downstream_settings   settings of the downstream tasks
scenes_downstream     settings of the downstream tasks on Scenes
registration          registers tasks that run over the settings of a run
task_registry         the registered tasks, until something imports seqio
seqio_registration    registers them with seqio then
seqio_tasks           numpy preprocessors and record sources as parts of a seqio task
seqio_evaluation      what plain seqio needs to evaluate a task
seqio_mixing          ordinary seqio tasks beside those of this project
seqio_bridge          from the registered tasks to the loader
seqio_vocabulary      `OFAVocabulary` as a seqio vocabulary
feature_converter     the batches of the loader for users of plain seqio
tensors               records and examples as TensorFlow tensors
model_checks          checks that a model accepts the batches of a stream

Only `feature_converter`, `tensors` and the seqio_* modules import TensorFlow and seqio; of these
`seqio_evaluation` does not, and `seqio_bridge` does so for a task that needs them. Modules that
register tasks with `registration`, such as `tasks.pretraining`, import neither.
"""

from ofa_jax.data.features import Stream
from ofa_jax.data.task_settings import TaskContext, default_settings

__all__ = ["Stream", "TaskContext", "default_settings"]
