"""What all processes of a node share to run: life under the supervisor, logs, small trio actors around the pure core."""
