"""Dead letters by hand: looking at them, and putting them back at the source."""
