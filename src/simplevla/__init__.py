"""Reinforcement-learning post-training for vision-language-action policies from one bit of feedback."""

__version__ = "0.1.0"
