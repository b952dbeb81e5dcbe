"""The demo: the whole way once, on real data, watched and checked."""
