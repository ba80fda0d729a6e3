"""Experiments on the testbed: the demo, and the tables of methods over several training seeds."""
