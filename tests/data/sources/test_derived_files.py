"""Tests that files kept beside the user's are written elsewhere, or that one sentence says how."""

import contextlib
import errno
import gzip
import os

import pyarrow
import pyarrow.parquet
import pytest
from table_files import write_images
from test_webdataset import samples, write_tar

from ofa_jax.data.sources import arrow_files, derived_files, json_lines, webdataset


@pytest.fixture(params=["gzip", "parquet", "tar"])
def made(request, tmp_path):
    """Returns the module that writes a source's files, and a function that makes its data set."""
    (name,) = write_images(tmp_path, 1)
    if request.param == "gzip":
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(gzip.compress(b'{"image": "%s", "captions": ["x"]}\n' % name.encode()))
        return derived_files, lambda **options: json_lines.JsonData(str(path), **options)
    if request.param == "parquet":
        path = tmp_path / "a.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"image": [name], "captions": [["x"]]}), path)
        return derived_files, lambda **options: arrow_files.ArrowData(str(path), **options)
    path = write_tar(tmp_path / "a.tar", samples(0, 1))
    return webdataset, lambda **options: webdataset.WebDatasetData(path, **options)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_is_one_sentence(made, code, monkeypatch):
    module, make = made

    @contextlib.contextmanager
    def refuse(path):
        raise OSError(code, os.strerror(code), str(path))
        yield

    with monkeypatch.context() as patch:
        patch.setattr(module, "atomic_path", refuse)
        with pytest.raises(OSError, match=r"cannot be written to .*: give a folder .* index_dir"):
            make().records("captions", "train")
    assert len(make().records("captions", "train")) == 1


def test_made_files_go_to_the_folder_of_the_option(made, tmp_path):
    _, make = made
    before = sorted(tmp_path.iterdir())
    index = tmp_path / "index"
    assert len(make(index_dir=str(index)).records("captions", "train")) == 1
    assert sorted(set(tmp_path.iterdir()) - {index}) == before and list(index.iterdir())


def test_the_room_that_counts_is_that_of_the_option(tmp_path, monkeypatch):
    write_images(tmp_path, 1)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n'))
    usage = json_lines.shutil.disk_usage

    def full(folder):
        found = usage(folder)
        return found._replace(free=0) if str(folder) == str(tmp_path) else found

    monkeypatch.setattr(json_lines.shutil, "disk_usage", full)
    path, index = str(tmp_path / "a.jsonl.gz"), str(tmp_path / "index")
    assert len(json_lines.JsonData(path, index_dir=index).records("text", "train")) == 1
    with pytest.raises(OSError, match=r"cannot be written to .*no room\): give a folder"):
        json_lines.JsonData(path).records("text", "train")
