"""Runs: what is measured, on what, and one file that records it.

Start reading in evaluate.py (the call), then responder.py (what answers), recorder.py (the one
writer) and store.py (the file).
"""
