"""Meta Pseudo Labels (Pham et al. 2021): a teacher that learns from how its pseudo-labels change the student.

`feedback.py` holds the signal, `model.py` the training step (`student.py` and `uda.py` its two sides), `reduced.py` that of Appendix E.
"""
