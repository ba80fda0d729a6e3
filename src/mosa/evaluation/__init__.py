"""Models x attacks x measures, recorded: attempts, rates with intervals, and the demo."""
