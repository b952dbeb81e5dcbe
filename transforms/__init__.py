"""Beam transforms, thin; their arithmetic in pure functions beside them."""
