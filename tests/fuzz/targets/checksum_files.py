"""SHA256SUMS and the files that it lists: a change is found, and nothing else is opened."""

import os
import pathlib
import random
import shutil

from etils import epath

from fuzz import cases
from fuzz.mutations import mutate_bytes, mutate_text
from ofa_jax.checkpoints import checksums

_OTHERS = (
    "../secret",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "state/pipe",
    "state",
    "a/../b",
)


class ChecksumFiles(cases.Target):
    """Damages a checkpoint's list of checksums or one of its files."""

    name = "checksums"

    def prepare(self, folder: pathlib.Path) -> None:
        """Writes a small checkpoint."""
        self._good = folder / "7"
        for name in ("state/a", "state/d/b", "run/metadata"):
            path = self._good / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode() * 20)
        (folder / "secret").write_bytes(b"secret")
        checksums.write(epath.Path(self._good))

    def run(self, rng: random.Random, folder: pathlib.Path) -> str:
        """Looks for damage in a mutated copy."""
        step = folder / "7"
        shutil.copytree(self._good, step)
        (folder / "secret").write_bytes(b"secret")
        listed = step / checksums.FILE
        before = _entries(listed.read_bytes())
        operation = rng.randrange(5)
        must_find = True
        if operation == 0:
            path = rng.choice([step / "state" / "a", step / "state" / "d" / "b"])
            content = path.read_bytes()
            changed = mutate_bytes(rng, content)
            path.write_bytes(changed)
            must_find = changed != content
        elif operation == 1:
            os.remove(step / "run" / "metadata")
        elif operation == 2:
            os.mkfifo(step / "state" / "pipe")
            self._add(rng, listed)
        else:
            mutate = mutate_bytes if operation == 3 else mutate_text
            listed.write_bytes(mutate(rng, listed.read_bytes()))
            must_find = _entries(listed.read_bytes()) != before
        found = checksums.find_damage(epath.Path(step))
        cases.check(found is not None or not must_find, "damage is not found")
        if found is not None:
            cases.check_sentence(f"The checkpoint is damaged: {found}")
            return "found"
        return cases.ACCEPTED

    def _add(self, rng: random.Random, listed: pathlib.Path) -> None:
        line = f"{'0' * 64}  {rng.choice(_OTHERS)}\n"
        listed.write_bytes(listed.read_bytes() + line.encode())


def _entries(content: bytes) -> set[tuple[bytes, bytes]]:
    """Returns the well-formed entries of a list of checksums."""
    lines = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    return {(line[:64].lower(), line[66:]) for line in lines if line}


TARGETS = {"checksums": ChecksumFiles}
