"""Makes the fixtures of Hugging Face folders available to the tests in this folder."""

from huggingface_fixtures import folder, official_file, tiny, vocabulary  # noqa: F401
