"""What the model's answers are worth: metrics, and how each task is asked and judged."""
