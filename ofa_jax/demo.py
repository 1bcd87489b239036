"""A demo of a trained model in the browser, and the same model for programs over HTTP.

    python -m ofa_jax.demo runs/pretrain_scenes
    ofa-demo runs/pretrain_scenes --port=8080

CHECKPOINT is a run directory (its newest checkpoint), one of its folders `checkpoints/<step>`, a
converted official checkpoint, or an official one with --vocabulary. Prints the address once the
page can be opened; only this machine can reach it unless --host says otherwise. The program that
writes captions is compiled meanwhile; the first question of any other kind waits for its own.
SIGTERM and Ctrl-C end it after the questions that it has accepted. Exit code 2: a mistake in the
arguments, reported in one sentence.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from absl import logging

from ofa_jax.cli import errors, flags
from ofa_jax.utils import allocator, distributed, options
from ofa_jax.utils.option_checks import check_options

_PORT = 7860
_MATCHING = "matching"
_PACKAGES = ("gradio", "fastapi", "starlette", "uvicorn")


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program); returns the exit code."""
    logging.set_verbosity(logging.WARNING)
    with errors.user_errors():
        chosen = _parse(arguments)
        # Imported only now: JAX takes seconds, and --help needs none of it.
        from ofa_jax.cli.compilation_cache import cache_compiled_programs
        from ofa_jax.utils import platforms

        cache_compiled_programs()
        platforms.skip_missing_tpu()
        _check_packages()
        from ofa_jax.serving import demo_server

        server = demo_server.prepare(
            chosen.checkpoint,
            host=chosen.host,
            port=chosen.port,
            vocabulary=chosen.vocabulary,
            image_tokenizer=chosen.image_tokenizer,
            weights=chosen.weights,
            dtype=chosen.dtype,
            batch_size=chosen.batch_size,
            beam_size=chosen.beam_size,
            max_image_bytes=chosen.max_image_bytes,
            max_image_pixels=chosen.max_image_pixels,
            max_waiting=chosen.max_waiting,
            allowed_hosts=chosen.allowed_host,
            with_examples=not chosen.no_examples,
            image_generation=_image_generation(chosen),
        )
    code = 0 if server.run() else errors.FAILURE
    if server.queue.is_working:
        # A program is being compiled, which cannot be called off. Where Python ends as usual, it
        # cuts threads off in the middle of XLA, which aborts the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses and checks the command line. Raises ConfigError or ValueError."""
    parser = flags.ArgumentParser(
        prog="ofa-demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="what to load, see above")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen at; 0.0.0.0 lets every machine of the network in (%(default)s)",
    )
    parser.add_argument("--port", type=int, default=_PORT, help="0 for any free one (%(default)s)")
    parser.add_argument(
        "--allowed_host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name of this machine under which others open the page; repeat it for several",
    )
    parser.add_argument(
        "--batch_size", type=int, default=8, help="questions decoded at once (%(default)s)"
    )
    parser.add_argument(
        "--beam_size", type=int, default=5, help="candidates of beam search (%(default)s)"
    )
    parser.add_argument(
        "--max_waiting", type=int, default=256, help="questions that may wait (%(default)s)"
    )
    parser.add_argument(
        "--max_image_bytes", type=int, default=10 << 20, help="of an uploaded file (%(default)s)"
    )
    parser.add_argument(
        "--max_image_pixels",
        type=int,
        default=25_000_000,
        help="width times height of an uploaded image (%(default)s)",
    )
    parser.add_argument(
        "--vocabulary", help="for official checkpoints: the folder of their byte pair encoding"
    )
    parser.add_argument(
        "--image_tokenizer",
        help="for official checkpoints: the file of the published VQGAN, or the folder of a run "
        "that has trained one",
    )
    _add_image_flags(parser)
    parser.add_argument("--weights", choices=("model", "ema"), help="which parameters are used")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation")
    parser.add_argument("--no_examples", action="store_true", help="shows no examples of the run")
    chosen = parser.parse_args(list(arguments))
    checked = (
        *("port", "batch_size", "beam_size", "max_waiting"),
        *("max_image_bytes", "max_image_pixels"),
        *("image_candidates", "image_temperature", "image_top_k", "image_top_p", "guidance_scale"),
    )
    check_options(_flags, {name: getattr(chosen, name) for name in checked}, "ofa-demo")
    if not 0 <= chosen.port < 2**16:
        raise errors.ConfigError(f"--port is {chosen.port}; give a number from 0 to 65535.")
    return chosen


def _flags(
    port: int,
    batch_size: options.Count,
    beam_size: options.Count,
    max_waiting: options.Count,
    max_image_bytes: options.Count,
    max_image_pixels: options.Count,
    image_candidates: options.Count,
    image_temperature: options.Positive,
    image_top_k: options.Natural,
    image_top_p: Annotated[float, options.Above(0), options.AtMost(1)],
    guidance_scale: options.NonNegative,
) -> None:
    """Declares what the flags may be."""


def _add_image_flags(parser: argparse.ArgumentParser) -> None:
    """Adds how images are generated from captions, see `ImageGeneration`."""
    group = parser.add_argument_group("images from captions (docs/guides/text_to_image.md)")
    group.add_argument(
        "--image_candidates",
        type=int,
        default=4,
        help="images of each caption, all of which the page shows (%(default)s)",
    )
    group.add_argument("--image_temperature", type=float, default=1.0, help="(%(default)s)")
    group.add_argument(
        "--image_top_k",
        type=int,
        default=256,
        help="sample among this many codes; 0 for all (%(default)s)",
    )
    group.add_argument(
        "--image_top_p",
        type=float,
        default=1.0,
        help="sample among the fewest codes of this probability (%(default)s)",
    )
    group.add_argument(
        "--guidance_scale",
        type=float,
        default=1.0,
        help="above 1, images follow their captions more closely, for models that were fine-tuned "
        "with caption_dropout (%(default)s)",
    )
    group.add_argument(
        "--image_reranker",
        metavar="matching|CLIP",
        help="chooses the best candidate: the model's own image-text matching, or the files of a "
        "CLIP; without it, the most probable one",
    )


def _image_generation(chosen: argparse.Namespace) -> Any:
    """Returns how images are generated; reads the CLIP, if there is one."""
    from ofa_jax.inference.image_generation import ImageGeneration
    from ofa_jax.interop import clip_file

    ranker = chosen.image_reranker
    if ranker is not None and ranker != _MATCHING:
        ranker = clip_file.read(ranker)
    return ImageGeneration(
        num_candidates=chosen.image_candidates,
        temperature=chosen.image_temperature,
        top_k=chosen.image_top_k,
        top_p=chosen.image_top_p,
        guidance_scale=chosen.guidance_scale,
        reranker=ranker,
    )


def _check_packages() -> None:
    """Raises ConfigError if a package of the extra `demo` is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.ConfigError(
            f"ofa-demo needs the Python package {missing[0]!r}, which is not installed: run "
            "`pip install 'ofa_jax[demo]'`."
        )


if __name__ == "__main__":
    allocator.restart_with_huge_pages()
    with distributed.crashes_end_at_once(), errors.interruptible():
        sys.exit(main(sys.argv[1:]))
