"""Results of runs: figures with one interval, and comparisons of them.

Start reading in figures.py, the one reader of verdicts; tables, reports, exports and comparisons
are views of what it gives.
"""
