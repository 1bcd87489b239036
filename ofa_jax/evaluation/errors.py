"""The error of an evaluation that cannot continue."""


class EvaluationError(ValueError):
    """An evaluation cannot continue as configured; the message says what to do."""
