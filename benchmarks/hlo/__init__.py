"""Compiled training steps for machines without TensorFlow: written here, run there."""
