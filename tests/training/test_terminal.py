"""Reports on a terminal and in a log."""

import io

from rich.console import Console

from ofa_jax.training.terminal import Progress, Report

REPORT = Report(
    step=250, total_steps=1000, steps_per_second=2.5, examples_per_second=140.0, data_wait=0.013,
    loss=7.125, task_losses={"image_captioning": 2.5, "text_infilling": 5.25}, learning_rate=1e-3,
    gradient_norm=1.5, skipped_records=2, skipped_steps=0)


def test_a_log_gets_plain_lines():
    console = Console(file=io.StringIO(), width=40)
    with Progress(console) as progress:
        progress.say("Compiling the step ...")
        progress.show(REPORT)
    assert console.file.getvalue().splitlines() == [
        "Compiling the step ...",
        "step 250/1000  loss 7.125  2.50 steps/s  140 examples/s  0:05:00 left  "
        "waiting for data 1%  2 records skipped",
        "    image_captioning 2.500  text_infilling 5.250",
    ]


def test_a_terminal_gets_one_view_that_is_replaced():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress(console) as progress:
        progress.show(REPORT)
        progress.say("Validating ...")
    text = console.file.getvalue()
    assert "image_captioning" in text and "Validating ..." in text
    assert "\x1b[" in text  # the cursor moves


def test_tensorboard_gets_every_number():
    scalars = REPORT.scalars
    assert scalars["train/loss"] == 7.125
    assert scalars["train/loss/text_infilling"] == 5.25
    assert scalars["train/skipped_records"] == 2
