"""What an update costs and needs before it is run: seconds, bytes, and whether it fits."""
