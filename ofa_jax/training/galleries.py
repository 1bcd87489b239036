"""Galleries at each validation: what the model answers to a few examples of each task.

    validation examples ─▶ greedy decoding ─▶ galleries/SPLIT/STEP/TASK.json, for the report
                                            └▶ images and tables in TensorBoard

The examples are always the same ones, the first of the split, so that one sees how predictions
change. Decoding is as cheap as it can be: greedy, without the restriction to candidates, no longer
than the targets of the stream, and in batches of one size, so that each program is compiled once in
a run. Tasks of a stream share programs where their settings allow it. An evaluation decodes as the
tasks say; if there is one of the same step, the report shows its gallery instead.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from ofa_jax.data.features import Stream
from ofa_jax.data.sampling import WeightedTask
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec, gallery, gallery_events
from ofa_jax.evaluation.batch_decoder import BatchDecoder
from ofa_jax.evaluation.eval_sources import EvalBatcher, RecordEvalSource
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.evaluation.gallery import GalleryExample, GalleryMaker
from ofa_jax.evaluation.load_tasks import vocabulary_of
from ofa_jax.evaluation.prediction_files import Line
from ofa_jax.evaluation.prediction_lines import make_line
from ofa_jax.model import OFA
from ofa_jax.sharding import Partitioner
from ofa_jax.tokenizers.image_tokenizer import ImageTokenizer
from ofa_jax.training.datasets import RunData
from ofa_jax.training.train_program import TrainProgram
from ofa_jax.utils import files


@dataclasses.dataclass(frozen=True)
class GalleryConfig:
    """How many examples galleries have.

    Attributes:
      examples: of each task at each validation; the size of a batch, so the cost of one decoding.
        0 for no galleries during training.
      final_examples: of each task at the last validation.
    """

    examples: int
    final_examples: int

    @property
    def is_off(self) -> bool:
        """Whether there are no galleries at all."""
        return not (self.examples or self.final_examples)

    def count(self, is_last: bool) -> int:
        """Returns the number of examples of a validation."""
        return self.final_examples if is_last else self.examples

    @property
    def batch_size(self) -> int:
        """The number of examples that are decoded together."""
        return self.examples or self.final_examples


@dataclasses.dataclass(frozen=True)
class _Task:
    """A task whose examples can be predicted."""

    maker: GalleryMaker
    decoder: BatchDecoder
    batch_size: int

    @property
    def name(self) -> str:
        return self.maker.spec.task

    def lines(self, variables: Any, count: int) -> list[Line]:
        """Returns the predictions of the first examples."""
        source, spec = self.maker.source, self.maker.spec
        count = min(count, source.num_examples)
        lines = []
        for batch in source.batches(range(-(-count // self.batch_size))):
            decoded = self.decoder(variables, batch.features, batch.number)
            for row, example in enumerate(batch.examples):
                if example is not None and example.index < count:
                    lines.append(
                        make_line(spec, source.batcher.vocabulary, example, *decoded.best(row))
                    )
        return lines


class Galleries:
    """Writes the galleries of validations; a failure is one sentence and ends them, not the run."""

    def __init__(
        self,
        config: GalleryConfig,
        model: OFA,
        partitioner: Partitioner,
        streams: Sequence[Stream],
        tasks: Mapping[str, Sequence[WeightedTask]],
        settings: Any,
        directory: epath.Path,
        split: str,
    ) -> None:
        """Reads and compiles nothing yet.

        Args:
          config: how many examples.
          model: of the run.
          partitioner: the mesh.
          streams: of the run.
          tasks: stream name -> its tasks over the validation split.
          settings: of the run, for its tasks; None for their defaults.
          directory: the run directory.
          split: name of the validation split.
        """
        self._config, self._model, self._partitioner = config, model, partitioner
        self._streams, self._tasks_of, self._settings = streams, tasks, settings
        self._directory = directory / gallery.GALLERIES / split
        self._tasks: list[_Task] | None = None
        self._is_over = config.is_off

    def write(
        self,
        step: int,
        variables: Any,
        is_last: bool,
        writer: gallery_events.Writer,
        log: Callable[[str], None],
    ) -> None:
        """Predicts examples of each task, and writes them to files and events.

        Args:
          step: of the parameters.
          variables: {"params", "batch_stats"}, on the mesh.
          is_last: whether it is the run's last validation.
          writer: of events.
          log: is called with a sentence about what is left out.
        """
        count = self._config.count(is_last)
        if self._is_over or not count:
            return
        if jax.process_count() > 1:
            self._is_over = True
            log(
                "Galleries of validations are left out, as several hosts train; "
                "`python -m ofa_jax.evaluate` makes them."
            )
            return
        name = "the validation examples"
        try:
            if self._tasks is None:
                self._tasks = list(self._open(log))
            for task in self._tasks:
                name = task.name
                examples = task.maker.make(task.lines(variables, count), count)
                self._save(step, task.name, examples, writer)
        except Exception as error:  # noqa: BLE001  what people look at must not cost the run
            self._is_over = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            log(
                f"Galleries of validations are left out from here on, as that of {name} failed "
                f"({reason}); training goes on."
            )

    def _save(
        self,
        step: int,
        name: str,
        examples: Sequence[GalleryExample],
        writer: gallery_events.Writer,
    ) -> None:
        """Writes the gallery of a task."""
        folder = self._directory / str(step)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / f"{name}.json", gallery.to_json(examples))
        gallery_events.write(writer, step, f"validation/gallery/{name}", examples)

    def _open(self, log: Callable[[str], None]) -> Iterator[_Task]:
        """Yields the tasks that can be predicted; those that cannot are logged."""
        for stream in self._streams:
            for task in self._tasks_of.get(stream.name, ()):
                if not eval_spec.is_registered(task.name):
                    log(f"{task.name} has no gallery: it is registered without an EvalSpec.")
                    continue
                try:
                    yield self._open_task(stream, task)
                except ValueError as error:
                    log(f"{task.name} has no gallery: {error}")

    def _open_task(self, stream: Stream, task: WeightedTask) -> _Task:
        """Returns a task with its decoder.

        Raises:
          ValueError: its examples cannot be used, or its decoding does not fit the model.
        """
        spec = cheap_spec(eval_spec.find(task.name, self._settings), stream)
        shards = self._partitioner.num_data_shards
        batch_size = -(-self._config.batch_size // shards) * shards
        batcher = EvalBatcher(
            dataclasses.replace(
                stream,
                mixture_or_task_name=task.name,
                batch_size=batch_size,
                num_sampled_patches=None,
            ),
            vocabulary_of(task.name, self._settings),
            spec.references,
            shards,
            self._partitioner.data_shards,
        )
        largest = max(self._config.examples, self._config.final_examples)
        source = RecordEvalSource.open(task, batcher, largest)
        spec.decoding.max_output_length(stream.task_feature_lengths["inputs"], self._model.config)
        decoder = BatchDecoder(self._model, spec, batcher.vocabulary, self._partitioner)
        return _Task(GalleryMaker(spec, source, self._image_tokenizer), decoder, batch_size)

    @property
    def _image_tokenizer(self) -> ImageTokenizer | None:
        return getattr(self._settings, "image_tokenizer", None)


def make_galleries(
    config: GalleryConfig,
    program: TrainProgram,
    held_out: RunData | None,
    settings: Any,
    directory: epath.Path,
    split: str | None,
) -> Galleries | None:
    """Returns what writes the galleries of a run; None if it is not validated, or has none.

    Args:
      config: how many examples.
      program: of the run.
      held_out: its validation data, if any.
      settings: of the run, for its tasks; None for their defaults.
      directory: the run directory.
      split: name of the validation split, if any.
    """
    if config.is_off or held_out is None or split is None:
        return None
    streams, tasks = held_out.loader.streams, held_out.tasks
    return Galleries(
        config, program.network, program.partitioner, streams, tasks, settings, directory, split
    )


def cheap_spec(spec: EvalSpec, stream: Stream) -> EvalSpec:
    """Returns a spec that is decoded greedily and no longer than the targets of a stream.

    Texts of a stream have the same longest length, so that they share a compiled program.
    """
    own, longest = spec.decoding, stream.task_feature_lengths["targets"] - 1
    source_length = stream.task_feature_lengths["inputs"]
    length = min(int(own.max_length_per_source_token * source_length + own.max_length), longest)
    if spec.kind == "text" and not own.exact_length:
        length = longest
    return spec.replace(
        decoding=DecodingConfig(
            beam_size=1,
            max_length=length,
            min_length=min(own.min_length, length),
            exact_length=own.exact_length,
            no_repeat_ngram_size=own.no_repeat_ngram_size,
            constraint_range=own.constraint_range,
        ),
        candidates=None,
        score_all=False,
    )
