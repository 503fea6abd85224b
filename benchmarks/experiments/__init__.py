"""Learning, reliability, experts and exports."""
