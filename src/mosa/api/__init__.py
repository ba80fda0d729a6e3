"""What `import mosa` offers as functions: the commands of the command line, by the same names.

training.py aligns, runs.py evaluates, judges and tells results, probing.py analyzes, pages.py
reports and compares. Each function has its command's options as arguments, with the same defaults,
and shares its code.
"""
