"""The models against their peers (`check`), and in numbers (`card`).

Both are their own commands, which write the tables of docs/models.md.
"""
