"""Pages to look at: one self-contained HTML file each, which opens from disk without a network.

run_files     reads what a run directory holds: scalars, evaluations, galleries
curves        interactive figures of the scalars of one or several runs
run_report    the report of runs: curves, metrics, galleries
page          templates, and what all pages share
model_card    the README.md of a Hugging Face folder
"""

__all__ = ["curves", "model_card", "page", "run_files", "run_report"]
