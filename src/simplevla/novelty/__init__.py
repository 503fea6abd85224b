"""Measurement of what RL changed in behaviour: solved episodes against the demonstrations of their tasks."""
