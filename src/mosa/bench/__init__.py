"""Speed and memory, side by side with references, in one process run (docs/speed.md)."""
