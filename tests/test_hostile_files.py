"""Gives every file of the hostile corpus to the function that users reach with it."""

import json
import os
import re
import sys

import gin
import hostile_files
import ml_dtypes
import numpy as np
import pytest
from hostile_checkpoints import hostile_checkpoints
from hostile_images import EITHER, KEPT, SKIPPED, hostile_images
from hostile_texts import CHOICES, gin_files, json_lines, request_tables
from run_fixtures import config, processor  # noqa: F401  fixtures

from ofa_jax.cli import common, gin_registry
from ofa_jax.cli.errors import ConfigError
from ofa_jax.data.downstream_settings import read_choices
from ofa_jax.inference.kinds import KindOptions, Kinds
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.inference.request_batches import RequestBatches
from ofa_jax.inference.sources import JsonLines, Tsv
from ofa_jax.interop import files
from ofa_jax.model import OFA
from ofa_jax.preprocessing import images
from ofa_jax.preprocessing.records import InvalidRecordError

PLAIN_ERRORS = (ValueError, FileNotFoundError, ConfigError, InvalidRecordError)


def parameters(items):
    """Returns the items as parameters of a test, with the name of their file."""
    return [pytest.param(item, id=item.name) for item in items]


def assert_sentence(error, mentions=""):
    """Asserts that an error says in words what is wrong, the same in every process."""
    message = str(error)
    assert re.search(r"[a-z]{2,} [a-z]{2,}", message), message
    assert not re.search(r"0x[0-9a-f]{6,}|Traceback|<class|object at", message), message
    assert not isinstance(error, UnicodeError | json.JSONDecodeError), message
    assert mentions.lower() in message.lower(), message


@pytest.fixture
def no_programs(monkeypatch):
    """Fails the test if a program is started."""
    started = []

    def hook(event, arguments):
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"):
            started.append(arguments)

    if not hasattr(sys, "_ofa_program_hook"):
        sys._ofa_program_hook = []
        sys.addaudithook(lambda *event: [watch(*event) for watch in sys._ofa_program_hook])
    sys._ofa_program_hook.append(hook)
    yield
    sys._ofa_program_hook.remove(hook)
    assert not started


@pytest.mark.parametrize("item", parameters(hostile_images()))
def test_an_image_is_kept_as_it_looks_or_skipped(item, no_programs):
    try:
        image = images.decode(item.content)
    except InvalidRecordError as error:
        assert item.treatment in (SKIPPED, EITHER), error
        assert_sentence(error)
        return
    assert item.treatment in (KEPT, EITHER)
    assert image.mode == "RGB"
    assert item.size in (None, image.size)
    if item.mean is not None:
        assert np.asarray(image).mean() == pytest.approx(item.mean, abs=item.tolerance)


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    return hostile_files.write_requests(tmp_path_factory.mktemp("hostile") / "corpus")


@pytest.fixture(scope="module")
def make_rows(processor, config):  # noqa: F811
    """Returns a function from a source of requests to their rows."""
    kinds = Kinds(LoadedModel("", OFA(config), None, processor, None), KindOptions())

    def make(source):
        rows = RequestBatches(source, processor, kinds, 2, 32)
        return [rows.make_row(index).example for index in range(rows.num_examples)]

    return make


@pytest.mark.parametrize("item", parameters((*json_lines(), *request_tables())))
def test_each_request_is_kept_or_its_line_has_an_error(item, requests, make_rows):
    path = str(requests / item.name)
    try:
        source = Tsv(path, header=True) if item.name.endswith(".tsv") else JsonLines(path)
        rows = make_rows(source)
    except PLAIN_ERRORS as error:
        assert item.treatments is None, error
        assert_sentence(error, item.mentions)
        return
    assert item.treatments is not None and len(rows) == len(item.treatments)
    for row, treatment in zip(rows, item.treatments, strict=True):
        assert treatment == EITHER or (row.error is None) == (treatment == KEPT), row.error
        if row.error is not None:
            assert_sentence(row.error)
        # Each becomes a line of the output, whatever it holds.
        json.dumps([row.id, row.instruction, row.error], ensure_ascii=False).encode("utf-8")
    if item.instructions is not None:
        assert tuple(row.instruction for row in rows) == item.instructions
    for index, number in enumerate(item.locations or ()):
        assert source.location(index) == f"{item.name}:{number}"


@pytest.mark.parametrize("item", parameters(gin_files()))
def test_a_gin_file_is_read_or_refused_in_a_sentence(item, tmp_path, monkeypatch):
    for other in gin_files():
        (tmp_path / other.name).write_bytes(other.content)
    monkeypatch.chdir(tmp_path)
    gin.clear_config()
    gin_registry.register({})
    try:
        common.parse_arguments("python -m ofa_jax.train", "", [f"--gin_file={item.name}"])
    except (ValueError, TypeError, LookupError, OSError, ImportError) as error:
        assert item.treatments is None, error
        assert_sentence(error, item.mentions)
    else:
        assert item.treatments is not None
        assert gin.query_parameter("LoopConfig.log_period")
    finally:
        gin.clear_config()


@pytest.mark.parametrize("name", CHOICES)
def test_candidates_are_read_line_by_line_or_refused(name, tmp_path):
    content, expected = CHOICES[name]
    (tmp_path / name).write_bytes(content)
    try:
        found = read_choices(tmp_path / name)
    except PLAIN_ERRORS as error:
        assert expected is None, error
        assert_sentence(error, name)
    else:
        assert list(found) == expected


@pytest.mark.parametrize("item", parameters(hostile_checkpoints()))
def test_a_checkpoint_is_refused_and_nothing_is_run(item, tmp_path, monkeypatch, no_programs):
    monkeypatch.chdir(tmp_path)
    (tmp_path / item.name).write_bytes(item.content)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        files.read(tmp_path / item.name)
    assert_sentence(caught.value, item.mentions)
    assert item.name in str(caught.value)
    assert os.listdir(tmp_path) == [item.name]
    assert np.dtype(ml_dtypes.bfloat16).itemsize == 2
    assert np.ones(9, ml_dtypes.bfloat16).astype(np.float32).sum() == 9


def test_the_corpus_is_written(tmp_path):
    assert hostile_files.main([str(tmp_path / "corpus")]) == 0
    assert hostile_files.main([str(tmp_path / "corpus")]) == 2
