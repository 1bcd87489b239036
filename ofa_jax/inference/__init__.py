"""Inference: `ofa_jax.Predictor` in Python, and jobs over many inputs.

predictor     predicts outputs for images and instructions, one at a time or in batches
loading       loads a checkpoint with its vocabulary, image tokenizer and image sizes
presets       decode presets: how each task is decoded
requests      converts an image and an instruction to model features
predictions   converts generated tokens to text, boxes and images
sources       sources of many requests: JSON lines, TSV files, folders of images
task_inputs   the examples of a seqio task as inputs
build         builds a job
job           decodes many requests and writes them shard by shard
shards        output files that are complete or absent
"""
