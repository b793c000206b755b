"""What every room stands on: tasks, timers, the loop's lag, plain counts."""
