"""Noisy Student (Xie et al. 2020): the training step, and which pseudo-labelled images the student sees."""
