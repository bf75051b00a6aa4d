"""The papers, part by part, as data: what each one says, where it is here, and how that is checked.

`experiments/audit.py` checks these tables, `experiments/paper_map.py` prints them as a page.
"""
