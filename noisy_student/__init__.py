"""Noisy Student (Xie et al. 2020): the train step, pseudo-labelling, filter and balance, the iterated loop.

May import `stages`, `data`, `efficientnet`, `resnet` and `training`; never `meta_pseudo_labels`.
"""
