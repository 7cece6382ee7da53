"""What runs on each rank, whoever launched it."""
