"""The LIBERO benchmark: real robosuite scenes, official initial states, five suites."""
