"""What is so: read → forward → twin → invariance, each filling columns of the tables."""
