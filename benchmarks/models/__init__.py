"""The models against their peers (`check`), and in numbers (`card`).

Both are commands of their own, which write the tables of docs/models.md.
"""
