"""Prediction of the bytes that a run needs before it is run, and of seconds where they were measured."""
