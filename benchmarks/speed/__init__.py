"""Speed and memory of rollouts and updates."""
