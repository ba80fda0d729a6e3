"""Rates, intervals, paired differences and tests; plain numbers in, plain numbers out."""
