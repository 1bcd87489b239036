"""Decodes the examples of a seqio task."""

from ofa_jax.data.features import Stream
from ofa_jax.data.task_settings import TaskSettings
from ofa_jax.decoding import DecodingConfig
from ofa_jax.evaluation import eval_spec
from ofa_jax.evaluation.batch_decoder import BatchDecoder
from ofa_jax.evaluation.eval_sources import EvalBatcher, EvalSource
from ofa_jax.evaluation.eval_spec import EvalSpec
from ofa_jax.inference import presets
from ofa_jax.inference.image_generation import ImageGeneration, Reranking
from ofa_jax.inference.job import TaskPipeline
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.task_inputs import LoadedTask
from ofa_jax.preprocessing import instructions
from ofa_jax.tokenizers.processor import Processor


def make_task_pipeline(
    task: LoadedTask,
    loaded: LoadedModel,
    settings: TaskSettings | None,
    decoding: DecodingConfig | None,
    batch_size: int,
    source_length: int,
    seed: int,
    image_generation: ImageGeneration | None = None,
) -> TaskPipeline:
    """Returns the pipeline of a seqio task's examples.

    Raises:
      ValueError: `image_generation` is for another task, or the model cannot rank images.
    """
    spec = _task_spec(task, loaded, settings)
    spec = spec if decoding is None else spec.replace(decoding=decoding)
    reranking = None
    if image_generation is not None:
        if spec.unconditional is None:
            raise ValueError(
                f"infer.image_generation is given, but {task.name} generates no images from "
                "captions: leave it out."
            )
        image_generation.check(loaded.processor)
        num_codes = loaded.processor.vocabulary.num_codes
        if decoding is None:
            spec = spec.replace(decoding=image_generation.decoding(spec.decoding, num_codes))
        reranking = Reranking(image_generation, loaded)
    loaded = loaded.with_processor(max_image_size=spec.max_image_size)
    source = _task_source(task, spec.kind, loaded.processor, batch_size, source_length)
    vocabulary = loaded.processor.vocabulary
    decoder = BatchDecoder(loaded.model, spec, vocabulary, loaded.partitioner, seed)
    spec.decoding.max_output_length(source_length, loaded.model.config)
    return TaskPipeline(loaded, decoder, source, batch_size, spec.decoding, reranking)


def _task_spec(task: LoadedTask, loaded: LoadedModel, settings: TaskSettings | None) -> EvalSpec:
    """Returns the spec of a task; without one, the preset of its instruction."""
    if eval_spec.is_registered(task.name):
        return eval_spec.find(task.name, settings)
    instruction = loaded.processor.vocabulary.decode(task.example["inputs"])
    preset = presets.find_preset(
        instructions.recognise_task(instruction), loaded.processor, loaded.model.config
    )
    return presets.inference_spec(preset.decoding).replace(
        kind="codes" if task.example.get("code_mask", False) else "text",
        max_image_size=loaded.processor.max_image_size,
    )


def _task_source(
    task: LoadedTask, kind: str, processor: Processor, batch_size: int, source_length: int
) -> EvalSource:
    """Returns the examples of a task in batches."""
    if task.vocab_size != processor.vocabulary.vocab_size:
        raise ValueError(
            f"Task {task.name} has a vocabulary of {task.vocab_size} ids, the model one of "
            f"{processor.vocabulary.vocab_size}: set the task up as for training (infer.settings)."
        )
    image = task.example.get("image")
    # A forced prefix may be as long as the instruction.
    prefix_length = source_length if "target_prefix" in task.example else 1
    stream = Stream(
        "inputs",
        task.name,
        batch_size,
        {"inputs": source_length, "targets": prefix_length},
        image_size=None if image is None or not image.size else image.shape[0],
        code_targets=kind == "codes",
    )
    return task.make_source(EvalBatcher(stream, processor.vocabulary, presets.no_references))
