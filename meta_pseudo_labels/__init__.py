"""Meta Pseudo Labels (Pham et al. 2021): a teacher that learns from how its pseudo-labels change the student.

`feedback.py` holds the estimators of the signal, `model.py` the training step, `loss_scale.py` its float16 part, `uda.py` the
teacher's other losses, and `reduced.py` the teacher of Appendix E.
"""
