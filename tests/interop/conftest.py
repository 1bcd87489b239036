"""Makes the fixtures of Hugging Face folders available to the tests in this folder."""

from huggingface_fixtures import folder, official, tiny, vocabulary  # noqa: F401
