"""Prediction of an update's seconds and bytes before it is run, and of whether it fits a machine."""
