"""Sources of requests: JSON lines, TSV files and folders of images, read by random access.

    source = JsonLines("requests.jsonl", instruction="what does the image describe?")
    entry = source[7]                          # Entry(id, instruction, image, region)
    image = entry.read_image()                 # its bytes

Reading an invalid entry raises InvalidRecordError; `location` names an entry even then. What was
changed in a valid one is reported by `bad_input.note`.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated

from PIL import Image

from ofa_jax.inference.entries import (
    NAME_NOT_UTF8,
    Entry,
    InvalidEntry,
    RequestSource,
    clean_instruction,
    escape_name,
)
from ofa_jax.inference.fields import FIELDS
from ofa_jax.inference.line_files import JsonLines
from ofa_jax.inference.tsv_lines import Tsv
from ofa_jax.utils import options
from ofa_jax.utils.bad_input import note
from ofa_jax.utils.option_checks import checked

__all__ = ["FIELDS", "Entry", "ImageFolder", "InvalidEntry", "JsonLines", "RequestSource", "Tsv"]


@checked
@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """All images below a folder in the order of their paths, with one instruction.

    Attributes:
      path: the folder.
      instruction: the instruction for all images.
      suffixes: file name suffixes of images; all that Pillow knows when None.
      allow_outside_images: whether symbolic links may lead out of the folder.
    """

    path: options.Path
    instruction: options.Name
    suffixes: Annotated[Sequence[options.Name], options.NotEmpty()] | None = None
    allow_outside_images: bool = False

    def __post_init__(self) -> None:
        if not pathlib.Path(self.path).is_dir():
            raise FileNotFoundError(f"There is no folder {self.path}: check the path.")

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The paths of all images, relative to the folder.

        Raises:
          OSError: a folder cannot be listed.
        """
        if self.suffixes is None:
            Image.init()
            suffixes = set(Image.EXTENSION)
        else:
            suffixes = {f".{suffix.lower().lstrip('.')}" for suffix in self.suffixes}
        found = []
        for folder, _, names in os.walk(self.path, onerror=_refuse_unlisted):
            found += [
                os.path.relpath(os.path.join(folder, name), self.path)
                for name in names
                if pathlib.Path(name).suffix.lower() in suffixes
            ]
        return tuple(sorted(found))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Entry:
        """Returns a request, see `RequestSource`."""
        name = self.names[index]
        if (entry_id := escape_name(name)) != name:
            note(
                NAME_NOT_UTF8, "The bytes of the file name that are not UTF-8 are escaped in the id"
            )
        return Entry(
            entry_id,
            clean_instruction(self.instruction),
            name,
            folder=self.path,
            is_path=True,
            allow_outside=self.allow_outside_images,
        )

    def location(self, index: int) -> str:
        """Returns the path of the image in the folder."""
        return escape_name(self.names[index])


def _refuse_unlisted(error: OSError) -> None:
    raise OSError(
        error.errno,
        f"The folder {error.filename} cannot be listed ({error.strerror}): allow it, or move it "
        "out of the images",
    ) from error
